// Philox numbers of one item, sixteen counter blocks at a time. Files that include this are compiled without
// contraction.
#pragma once
#include "../random/philox.h"

#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {
namespace {

constexpr int kBlocks = 16;  // Philox blocks at a time: one a lane

// Words of blocks first .. first + 15 of one item, in the order of the blocks.
ULFAST_INLINE void lanes(uint64_t seed, uint32_t stream, uint64_t item, uint32_t first, uint32_t* w) {
  uint32_t c0[kBlocks], c1[kBlocks], c2[kBlocks], c3[kBlocks];
  for (int l = 0; l < kBlocks; ++l)
    c0[l] = (uint32_t)item, c1[l] = (uint32_t)(item >> 32), c2[l] = first + l, c3[l] = stream;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int i = 0; i < 10; ++i) {
    for (int l = 0; l < kBlocks; ++l) {
      const uint64_t p0 = (uint64_t)0xD2511F53u * c0[l], p1 = (uint64_t)0xCD9E8D57u * c2[l];
      c0[l] = (uint32_t)(p1 >> 32) ^ c1[l] ^ k0;
      c1[l] = (uint32_t)p1;
      c2[l] = (uint32_t)(p0 >> 32) ^ c3[l] ^ k1;
      c3[l] = (uint32_t)p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int l = 0; l < kBlocks; ++l) w[4 * l] = c0[l], w[4 * l + 1] = c1[l], w[4 * l + 2] = c2[l], w[4 * l + 3] = c3[l];
}

// d numbers of one item; Normal draws them in pairs of words, so a last odd one uses half of its pair.
template <bool Normal> void numbers(uint64_t seed, uint32_t stream, uint64_t item, int64_t d, float* out) {
  constexpr int n = 4 * kBlocks;
  for (int64_t i = 0; i < d; i += n) {
    uint32_t w[n];
    float z[n];
    lanes(seed, stream, item, (uint32_t)(i / 4), w);
    if (Normal) {
      float even[n / 2], odd[n / 2];
      uint32_t w0[n / 2], w1[n / 2];
      for (int l = 0; l < n / 2; ++l) w0[l] = w[2 * l], w1[l] = w[2 * l + 1];
      for (int l = 0; l < n / 2; ++l) philox::normal2(w0[l], w1[l], even + l, odd + l);
      for (int l = 0; l < n / 2; ++l) z[2 * l] = even[l], z[2 * l + 1] = odd[l];
    } else {
      for (int l = 0; l < n; ++l) z[l] = philox::uniform(w[l]);
    }
    const int64_t m = d - i < n ? d - i : n;
    if (m == n)
      __builtin_memcpy(out + i, z, sizeof z);
    else
      __builtin_memcpy(out + i, z, m * sizeof(float));
  }
}

}  // namespace
}  // namespace ULFAST_LEVEL
}  // namespace ulfast
