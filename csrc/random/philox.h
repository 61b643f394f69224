// Philox 4x32-10 (Salmon et al., SC 2011) and normals made from it, shared by host and device.
//
// Bit-identical to ulfast/ops/philox.py. The transcendental functions are polynomials in separately rounded operations:
// compile without contraction to fused multiply-add (-ffp-contract=off, --fmad=false), or the promise of equal bytes on
// every device is broken.
#pragma once

#include "../floats.h"

namespace ulfast {
namespace philox {

// One stream per use (listed in ulfast/ops/philox.py).
constexpr uint32_t kStreamLsp = 1;
constexpr uint32_t kStreamAr = 3;

// Four words of block `block` of item `item`.
ULFAST_HD void words(uint64_t seed, uint32_t stream, uint64_t item, uint32_t block, uint32_t out[4]) {
  uint32_t c0 = (uint32_t)item, c1 = (uint32_t)(item >> 32), c2 = block, c3 = stream;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

ULFAST_HD float uniform(uint32_t w) { return (float)(int32_t)(w >> 8) * 0x1p-24f; }

// Natural logarithm of u in (0, 1] (the minimax polynomial of Cephes' logf).
ULFAST_HD float log01(float u) {
  const int32_t shifted = (int32_t)bits_of_f32(u) - 0x3F3504F3;
  const float e = (float)(shifted >> 23);
  const float f = f32_of_bits((uint32_t)(shifted & 0x7FFFFF) + 0x3F3504F3u) - 1.0f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float y = f * z * p + e * -2.12194440e-4f - 0.5f * z;
  return f + y + e * 0.693359375f;
}

// Two words to two standard normals (Box-Muller): sqrt(-2 log u) * (cos, sin)(2 pi v).
ULFAST_HD void normal2(uint32_t w0, uint32_t w1, float* z0, float* z1) {
  const float u = ((float)(int32_t)(w0 >> 1) + 0.5f) * 0x1p-31f;
#ifdef __CUDA_ARCH__
  const float radius = __fsqrt_rn(-2.0f * log01(u));
#else
  const float radius = __builtin_sqrtf(-2.0f * log01(u));
#endif
  const uint32_t quadrant = (w1 + 0x20000000u) >> 30;
  const float a = (float)(int32_t)(w1 - (quadrant << 30)) * 1.4629180792671596e-09f;  // pi / 2**31
  const float z = a * a;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z + -1.6666654611e-1f) * z * a + a;
  const float c =
      ((2.443315711809948e-5f * z + -1.388731625493765e-3f) * z + 4.166664568298827e-2f) * (z * z) - 0.5f * z + 1.0f;
  const float cosine = (quadrant & 1) ? s : c, sine = (quadrant & 1) ? c : s;
  *z0 = radius * ((quadrant == 1 || quadrant == 2) ? -cosine : cosine);
  *z1 = radius * (quadrant >= 2 ? -sine : sine);
}

}  // namespace philox
}  // namespace ulfast
