// perturb_lsp on CUDA: latent values from Philox normals, blown up to patches, scaled, put onto the stored image.
//
// Bytes: 2 d an image (4 d for the perturbation itself), beside m^2 weights of its class, which stay in L2. Flops:
// 2 m^2 and 50 m for the normals (m = 48 at 32 px). Bound: memory at m = 48, the reading of the weights from L2 at
// large m. The sums go in the CPU's order, so the bytes are the CPU's. A label out of range leaves
// its image as it is; a perturbation becomes NaN.
#include "../random/philox.h"

#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTeams = 4;        // images side by side in a block, a warp each
constexpr int64_t kFew = 128;    // latent values that a warp makes quicker than a block

struct Shape {
  int h, w, c, patch, gw, m;
};

template <int Size> __device__ __forceinline__ void together() {
  if (Size == 32)
    __syncwarp();
  else
    __syncthreads();
}

// A team of Size threads an image: a warp, so that nobody waits at a barrier of the block, or the block. Shared memory
// of a team: the normals, of which the squares take the place, and the latent values.
template <int Size> __global__ void perturb_lsp_kernel(PerturbLsp a, Shape s) {
  const int lane = threadIdx.x % Size, team = threadIdx.x / Size, teams = blockDim.x / Size;
  const int line = s.w * s.c, quads = (s.m + 3) / 4;
  double* squares = dynamic_shared<double>() + team * quads * 6;
  float *z = reinterpret_cast<float*>(squares), *latent = reinterpret_cast<float*>(squares + quads * 4);
  const int64_t d = (int64_t)s.h * line;
  const bool wide = line % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
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

}  // namespace

const char* perturb_lsp(const PerturbLsp& a, void* stream) {
  if (a.n == 0 || a.h * a.w * a.channels == 0) return nullptr;
  const int64_t gw = (a.w + a.patch - 1) / a.patch, m = (a.h + a.patch - 1) / a.patch * gw * a.channels;
  const Shape shape{(int)a.h, (int)a.w, (int)a.channels, (int)a.patch, (int)gw, (int)m};
  const bool few = m <= kFew;
  const int64_t teams = few ? kTeams : 1, need = (a.n + teams - 1) / teams;
  return launch(few ? perturb_lsp_kernel<32> : perturb_lsp_kernel<kThreads>, need < 65535 ? need : (int64_t)65535,
                few ? 32 * kTeams : kThreads, (size_t)((m + 3) / 4 * 6 * teams) * sizeof(double),
                static_cast<cudaStream_t>(stream), a, shape);
}

}  // namespace cuda
}  // namespace ulfast
