// Philox numbers of one item, sixteen counter blocks at a time. Files that include this are compiled without
// contraction.
#pragma once
#include "../random/philox.h"

#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {
namespace {

constexpr int kBlocks = 16;  // Philox blocks at a time, one per lane

// Words of blocks first .. first + 15 of one item: word j of block l at w[j][l].
ULFAST_INLINE void lanes(uint64_t seed, uint32_t stream, uint64_t item, uint32_t first, uint32_t w[4][kBlocks]) {
  constexpr int n = Vec<float>::size;
  const vecu zero = {};
  vecu count;
  for (int l = 0; l < n; ++l) count[l] = (uint32_t)l;
  for (int part = 0; part < kBlocks; part += n) {
    vecu c0 = zero + (uint32_t)item, c1 = zero + (uint32_t)(item >> 32), c2 = count + (first + (uint32_t)part);
    vecu c3 = zero + stream;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; ++i) {
      vecu low0, high0, low1, high1;
      multiply_wide(c0, 0xD2511F53u, &low0, &high0);
      multiply_wide(c2, 0xCD9E8D57u, &low1, &high1);
      c0 = high1 ^ c1 ^ k0, c1 = low1;
      c2 = high0 ^ c3 ^ k1, c3 = low0;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const vecu all[4] = {c0, c1, c2, c3};
    for (int j = 0; j < 4; ++j) __builtin_memcpy(w[j] + part, &all[j], sizeof(vecu));
  }
}

// d numbers of one item; Normal draws them in pairs of words, so a last odd one uses half of its pair.
template <bool Normal> void numbers(uint64_t seed, uint32_t stream, uint64_t item, int64_t d, float* out) {
  constexpr int n = 4 * kBlocks;
  for (int64_t i = 0; i < d; i += n) {
    uint32_t w[4][kBlocks];
    float v[4][kBlocks], z[n];
    lanes(seed, stream, item, (uint32_t)(i / 4), w);
    if (Normal) {
      for (int l = 0; l < kBlocks; ++l) philox::normal2(w[0][l], w[1][l], v[0] + l, v[1] + l);
      for (int l = 0; l < kBlocks; ++l) philox::normal2(w[2][l], w[3][l], v[2] + l, v[3] + l);
    } else {
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < kBlocks; ++l) v[j][l] = philox::uniform(w[j][l]);
    }
    for (int l = 0; l < kBlocks; ++l)
      for (int j = 0; j < 4; ++j) z[4 * l + j] = v[j][l];
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
