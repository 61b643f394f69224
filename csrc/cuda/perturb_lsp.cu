// perturb_lsp on CUDA: latent values from Philox normals, enlarged to patches, scaled, and added to the stored image.
//
// Bytes: 2 d an image (4 d for the perturbation itself), beside m^2 weights of its class, which stay in L2. Flops:
// 2 m^2 and 50 m for the normals (m = 48 at 32 px), and seven operations a pixel. Bound: at m = 48 the instructions, a
// third of them for the pixels, and the single chain of additions of the norm, in the CPU's order; at large m the reads
// of the weights from L2. All sums are taken in the CPU's order, so the bytes are the CPU's. A label out of range
// leaves its image unchanged; a perturbation becomes NaN.
#include "../random/philox.h"

#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTeams = 4;      // images side by side in a block, a warp each
constexpr int64_t kFew = 128;  // up to this many latent values, a warp is faster than a block
constexpr int kPairs = 64;     // latent values of a small image: two neighbours a lane
constexpr int kRows = 32;      // and its rows

struct Shape {
  int h, w, c, patch, gw, m;
};

template <int Size> __device__ __forceinline__ void together() {
  if (Size == 32)
    __syncwarp();
  else
    __syncthreads();
}

// A team of Size threads per image: a warp, which needs no block barrier, or the block. Shared memory of a team: the
// normals, of which the squares take the place, and the latent values.
template <int Size> __global__ void perturb_lsp_kernel(PerturbLsp a, Shape s) {
  const int lane = threadIdx.x % Size, team = threadIdx.x / Size, teams = blockDim.x / Size;
  const int line = s.w * s.c, quads = (s.m + 3) / 4;
  double* squares = dynamic_shared<double>() + team * quads * 6;
  float *z = reinterpret_cast<float*>(squares), *latent = reinterpret_cast<float*>(squares + quads * 4);
  const int64_t d = (int64_t)s.h * line;
  const bool wide =
      line % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  for (int64_t n = (int64_t)blockIdx.x * teams + team; n < a.n; n += (int64_t)gridDim.x * teams) {
    const int64_t label = a.labels[n];
    const bool there = label >= 0 && label < a.classes;
    for (int b = lane; there && b < quads; b += Size) {
      uint32_t w[4];
      philox::words((uint64_t)a.seed, philox::kStreamLsp, (uint64_t)(a.first + n), (uint32_t)b, w);
      philox::normal2(w[0], w[1], z + 4 * b, z + 4 * b + 1);
      philox::normal2(w[2], w[3], z + 4 * b + 2, z + 4 * b + 3);
    }
    together<Size>();
    for (int j = lane; there && j < s.m; j += Size) {
      const float* mixing = a.mixing + label * s.m * s.m + j;
      float sum = 0;
#pragma unroll 8
      for (int t = 0; t < s.m; ++t) sum += z[t] * mixing[(int64_t)t * s.m];
      latent[j] = sum + a.centroids[label * s.m + j];
    }
    together<Size>();
    for (int j = lane; there && j < s.m; j += Size) {  // every latent value counts once for each pixel that it covers
      const int cell = j / s.c, y = cell / s.gw * s.patch, x = cell % s.gw * s.patch;
      const int tall = s.h - y < s.patch ? s.h - y : s.patch, across = s.w - x < s.patch ? s.w - x : s.patch;
      squares[j] = (double)latent[j] * latent[j] * (double)(tall * across);
    }
    together<Size>();
    double square = 0;
    for (int j = 0; there && j < s.m; ++j) square += squares[j];  // in the CPU's order, by every lane
    const double length = sqrt(square);
    const float scale = (float)(a.norm / (length > 1e-12 ? length : 1e-12));
    together<Size>();
    for (int j = lane; there && j < s.m; j += Size) {
      const float v = latent[j] * scale;
      latent[j] = a.images ? 255.0f * v : v;  // in levels, for pixels
    }
    together<Size>();
    // A lane keeps the same values of an image row, and their latent values for the rows of a patch.
    const int step = wide ? 4 : 1;
    for (int at = lane * step; at < line; at += Size * step)
      for (int top = 0; top < s.h; top += s.patch) {
        const float* row = latent + top / s.patch * s.gw * s.c;
        float v[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const int i = at + u, x = i / s.c;
          v[u] = u < step ? (there ? row[x / s.patch * s.c + i - x * s.c] : NAN) : 0.0f;
        }
        const int stop = s.h - top < s.patch ? s.h : top + s.patch;
#pragma unroll 4
        for (int y = top; y < stop; ++y) {
          const int64_t to = n * d + (int64_t)y * line + at;
          if (!a.images) {
            float* out = static_cast<float*>(a.out) + to;
            if (wide)
              stream_out(out, Four<float>{{v[0], v[1], v[2], v[3]}});
            else
              *out = v[0];
          } else if (wide) {
            const uint32_t x = *reinterpret_cast<const uint32_t*>(a.images + to);
            *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(a.out) + to) = there ? levels4(x, v, a.truncate) : x;
          } else {
            static_cast<uint8_t*>(a.out)[to] = there ? level(a.images[to], v[0], a.truncate) : a.images[to];
          }
        }
      }
    together<Size>();  // the latent values have been used
  }
}

