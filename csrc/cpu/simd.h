// The compiler's vector extension, with vectors sized for the level for which this file is compiled.
//
// Plain arithmetic on them becomes AVX-512, AVX2, SSE or NEON. Intrinsics are used only where the width changes: half
// precision needs F16C, and GCC 12 splits __builtin_convertvector between widths (9 ns per vector instead of 1). This
// header is compiled once per level: no std header with inline functions may be included, or the linker could keep a
// copy that older processors cannot run.
#pragma once

#include <stdint.h>

#include "../floats.h"
#include "../ulfast.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef ULFAST_LEVEL
#error "compile with -DULFAST_LEVEL=baseline, v3 or v4"
#endif

namespace ulfast {
namespace ULFAST_LEVEL {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kRegisters = 32;
#else
constexpr int kBytes = 16, kRegisters = 16;
#endif
constexpr int kRows = 4;                   // rows a register tile holds
constexpr int64_t kStreamBytes = 8 << 20;  // results above this size use streaming stores

#define ULFAST_INLINE static inline __attribute__((always_inline))

template <class T> struct Vec;
template <> struct Vec<float> {
  static constexpr int size = kBytes / 4;
  typedef float type __attribute__((vector_size(kBytes)));
  typedef float loose __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <> struct Vec<double> {
  static constexpr int size = kBytes / 8;
  typedef double type __attribute__((vector_size(kBytes)));
  typedef double loose __attribute__((vector_size(kBytes), aligned(8), may_alias));
};

typedef int32_t veci __attribute__((vector_size(kBytes)));
typedef uint32_t vecu __attribute__((vector_size(kBytes)));
using vecf = Vec<float>::type;

template <class A> ULFAST_INLINE typename Vec<A>::type load(const A* p) {
  return *reinterpret_cast<const typename Vec<A>::loose*>(p);
}
template <class A> ULFAST_INLINE void store(A* p, typename Vec<A>::type v) {
  *reinterpret_cast<typename Vec<A>::loose*>(p) = v;
}
// s - 0 is s for every s, -0 included, so the subtraction costs nothing; 0 + s would be a real addition.
template <class A> ULFAST_INLINE typename Vec<A>::type splat(A s) { return s - typename Vec<A>::type{}; }
// The sum of a vector by halves, in registers: a tile of products ends with twenty of these.
typedef float vf4 __attribute__((vector_size(16)));
typedef float vf8 __attribute__((vector_size(32)));
typedef float vf16 __attribute__((vector_size(64)));
typedef double vd2 __attribute__((vector_size(16)));
typedef double vd4 __attribute__((vector_size(32)));
typedef double vd8 __attribute__((vector_size(64)));
// GCC before 12 has no __builtin_shufflevector, and its alternative cannot change the width.
#if __has_builtin(__builtin_shufflevector)
#define ULFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
ULFAST_INLINE float sum(vf4 v) {
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
  return v[0] + v[1];
}
ULFAST_INLINE float sum(vf8 v) {
  return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
ULFAST_INLINE float sum(vf16 v) {
  return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
ULFAST_INLINE double sum(vd2 v) { return v[0] + v[1]; }
ULFAST_INLINE double sum(vd4 v) {
  return sum(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
}
ULFAST_INLINE double sum(vd8 v) {
  return sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#else
#define ULFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, veci{__VA_ARGS__})
template <class H, class V> ULFAST_INLINE H halves_added(V v) {
  static_assert(sizeof(V) == 2 * sizeof(H), "two halves");
  H half[2];
  __builtin_memcpy(half, &v, sizeof v);
  return half[0] + half[1];
}
ULFAST_INLINE float sum(vf4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
ULFAST_INLINE float sum(vf8 v) { return sum(halves_added<vf4>(v)); }
ULFAST_INLINE float sum(vf16 v) { return sum(halves_added<vf8>(v)); }
ULFAST_INLINE double sum(vd2 v) { return v[0] + v[1]; }
ULFAST_INLINE double sum(vd4 v) { return sum(halves_added<vd2>(v)); }
ULFAST_INLINE double sum(vd8 v) { return sum(halves_added<vd4>(v)); }
#endif

ULFAST_INLINE float to_float(uint8_t v) { return (float)v; }
ULFAST_INLINE float to_float(float v) { return v; }
ULFAST_INLINE double to_float(double v) { return v; }
ULFAST_INLINE float to_float(bf16 v) { return widened(v); }
ULFAST_INLINE float to_float(f16 v) { return widened(v); }

template <class T> ULFAST_INLINE T from_float(float v);
template <> inline __attribute__((always_inline)) float from_float<float>(float v) { return v; }
template <> inline __attribute__((always_inline)) bf16 from_float<bf16>(float v) { return rounded_bf16(v); }
template <> inline __attribute__((always_inline)) f16 from_float<f16>(float v) { return rounded_f16(v); }

// Bytes and half words to 32 bits and back.
#if defined(__AVX512F__)
ULFAST_INLINE veci widen_bytes(const uint8_t* p) {
  return (veci)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
ULFAST_INLINE vecu widen_words(const uint16_t* p) {
  return (vecu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
ULFAST_INLINE void narrow_bytes(uint8_t* p, veci v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v)); }
ULFAST_INLINE void narrow_words(uint16_t* p, vecu v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v));
}
#elif defined(__AVX2__)
ULFAST_INLINE veci widen_bytes(const uint8_t* p) {
  return (veci)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
ULFAST_INLINE vecu widen_words(const uint16_t* p) {
  return (vecu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
}
ULFAST_INLINE void narrow_words(uint16_t* p, vecu v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
ULFAST_INLINE void narrow_bytes(uint8_t* p, veci v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)v, (__m256i)v), 0x08);
  const __m128i half = _mm256_castsi256_si128(words);
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(half, half));
}
#else
// Interleaved with zeros twice, where the lowest byte comes first.
ULFAST_INLINE veci widen_bytes(const uint8_t* p) {
#if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  typedef uint8_t bytes16 __attribute__((vector_size(16)));
  typedef uint16_t words8 __attribute__((vector_size(16)));
  uint32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  const bytes16 b = (bytes16)vecu{four};
  const words8 w =
      (words8)__builtin_shufflevector(b, bytes16{}, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return (veci)__builtin_shufflevector(w, words8{}, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return veci{p[0], p[1], p[2], p[3]};
#endif
}
ULFAST_INLINE vecu widen_words(const uint16_t* p) { return vecu{p[0], p[1], p[2], p[3]}; }
ULFAST_INLINE void narrow_bytes(uint8_t* p, veci v) {
  for (int i = 0; i < 4; ++i) p[i] = (uint8_t)v[i];
}
ULFAST_INLINE void narrow_words(uint16_t* p, vecu v) {
  for (int i = 0; i < 4; ++i) p[i] = (uint16_t)v[i];
}
#endif

// Lower and upper halves of a * m, which the compiler computes lane by lane except on AVX-512.
ULFAST_INLINE void multiply_wide(vecu a, uint32_t m, vecu* low, vecu* high) {
#if defined(__AVX512F__)
  const __m512i by = _mm512_set1_epi32((int)m);
  const __m512i even = _mm512_mul_epu32((__m512i)a, by), odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), by);
  *low = (vecu)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  *high = (vecu)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
#elif defined(__AVX2__)
  const __m256i by = _mm256_set1_epi32((int)m);
  const __m256i even = _mm256_mul_epu32((__m256i)a, by), odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), by);
  *low = (vecu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  *high = (vecu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
  for (int i = 0; i < Vec<float>::size; ++i) {
    const uint64_t p = (uint64_t)a[i] * m;
    (*low)[i] = (uint32_t)p, (*high)[i] = (uint32_t)(p >> 32);
  }
#endif
}

// Load Vec<float>::size values as floats.
ULFAST_INLINE vecf load_as(const float* p) { return load(p); }
ULFAST_INLINE vecf load_as(const uint8_t* p) { return __builtin_convertvector(widen_bytes(p), vecf); }
ULFAST_INLINE vecf load_as(const bf16* p) { return (vecf)(widen_words(&p->bits) << 16); }
ULFAST_INLINE vecf load_as(const f16* p) {
#if defined(__AVX512F__)
  return (vecf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (vecf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  float t[Vec<float>::size];
  for (int i = 0; i < Vec<float>::size; ++i) t[i] = to_float(p[i]);
  return load(t);
#endif
}
ULFAST_INLINE Vec<double>::type load_as(const double* p) { return load(p); }

ULFAST_INLINE void store_as(float* p, vecf v) { store(p, v); }
ULFAST_INLINE void store_as(double* p, Vec<double>::type v) { store(p, v); }
// The upper half of each, rounded to even, as an integer. NaN stays NaN, with the quiet bit.
ULFAST_INLINE vecu bf16_bits(vecf v) {
  const vecu u = (vecu)v, even = u + (((u >> 16) & 1) + 0x7FFF), quiet = u | 0x400000;
#if defined(__AVX512F__)
  const __mmask16 isnan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  return (vecu)_mm512_mask_mov_epi32((__m512i)even, isnan, (__m512i)quiet) >> 16;
#elif defined(__AVX2__)
  const __m256 isnan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
  return (vecu)_mm256_blendv_ps((__m256)even, (__m256)quiet, isnan) >> 16;
#else
  const vecu isnan = (vecu)((u & 0x7FFFFFFF) > 0x7F800000);
  return ((quiet & isnan) | (even & ~isnan)) >> 16;
#endif
}
ULFAST_INLINE void store_as(bf16* p, vecf v) { narrow_words(&p->bits, bf16_bits(v)); }
ULFAST_INLINE void store_as(f16* p, vecf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  float t[Vec<float>::size];
  store(t, v);
  for (int i = 0; i < Vec<float>::size; ++i) p[i] = from_float<f16>(t[i]);
#endif
}
// Two vectors to 2 * Vec<float>::size values that follow each other.
template <class O> ULFAST_INLINE void store_two(O* p, vecf a, vecf b) {
  store_as(p, a);
  store_as(p + Vec<float>::size, b);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
template <> inline __attribute__((always_inline)) void store_two<bf16>(bf16* p, vecf a, vecf b) {
  const __m256i both = _mm256_packus_epi32((__m256i)bf16_bits(a), (__m256i)bf16_bits(b));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(both, 0xD8));
}
#endif
// a > b ? a : b and a < b ? a : b, one instruction each: b where either is not a number.
#if defined(__AVX512F__)
ULFAST_INLINE vecf larger(vecf a, vecf b) { return (vecf)_mm512_max_ps((__m512)a, (__m512)b); }
ULFAST_INLINE vecf smaller(vecf a, vecf b) { return (vecf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
ULFAST_INLINE vecf larger(vecf a, vecf b) { return (vecf)_mm256_max_ps((__m256)a, (__m256)b); }
ULFAST_INLINE vecf smaller(vecf a, vecf b) { return (vecf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
ULFAST_INLINE vecf larger(vecf a, vecf b) { return a > b ? a : b; }
ULFAST_INLINE vecf smaller(vecf a, vecf b) { return a < b ? a : b; }
#endif

// Vec<double>::size floats as doubles.
ULFAST_INLINE Vec<double>::type load_double(const float* p) {
#if defined(__AVX512F__)
  return (Vec<double>::type)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (Vec<double>::type)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return Vec<double>::type{p[0], p[1]};
#endif
}

// Streaming store, for results too large to be read back from the cache. The address must be aligned to the vector.
ULFAST_INLINE void stream(float* p, vecf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}

template <class T> struct Compute {
  using type = float;
};
template <> struct Compute<double> {
  using type = double;
};

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
