// The AVX-512 intrinsics of csrc/cpu, lane by lane, for processors without them: `tools/emulate_avx512.sh` compiles the
// kernels with this in front. Sizes, tiles and tails are then those of AVX-512, and what they compute can be tested.
#pragma once

#include <immintrin.h>  // before the macros below, or it would take the intrinsics for the compiler's own
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1
#define __AVX512BW__ 1

namespace avx512 {

#define EMULATED static inline __attribute__((always_inline))

template <class T, class V> struct Lanes {  // of a vector of type V, as values of type T
  T v[sizeof(V) / sizeof(T)];
  Lanes() = default;
  explicit Lanes(V x) { memcpy(v, &x, sizeof v); }
  operator V() const {
    V x;
    memcpy(&x, v, sizeof v);
    return x;
  }
};
using Floats = Lanes<float, __m512>;
using Words = Lanes<uint32_t, __m512i>;
using Longs = Lanes<uint64_t, __m512i>;
using Halves = Lanes<uint16_t, __m256i>;
using Bytes = Lanes<uint8_t, __m128i>;

template <class Out, class F> EMULATED Out each(F f) {
  Out out;
  for (unsigned i = 0; i < sizeof out.v / sizeof out.v[0]; ++i) out.v[i] = f(i);
  return out;
}

// Only for _CMP_UNORD_Q.
EMULATED __mmask16 cmp_ps_mask(__m512 a, __m512 b, int) {
  const Floats x(a), y(b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (unsigned)__builtin_isunordered(x.v[i], y.v[i]) << i;
  return (__mmask16)mask;
}
EMULATED __m512i mask_blend_epi32(unsigned mask, __m512i a, __m512i b) {
  const Words x(a), y(b);
  return each<Words>([&](int i) { return mask >> i & 1 ? y.v[i] : x.v[i]; });
}
EMULATED __m512i mask_mov_epi32(__m512i a, unsigned mask, __m512i b) { return mask_blend_epi32(mask, a, b); }
EMULATED __m512 max_ps(__m512 a, __m512 b) {
  const Floats x(a), y(b);
  return each<Floats>([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
}
EMULATED __m512 min_ps(__m512 a, __m512 b) {
  const Floats x(a), y(b);
  return each<Floats>([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; });
}

EMULATED __m512i cvtepu8_epi32(__m128i a) {
  const Bytes x(a);
  return each<Words>([&](int i) { return x.v[i]; });
}
EMULATED __m512i cvtepu16_epi32(__m256i a) {
  const Halves x(a);
  return each<Words>([&](int i) { return x.v[i]; });
}
EMULATED __m128i cvtepi32_epi8(__m512i a) {
  const Words x(a);
  return each<Bytes>([&](int i) { return (uint8_t)x.v[i]; });
}
EMULATED __m128i cvtusepi32_epi8(__m512i a) {
  const Words x(a);
  return each<Bytes>([&](int i) { return (uint8_t)(x.v[i] < 255 ? x.v[i] : 255); });
}
EMULATED __m256i cvtepi32_epi16(__m512i a) {
  const Words x(a);
  return each<Halves>([&](int i) { return (uint16_t)x.v[i]; });
}
EMULATED __m512i cvtps_epi32(__m512 a) {
  const Floats x(a);
  return each<Words>([&](int i) { return (uint32_t)_mm_cvtss_si32(_mm_set_ss(x.v[i])); });
}
EMULATED __m512i cvttps_epi32(__m512 a) {
  const Floats x(a);
  return each<Words>([&](int i) { return (uint32_t)_mm_cvttss_si32(_mm_set_ss(x.v[i])); });
}
EMULATED __m512d cvtps_pd(__m256 a) {
  const Lanes<float, __m256> x(a);
  return each<Lanes<double, __m512d>>([&](int i) { return x.v[i]; });
}
EMULATED __m512 cvtph_ps(__m256i a) {
  const Halves x(a);
  return each<Floats>([&](int i) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.v[i]))); });
}
EMULATED __m256i cvtps_ph(__m512 a, int) {  // to the nearest
  const Floats x(a);
  return each<Halves>([&](int i) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x.v[i]), 0)); });
}

