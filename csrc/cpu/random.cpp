// Philox numbers, and the LSP perturbations made from them. Compiled without contraction: equal bytes at every level.
//
// philox_normal: about 60 integer and 45 float operations a pair; bound by arithmetic, not by the 4 bytes written.
// perturb_lsp: m^2 multiply-adds and m normals an image (m = 48 for CIFAR), then 2 d bytes read and written where the
// perturbation goes straight onto the stored image, 4 d where it is asked for itself.
#include "../random/philox.h"

#include "pixels.h"
#include "table.h"

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

void philox_uniform(const Philox& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) numbers<false>(a.seed, (uint32_t)a.stream, a.first + i, a.d, a.out + i * a.d);
}

void philox_normal(const Philox& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) numbers<true>(a.seed, (uint32_t)a.stream, a.first + i, a.d, a.out + i * a.d);
}

void lsp(const Lsp& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t gw = (a.w + a.patch - 1) / a.patch, gh = (a.h + a.patch - 1) / a.patch, m = gh * gw * a.channels;
  float* z = scratch;
  float* latent = scratch + m;
  float* row = latent + m;
  for (int64_t i = begin; i < end; ++i) {
    numbers<true>(a.seed, philox::kStreamLsp, a.first + i, m, z);
    const float* mixing = a.mixing + a.labels[i] * m * m;
    const float* centroid = a.centroids + a.labels[i] * m;
    for (int64_t j = 0; j < m; ++j) latent[j] = 0;
    for (int64_t t = 0; t < m; ++t) {
      const float zt = z[t];
      const float* __restrict__ factor = mixing + t * m;
      float* __restrict__ sum = latent;
      for (int64_t j = 0; j < m; ++j) sum[j] += zt * factor[j];
    }
    double square = 0;  // of the image: every latent value counts once for each pixel it covers
    for (int64_t y = 0; y < gh; ++y) {
      const int64_t tall = a.h - y * a.patch < a.patch ? a.h - y * a.patch : a.patch;
      for (int64_t x = 0; x < gw; ++x) {
        const int64_t wide = a.w - x * a.patch < a.patch ? a.w - x * a.patch : a.patch;
        for (int64_t c = 0; c < a.channels; ++c) {
          const int64_t j = (y * gw + x) * a.channels + c;
          latent[j] += centroid[j];
          square += (double)latent[j] * latent[j] * (double)(tall * wide);
        }
      }
    }
    const double length = __builtin_sqrt(square);
    const float scale = (float)(a.norm / (length > 1e-12 ? length : 1e-12));
    for (int64_t j = 0; j < m; ++j) latent[j] *= scale;
    const int64_t line = a.w * a.channels;
    for (int64_t y = 0; y < a.h; ++y) {
      if (y % a.patch == 0) {
        const float* from = latent + y / a.patch * gw * a.channels;
        for (int64_t x = 0; x < a.w; x += a.patch, from += a.channels) {
          const int64_t stop = (x + a.patch < a.w ? x + a.patch : a.w) * a.channels;
          for (int64_t t = x * a.channels; t < stop; t += a.channels)
            for (int64_t c = 0; c < a.channels; ++c) row[t + c] = from[c];
        }
      }
      const int64_t at = (i * a.h + y) * line;
      if (!a.images)
        __builtin_memcpy(static_cast<float*>(a.out) + at, row, line * sizeof(float));
      else if (a.truncate)
        pixel_row<true>(a.images + at, row, static_cast<uint8_t*>(a.out) + at, line);
      else
        pixel_row<false>(a.images + at, row, static_cast<uint8_t*>(a.out) + at, line);
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