// Adds a small image to the stored pixels: one warp per image, whose pixels arrive while the latent values are made.
template <bool Truncate> __global__ void __launch_bounds__(32 * kTeams, 8) small_lsp_kernel(PerturbLsp a, Shape s) {
  const int lane = threadIdx.x % 32, team = threadIdx.x / 32, line = s.w * s.c, quads = line / 4, words = s.h * quads;
  const int across = quads < 32 ? quads : 32;  // lanes that write
  double* squares = dynamic_shared<double>() + team * (kPairs + kPairs + words / 2);
  float *z = reinterpret_cast<float*>(squares + kPairs), *latent = z + kPairs;
  uint32_t* stored = reinterpret_cast<uint32_t*>(latent + kPairs);
  const bool pair = 2 * lane < s.m;
  double covered[2] = {};
  int from[4] = {};  // the latent value of each of the lane's four pixels, in the first row of patches
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const int cell = (2 * lane + u) / s.c, y = cell / s.gw * s.patch, x = cell % s.gw * s.patch;
    covered[u] = (double)((s.h - y < s.patch ? s.h - y : s.patch) * (s.w - x < s.patch ? s.w - x : s.patch));
  }
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    const int i = 4 * lane + u, x = i / s.c;
    if (lane < across) from[u] = x / s.patch * s.c + i - x * s.c;
  }
  for (int64_t n = (int64_t)blockIdx.x * kTeams + team; n < a.n; n += (int64_t)gridDim.x * kTeams) {
    const int64_t label = a.labels[n];
    for (int i = lane; i < words / 4; i += 32) fetch<16>(stored + 4 * i, a.images + n * words * 4 + 16 * i, true);
    const bool there = label >= 0 && label < a.classes;
    {  // two lanes make a block's words, and a pair of normals each
      uint32_t w[4];
      philox::words((uint64_t)a.seed, philox::kStreamLsp, (uint64_t)(a.first + n), (uint32_t)(lane / 2), w);
      philox::normal2(lane % 2 ? w[2] : w[0], lane % 2 ? w[3] : w[1], z + 2 * lane, z + 2 * lane + 1);
    }
    __syncwarp();
    float v0 = 0, v1 = 0;
    if (there && pair) {
      const float2* mixing = reinterpret_cast<const float2*>(a.mixing + label * s.m * s.m) + lane;
      const float2 centroid = reinterpret_cast<const float2*>(a.centroids + label * s.m)[lane];
#pragma unroll 4
      for (int t = 0; t < s.m; t += 4) {
        const float4 f = *reinterpret_cast<const float4*>(z + t);
        const float normal[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const float2 weight = mixing[(t + u) * (s.m / 2)];
          v0 += normal[u] * weight.x, v1 += normal[u] * weight.y;
        }
      }
      v0 += centroid.x, v1 += centroid.y;
      squares[2 * lane] = (double)v0 * v0 * covered[0], squares[2 * lane + 1] = (double)v1 * v1 * covered[1];
    }
    __syncwarp();
    if (there) {
      double square = 0;
#pragma unroll 4
      for (int j = 0; j < s.m; j += 4) {  // in the CPU's order, by every lane
        double part[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) part[u] = squares[j + u];
#pragma unroll
        for (int u = 0; u < 4; ++u) square += part[u];
      }
      const double length = sqrt(square);
      const float scale = (float)(a.norm / (length > 1e-12 ? length : 1e-12));
      if (pair) latent[2 * lane] = 255.0f * (v0 * scale), latent[2 * lane + 1] = 255.0f * (v1 * scale);
    }
    arrived();
    __syncwarp();
    uint32_t* out = static_cast<uint32_t*>(a.out) + n * words;
    if (!there) {
      for (int i = lane; i < words; i += 32) out[i] = stored[i];
    } else if (lane < across) {
      const float* row = latent;
      const uint32_t* in = stored + lane;
      uint32_t* to = out + lane;
      for (int top = 0; top < s.h; top += s.patch, row += s.gw * s.c) {
        float v[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) v[u] = row[from[u]];
        const int stop = s.h - top < s.patch ? s.h : top + s.patch;
#pragma unroll 8
        for (int y = top; y < stop; ++y, in += quads, to += quads) *to = levels4(*in, v, Truncate);
      }
    }
    __syncwarp();  // the latent values and the pixels have been used
  }
}

}  // namespace

const char* perturb_lsp(const PerturbLsp& a, void* stream) {
  if (a.n == 0 || a.h * a.w * a.channels == 0) return nullptr;
  const int64_t gw = (a.w + a.patch - 1) / a.patch, m = (a.h + a.patch - 1) / a.patch * gw * a.channels;
  const Shape shape{(int)a.h, (int)a.w, (int)a.channels, (int)a.patch, (int)gw, (int)m};
  const int64_t line = a.w * a.channels;
  if (a.images && m <= kPairs && m % 4 == 0 && a.h <= kRows && line <= 128 && line % 4 == 0 && a.h * line % 16 == 0 &&
      aligned(a.images, 16) && aligned(a.out, 4) && aligned(a.mixing, 8) && aligned(a.centroids, 8)) {
    const int64_t need = (a.n + kTeams - 1) / kTeams, bytes = (2 * kPairs + a.h * line / 8) * (int64_t)sizeof(double);
    return launch(a.truncate ? small_lsp_kernel<true> : small_lsp_kernel<false>, need < 65535 ? need : (int64_t)65535,
                  32 * kTeams, (size_t)(bytes * kTeams), static_cast<cudaStream_t>(stream), a, shape);
  }
  const bool few = m <= kFew;
  const int64_t teams = few ? kTeams : 1, need = (a.n + teams - 1) / teams;
  return launch(few ? perturb_lsp_kernel<32> : perturb_lsp_kernel<kThreads>, need < 65535 ? need : (int64_t)65535,
                few ? 32 * kTeams : kThreads, (size_t)((m + 3) / 4 * 6 * teams) * sizeof(double),
                static_cast<cudaStream_t>(stream), a, shape);
}

}  // namespace cuda
}  // namespace ulfast