EMULATED __m512i set1_epi32(int a) {
  return each<Words>([&](int) { return (uint32_t)a; });
}
EMULATED __m512i mul_epu32(__m512i a, __m512i b) {
  const Longs x(a), y(b);
  return each<Longs>([&](int i) { return (x.v[i] & 0xFFFFFFFF) * (y.v[i] & 0xFFFFFFFF); });
}
EMULATED __m512i slli_epi64(__m512i a, unsigned by) {
  const Longs x(a);
  return each<Longs>([&](int i) { return x.v[i] << by; });
}
EMULATED __m512i srli_epi64(__m512i a, unsigned by) {
  const Longs x(a);
  return each<Longs>([&](int i) { return x.v[i] >> by; });
}
EMULATED __m512i permutexvar_epi16(__m512i index, __m512i a) {
  const Lanes<uint16_t, __m512i> at(index), x(a);
  return each<Lanes<uint16_t, __m512i>>([&](int i) { return x.v[at.v[i] % 32]; });
}
EMULATED __m512i permutexvar_epi32(__m512i index, __m512i a) {
  const Words at(index), x(a);
  return each<Words>([&](int i) { return x.v[at.v[i] % 16]; });
}

EMULATED __m512i loadu_si512(const void* p) {
  __m512i x;
  memcpy(&x, p, sizeof x);
  return x;
}
EMULATED void storeu_si512(void* p, __m512i x) { memcpy(p, &x, sizeof x); }
EMULATED __m512i load_si512(const void* p) {
  if ((uintptr_t)p % 64) __builtin_trap();
  return loadu_si512(p);
}
EMULATED void stream_ps(float* p, __m512 x) {
  if ((uintptr_t)p % 64) __builtin_trap();
  memcpy(p, &x, sizeof x);
}

#undef EMULATED

}  // namespace avx512

#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_slli_epi64
#undef _mm512_srli_epi64
#define _mm512_cmp_ps_mask ::avx512::cmp_ps_mask
#define _mm512_cvtepi32_epi16 ::avx512::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 ::avx512::cvtepi32_epi8
#define _mm512_cvtepu16_epi32 ::avx512::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 ::avx512::cvtepu8_epi32
#define _mm512_cvtph_ps ::avx512::cvtph_ps
#define _mm512_cvtps_epi32 ::avx512::cvtps_epi32
#define _mm512_cvtps_pd ::avx512::cvtps_pd
#define _mm512_cvtps_ph ::avx512::cvtps_ph
#define _mm512_cvttps_epi32 ::avx512::cvttps_epi32
#define _mm512_cvtusepi32_epi8 ::avx512::cvtusepi32_epi8
#define _mm512_load_si512 ::avx512::load_si512
#define _mm512_loadu_si512 ::avx512::loadu_si512
#define _mm512_mask_blend_epi32 ::avx512::mask_blend_epi32
#define _mm512_mask_mov_epi32 ::avx512::mask_mov_epi32
#define _mm512_max_ps ::avx512::max_ps
#define _mm512_min_ps ::avx512::min_ps
#define _mm512_mul_epu32 ::avx512::mul_epu32
#define _mm512_permutexvar_epi16 ::avx512::permutexvar_epi16
#define _mm512_permutexvar_epi32 ::avx512::permutexvar_epi32
#define _mm512_set1_epi32 ::avx512::set1_epi32
#define _mm512_slli_epi64 ::avx512::slli_epi64
#define _mm512_srli_epi64 ::avx512::srli_epi64
#define _mm512_storeu_si512 ::avx512::storeu_si512
#define _mm512_stream_ps ::avx512::stream_ps
