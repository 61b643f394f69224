// Arithmetic that is bit-identical on host and device: the bits of floats, half precision, the window of perturb_ar.
//
// Everything is inlined where it is used, as files compiled for one instruction level need it (cpu/simd.h).
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define ULFAST_HD __host__ __device__ __forceinline__
#else
#define ULFAST_HD static inline __attribute__((always_inline))
#endif

namespace ulfast {

ULFAST_HD uint32_t bits_of_f32(float x) {
  union {
    float f;
    uint32_t u;
  } v;
  v.f = x;
  return v.u;
}

ULFAST_HD float f32_of_bits(uint32_t x) {
  union {
    uint32_t u;
    float f;
  } v;
  v.u = x;
  return v.f;
}

// Half precision lives in uint16 with a tag, since not every compiler has a type for it.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

ULFAST_HD float widened(bf16 v) { return f32_of_bits((uint32_t)v.bits << 16); }
ULFAST_HD float widened(f16 v) {
  const uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, rest = v.bits & 0x7FFF;
  if (rest >= 0x7C00) return f32_of_bits(sign | 0x7F800000u | ((rest & 0x3FF) << 13));  // inf, nan
  if (rest >= 0x0400) return f32_of_bits(sign | ((rest << 13) + 0x38000000u));
  const float tiny = (float)rest * 0x1p-24f;  // subnormal: exact
  return sign ? -tiny : tiny;
}

// To nearest, ties to even; NaN stays NaN.
ULFAST_HD bf16 rounded_bf16(float v) {
  const uint32_t u = bits_of_f32(v);
  if ((u & 0x7FFFFFFF) > 0x7F800000) return bf16{(uint16_t)((u >> 16) | 0x40)};
  return bf16{(uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16)};
}
ULFAST_HD f16 rounded_f16(float v) {
  const uint32_t u = bits_of_f32(v), sign = (u >> 16) & 0x8000, a = u & 0x7FFFFFFF;
  if (a > 0x7F800000) return f16{(uint16_t)(sign | 0x7E00)};
  if (a >= 0x47800000) return f16{(uint16_t)(sign | 0x7C00)};  // 65536 and up; the rounding below covers 65520
  if (a < 0x38800000) {                                        // subnormal or zero: let the float unit round at 2**-24
    const float r = f32_of_bits(a) + 0.5f;                     // 0.5 has an ulp of 2**-24
    return f16{(uint16_t)(sign | (bits_of_f32(r) - 0x3F000000u))};
  }
  const uint32_t rounded = a - 0x38000000u + 0xFFF + ((a >> 13) & 1);
  return f16{(uint16_t)(sign | (rounded >> 13))};
}

// The next value of perturb_ar, a float or a vector of them, from the window's weights w[8]: the row two above (a), the
// row above (b) and the two values before it. Compiled without contraction: the same bits everywhere.
template <class V> ULFAST_HD V ar_value(const V* w, V a0, V a1, V a2, V b0, V b1, V b2, V before2, V before1) {
  V s = w[0] * a0;
  s += w[1] * a1;
  s += w[2] * a2;
  s += w[3] * b0;
  s += w[4] * b1;
  s += w[5] * b2;
  s += w[6] * before2;
  s += w[7] * before1;
  return s;
}

}  // namespace ulfast
