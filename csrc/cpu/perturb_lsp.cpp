// flags: -ffp-contract=off
//
// perturb_lsp: latent values from Philox normals, mixed by class, enlarged to patches and scaled.
//
// Flops: m^2 multiply-adds and m normals per image (m = 48 for CIFAR). Bytes: 2 d read and written if the perturbation
// is added directly to the stored image, 4 d if it is itself the result. Compiled without contraction: equal bytes at
// every level.
#include "normals.h"
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

// sum[j] = z[0] factor[0, j] + z[1] factor[1, j] + ..., added in that order, for U vectors from j on.
template <int U> ULFAST_INLINE void mix(const float* z, const float* factor, int64_t m, int64_t j, float* sum) {
  constexpr int n = Vec<float>::size;
  vecf acc[U] = {};
  for (int64_t t = 0; t < m; ++t)
    for (int u = 0; u < U; ++u) acc[u] += splat<float>(z[t]) * load(factor + t * m + j + u * n);
  for (int u = 0; u < U; ++u) store(sum + j + u * n, acc[u]);
}

void mix_all(const float* z, const float* factor, int64_t m, float* sum) {
  constexpr int n = Vec<float>::size;
  int64_t j = 0;
  if constexpr (kRegisters == 16)  // twice as many narrow vectors, to hide the latency of the additions
    for (; j + 6 * n <= m; j += 6 * n) mix<6>(z, factor, m, j, sum);
  for (; j + 3 * n <= m; j += 3 * n) mix<3>(z, factor, m, j, sum);
  for (; j + n <= m; j += n) mix<1>(z, factor, m, j, sum);
  for (; j < m; ++j) {
    float s = 0;
    for (int64_t t = 0; t < m; ++t) s += z[t] * factor[t * m + j];
    sum[j] = s;
  }
}

// A row of latent pixels, each repeated `patch` times, to w pixels.
ULFAST_INLINE void enlarge(const float* from, int64_t w, int64_t patch, int64_t c, float* row) {
  for (int64_t x = 0; x < w; x += patch, from += c) {
    const int64_t stop = x + patch < w ? x + patch : w;
    if (c == 3) {  // as four values, of which the next pixel overwrites one
      const float pixel[4] = {from[0], from[1], from[2], 0};
      for (int64_t p = x; p + 1 < stop; ++p) __builtin_memcpy(row + 3 * p, pixel, sizeof pixel);
      __builtin_memcpy(row + 3 * (stop - 1), pixel, 3 * sizeof(float));
    } else {
      for (int64_t p = x; p < stop; ++p)
        for (int64_t j = 0; j < c; ++j) row[p * c + j] = from[j];
    }
  }
}

}  // namespace

void perturb_lsp(const PerturbLsp& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t gw = (a.w + a.patch - 1) / a.patch, gh = (a.h + a.patch - 1) / a.patch, m = gh * gw * a.channels;
  float* z = scratch;
  float* latent = scratch + m;
  float* row = latent + m;
  for (int64_t i = begin; i < end; ++i) {
    numbers<true>(a.seed, philox::kStreamLsp, a.first + i, m, z);
    const float* mixing = a.mixing + a.labels[i] * m * m;
    const float* centroid = a.centroids + a.labels[i] * m;
    mix_all(z, mixing, m, latent);
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
    for (int64_t j = 0; a.images && j < m; ++j) latent[j] *= 255.0f;  // in levels, here instead of for every pixel
    const int64_t line = a.w * a.channels, size = a.n * a.h * line;
    for (int64_t y = 0; y < a.h; ++y) {
      if (y % a.patch == 0) enlarge(latent + y / a.patch * gw * a.channels, a.w, a.patch, a.channels, row);
      const int64_t at = (i * a.h + y) * line;
      if (!a.images)
        __builtin_memcpy(static_cast<float*>(a.out) + at, row, line * sizeof(float));
      else if (a.truncate)
        pixel_row<true, true>(a.images + at, row, static_cast<uint8_t*>(a.out) + at, line, size);
      else
        pixel_row<false, true>(a.images + at, row, static_cast<uint8_t*>(a.out) + at, line, size);
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
