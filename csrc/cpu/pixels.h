// Stored pixels to floats, and one stored pixel plus one perturbation to one stored pixel. Files that include this are
// compiled without contraction.
#pragma once
#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {
namespace {

ULFAST_INLINE float round_even(float v) {  // exact for |v| < 2**22, which a clamped pixel is
  return (v + 0x1.8p23f) - 0x1.8p23f;
}

// A pixel in [0, 1], of either format.
ULFAST_INLINE float unit(uint8_t v) { return (float)v / 255.0f; }
ULFAST_INLINE float unit(float v) { return v; }

// Deltas are in units of [0, 1], or already in levels of 255.
template <bool Truncate, bool Levels> ULFAST_INLINE uint8_t pixel(uint8_t x, float delta) {
  float v = (float)x + (Levels ? delta : 255.0f * delta);
  v = v > 0.0f ? v : 0.0f;  // NaN becomes 0 here and never an undefined conversion
  v = v < 255.0f ? v : 255.0f;
  return (uint8_t)(int)(Truncate ? v : round_even(v));
}

template <bool Truncate, bool Levels> ULFAST_INLINE void pixels(const uint8_t* x, const float* delta, uint8_t* out) {
  const vecf v = larger(load_as(x) + (Levels ? load(delta) : 255.0f * load(delta)), vecf{});
#if defined(__AVX512F__)
  // The conversion rounds to even; a value too large for it becomes 2^31, which saturates to white.
  const __m512i w = Truncate ? _mm512_cvttps_epi32((__m512)v) : _mm512_cvtps_epi32((__m512)v);
  _mm_storeu_si128((__m128i*)out, _mm512_cvtusepi32_epi8(w));
#else
  const vecf white = smaller(v, vecf{} + 255.0f);
  narrow_bytes(out, __builtin_convertvector(Truncate ? white : (white + 0x1.8p23f) - 0x1.8p23f, veci));
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Eight of the 32 pixels below, as integers. A value too large for them becomes white, NaN becomes INT_MIN.
template <bool Truncate, bool Levels> ULFAST_INLINE __m256i level(const uint8_t* x, const float* delta) {
  const vecf v = smaller(vecf{} + 255.0f, load_as(x) + (Levels ? load(delta) : 255.0f * load(delta)));
  return Truncate ? _mm256_cvttps_epi32((__m256)v) : _mm256_cvtps_epi32((__m256)v);
}

// 32 pixels: the saturation of two packings is the clamp, and there is one store instead of four.
template <bool Truncate, bool Levels> ULFAST_INLINE __m256i pixels32(const uint8_t* x, const float* delta) {
  const __m256i a = _mm256_packs_epi32(level<Truncate, Levels>(x, delta), level<Truncate, Levels>(x + 8, delta + 8));
  const __m256i b =
      _mm256_packs_epi32(level<Truncate, Levels>(x + 16, delta + 16), level<Truncate, Levels>(x + 24, delta + 24));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
}
#endif

// out = clamp(x + 255 * delta) for n values, a part of a result of `size` bytes.
template <bool Truncate, bool Levels = false>
ULFAST_INLINE void pixel_row(const uint8_t* x, const float* delta, uint8_t* out, int64_t n, int64_t size) {
  constexpr int step = Vec<float>::size;
  int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (size >= kStreamBytes && reinterpret_cast<uintptr_t>(out) % 32 == 0)
    for (; i + 32 <= n; i += 32) _mm256_stream_si256((__m256i*)(out + i), pixels32<Truncate, Levels>(x + i, delta + i));
  for (; i + 32 <= n; i += 32) _mm256_storeu_si256((__m256i*)(out + i), pixels32<Truncate, Levels>(x + i, delta + i));
#else
  (void)size;
#endif
  for (; i + step <= n; i += step) pixels<Truncate, Levels>(x + i, delta + i, out + i);
  for (; i < n; ++i) out[i] = pixel<Truncate, Levels>(x[i], delta[i]);
}

}  // namespace
}  // namespace ULFAST_LEVEL
}  // namespace ulfast
