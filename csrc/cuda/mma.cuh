// Products of tiles of half precision and of TF32 on the tensor cores, by a whole warp, from compute capability 8 on.
//
// With g = lane / 4 and t = lane % 4 a thread holds, as pairs (the lower half first):
//   a[0], a[1]: rows g and g + 8, columns 2 t and 2 t + 1; a[2], a[3]: the same rows, columns 2 t + 8 and 2 t + 9
//   b[0], b[1]: column g, rows 2 t and 2 t + 1, and 2 t + 8 and 2 t + 9
//   c[0], c[1]: row g, columns 2 t and 2 t + 1; c[2], c[3]: row g + 8
#pragma once

#include <math.h>

#include <type_traits>

#include "types.cuh"

namespace ulfast {
namespace cuda {

#ifdef ULFAST_EMULATE
template <class H> double half_of(uint32_t pair, int upper) { return widened(H{(uint16_t)(pair >> 16 * upper)}); }
// The tensor cores truncate to float precision.
inline float cut_off(double v) {
  const float nearest = (float)v;
  return fabs((double)nearest) > fabs(v) ? nextafterf(nearest, 0.0f) : nearest;
}
#endif

// c += a b, 16 x 16 times 16 x 8, of f16 or bf16.
template <class H = f16>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ULFAST_EMULATE
  struct Mine {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];
  emulation::exchange(mine, all);
  const int g = emulation::now % 32 / 4, t = emulation::now % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int part = k / 8 * 2 + row / 8;
      sum += half_of<H>(all[row % 8 * 4 + k % 8 / 2].a[part], k % 2) *
             half_of<H>(all[column * 4 + k % 8 / 2].b[k / 8], k % 2);
    }
    c[i] = cut_off(sum);
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // never launched there
#else
  if constexpr (std::is_same<H, f16>::value)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// c += a b, 16 x 8 times 8 x 8, of TF32: floats whose last 13 bits do not count. A thread holds
//   a[0], a[1]: rows g and g + 8, column t; a[2], a[3]: the same rows, column t + 4
//   b0, b1: column g, rows t and t + 4; c: as above
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ULFAST_EMULATE
  struct Mine {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all[32];
  emulation::exchange(mine, all);
  const int g = emulation::now % 32 / 4, t = emulation::now % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 8; ++k)
      sum += (double)f32_of_bits(all[row % 8 * 4 + k % 4].a[k / 4 * 2 + row / 8] & ~0x1FFFu) *
             f32_of_bits(all[column * 4 + k % 4].b[k / 4] & ~0x1FFFu);
    c[i] = cut_off(sum);
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // never launched there
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// A float as the sum of two of TF32: the nearest (as cvt.rna.tf32.f32, which takes twice as many instructions) and the
// rest, of which the product drops one bit at most. The rest of NaN and of infinity is NaN.
__device__ __forceinline__ void in_two_tf32(float v, uint32_t* big, uint32_t* small) {
#ifdef ULFAST_EMULATE
  *big = bits_of_f32(v) + 0x1000u;
#else
  // Volatile, since parts hoisted out of a loop would cost registers.
  asm volatile("add.u32 %0, %1, 0x1000;" : "=r"(*big) : "r"(bits_of_f32(v)));
#endif
  *big &= ~0x1FFFu;
  *small = bits_of_f32(v - f32_of_bits(*big));
}

// Four matrices of 8 x 8 from shared memory; lane l gives the address of row l % 8 of matrix l / 8. A thread gets row
// g, columns 2 t and 2 t + 1 of each; Turned: column g, rows 2 t and 2 t + 1.
template <bool Turned> __device__ __forceinline__ void load_matrices(uint32_t (&v)[4], const uint16_t* row) {
#ifdef ULFAST_EMULATE
  const uint16_t* all[32];
  emulation::exchange(row, all);
  const int g = emulation::now % 32 / 4, t = emulation::now % 4;
  for (int m = 0; m < 4; ++m) {
    const uint16_t low = Turned ? all[m * 8 + 2 * t][g] : all[m * 8 + g][2 * t];
    const uint16_t high = Turned ? all[m * 8 + 2 * t + 1][g] : all[m * 8 + g][2 * t + 1];
    v[m] = low | (uint32_t)high << 16;
  }
#else
  const unsigned at = (unsigned)__cvta_generic_to_shared(row);
  if constexpr (Turned)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
#endif
}

// Bytes 0 and 1 (Upper: 2 and 3) of a word as a pair of halves, exactly: they ride in the mantissa of 1024.
template <bool Upper> __device__ __forceinline__ uint32_t halves(uint32_t word) {
#ifdef ULFAST_EMULATE
  const uint32_t two = word >> (Upper ? 16 : 0);
  return rounded_f16((float)(two & 255)).bits | (uint32_t)rounded_f16((float)(two >> 8 & 255)).bits << 16;
#else
  const uint32_t pair = __byte_perm(word, 0x64646464u, Upper ? 0x4342 : 0x4140);
  uint32_t out;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(pair), "r"(0x64006400u));
  return out;
#endif
}

// A number as the sum of two halves, the first the nearest.
template <class H> __device__ __forceinline__ void in_two(float v, H* high, H* low) {
  narrow(v, high);
  narrow(v - wide(*high), low);
}
__device__ __forceinline__ void in_two(float v, uint16_t* high, uint16_t* low) {
  f16 h, l;
  in_two(v, &h, &l);
  *high = h.bits, *low = l.bits;
}

}  // namespace cuda
}  // namespace ulfast
