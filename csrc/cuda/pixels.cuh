// Adds perturbations to stored pixels; rounds as the CPU does (--fmad=false).
#pragma once

#include <math.h>

#include "launch.cuh"

namespace ulfast {
namespace cuda {

// One pixel plus a perturbation in levels (255 times that of [0, 1]).
__device__ __forceinline__ uint8_t level(uint8_t x, float levels, bool truncate) {
  float v = (float)x + levels;
  v = v > 0.0f ? v : 0.0f;  // NaN becomes 0
  v = v < 255.0f ? v : 255.0f;
  return (uint8_t)(int)(truncate ? v : rintf(v));
}
__device__ __forceinline__ uint8_t pixel(uint8_t x, float delta, bool truncate) {
  return level(x, 255.0f * delta, truncate);
}

#ifndef ULFAST_EMULATE
// The bits of 2^23, hidden from the compiler: a byte permutation takes one literal, which should be its selector.
static __constant__ uint32_t whole_bits = 0x4B000000u;
#endif

// Four pixels in one word. Conversions between bytes and floats run at a quarter of the rate of an addition, so the
// bytes are placed in the mantissa of 2^23: adding that rounds to a whole number, and the number is in the lowest byte.
__device__ __forceinline__ uint32_t levels4(uint32_t x, const float (&levels)[4], bool truncate) {
#ifdef ULFAST_EMULATE
  uint32_t out = 0;
  for (int u = 0; u < 4; ++u) out |= (uint32_t)level((uint8_t)(x >> 8 * u), levels[u], truncate) << 8 * u;
  return out;
#else
  constexpr float whole = 8388608.0f;  // 2^23
  uint32_t bits[4];
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const float stored = __uint_as_float(__byte_perm(x, whole_bits, 0x7440 + u)) - whole;
    const float v = fminf(fmaxf(stored + levels[u], 0.0f), 255.0f);  // NaN becomes 0
    bits[u] = __float_as_uint(truncate ? __fadd_rz(v, whole) : v + whole);
  }
  return __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
#endif
}

// The four pixels of a word as floats, by the same means.
__device__ __forceinline__ void stored4(uint32_t x, float (&v)[4]) {
#pragma unroll
  for (int u = 0; u < 4; ++u) {
#ifdef ULFAST_EMULATE
    v[u] = (float)(x >> 8 * u & 255);
#else
    v[u] = __uint_as_float(__byte_perm(x, whole_bits, 0x7440 + u)) - 8388608.0f;
#endif
  }
}

// Four values in [0, 256), truncated, to a word.
__device__ __forceinline__ uint32_t truncated4(const float (&v)[4]) {
#ifdef ULFAST_EMULATE
  uint32_t out = 0;
  for (int u = 0; u < 4; ++u) out |= (uint32_t)v[u] << 8 * u;
  return out;
#else
  uint32_t bits[4];
#pragma unroll
  for (int u = 0; u < 4; ++u) bits[u] = __float_as_uint(__fadd_rz(v[u], 8388608.0f));
  return __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
#endif
}

}  // namespace cuda
}  // namespace ulfast
