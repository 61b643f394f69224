// perturb_lsp on CUDA: latent values from Philox normals, blown up to patches, scaled, put onto the stored image.
//
// Bytes: 2 d an image (4 d for the perturbation itself), beside m^2 weights of its class, which stay in L2. Flops:
// 2 m^2 and 50 m for the normals (m = 48 at 32 px). Bound: memory at m = 48, the reading of the weights from L2 at
// large m. A block an image. The sums go in the CPU's order, so the bytes are the CPU's. A label out of range leaves
// its image as it is; a perturbation becomes NaN. Not yet run on a GPU.
#include "../random/philox.h"

#include "pixels.cuh"

namespace ulfast {
namespace cuda {

namespace {

__global__ void perturb_lsp_kernel(PerturbLsp a) {
  const int64_t gw = (a.w + a.patch - 1) / a.patch, gh = (a.h + a.patch - 1) / a.patch, m = gh * gw * a.channels;
  float *z = dynamic_shared<float>(), *latent = z + (m + 3) / 4 * 4, *scale = latent + m;
  const int64_t line = a.w * a.channels, d = a.h * line;
  for (int64_t n = blockIdx.x; n < a.n; n += gridDim.x) {
    const int64_t label = a.labels[n];
    const bool there = label >= 0 && label < a.classes;
    __syncthreads();  // the last image's values have been used
    for (int64_t b = threadIdx.x; there && b < (m + 3) / 4; b += kThreads) {
      uint32_t w[4];
      philox::words((uint64_t)a.seed, philox::kStreamLsp, (uint64_t)(a.first + n), (uint32_t)b, w);
      philox::normal2(w[0], w[1], z + 4 * b, z + 4 * b + 1);
      philox::normal2(w[2], w[3], z + 4 * b + 2, z + 4 * b + 3);
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; there && j < m; j += kThreads) {
      const float* mixing = a.mixing + label * m * m + j;
      float s = 0;
      for (int64_t t = 0; t < m; ++t) s += z[t] * mixing[t * m];
      latent[j] = s + a.centroids[label * m + j];
    }
    __syncthreads();
    if (there && threadIdx.x == 0) {
      double square = 0;  // of the image: every latent value counts once for each pixel it covers
      for (int64_t j = 0; j < m; ++j) {
        const int64_t y = j / a.channels / gw * a.patch, x = j / a.channels % gw * a.patch;
        const int64_t tall = a.h - y < a.patch ? a.h - y : a.patch, wide = a.w - x < a.patch ? a.w - x : a.patch;
        square += (double)latent[j] * latent[j] * (double)(tall * wide);
      }
      const double length = sqrt(square);
      *scale = (float)(a.norm / (length > 1e-12 ? length : 1e-12));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < d; i += kThreads) {
      const int64_t y = i / line, at = i - y * line, x = at / a.channels;
      const int64_t j = (y / a.patch * gw + x / a.patch) * a.channels + at - x * a.channels;
      const float v = there ? latent[j] * *scale : NAN;
      if (!a.images)
        static_cast<float*>(a.out)[n * d + i] = v;
      else
        static_cast<uint8_t*>(a.out)[n * d + i] =
            there ? pixel(a.images[n * d + i], v, a.truncate) : a.images[n * d + i];
    }
  }
}

}  // namespace

const char* perturb_lsp(const PerturbLsp& a, void* stream) {
  if (a.n == 0) return nullptr;
  const int64_t m = ((a.h + a.patch - 1) / a.patch) * ((a.w + a.patch - 1) / a.patch) * a.channels;
  const size_t shared = (size_t)(2 * m + 8) * sizeof(float);
  return launch(perturb_lsp_kernel, a.n < 65535 ? a.n : (int64_t)65535, kThreads, shared,
                static_cast<cudaStream_t>(stream), a);
}

}  // namespace cuda
}  // namespace ulfast
