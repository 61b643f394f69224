// apply_perturbation on CUDA: clamp(images + 255 * delta[index]) to uint8.
//
// Bytes: n d (1 + 4 + 1), bound by memory; class-wise perturbations come from the caches, which leaves 2 n d, and then
// the eight operations per pixel take as long. Four pixels per access: 4 and 16 bytes. Compiled with --fmad=false, so
// that it rounds as the CPU does.
#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kRows = 4;  // that a thread loads, four pixels each, before it uses the first

// A block takes 4 kThreads neighbours of kRows images; `pieces` such runs make up an image.
template <bool Truncate> __global__ void four(ApplyPerturbation a, uint32_t work, uint32_t pieces) {
  for (uint32_t w = blockIdx.x; w < work; w += gridDim.x) {
    const uint32_t group = w / pieces;
    const int64_t row = (int64_t)group * kRows, at = (int64_t)(w - group * pieces) * kThreads + threadIdx.x;
    if (at >= a.d / 4) continue;
    const int count = (int)(a.n - row < kRows ? a.n - row : kRows);
    int64_t from[kRows];
    uint32_t x[kRows];
    float4 e[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      from[r] = r < count ? a.index ? a.index[row + r] : row + r : -1;
      if (r < count) x[r] = reinterpret_cast<const uint32_t*>(a.images + (row + r) * a.d)[at];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (from[r] >= 0 && from[r] < a.m) e[r] = reinterpret_cast<const float4*>(a.delta + from[r] * a.d)[at];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r < count) {
        if (from[r] >= 0 && from[r] < a.m) {  // otherwise the image stays unchanged
          const float levels[4] = {255.0f * e[r].x, 255.0f * e[r].y, 255.0f * e[r].z, 255.0f * e[r].w};
          x[r] = levels4(x[r], levels, Truncate);
        }
        reinterpret_cast<uint32_t*>(a.out + (row + r) * a.d)[at] = x[r];
      }
  }
}

template <bool Truncate> __global__ void one(ApplyPerturbation a) {
  const int64_t total = a.n * a.d, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const int64_t row = t / a.d, from = a.index ? a.index[row] : row;
    const bool there = from >= 0 && from < a.m;
    a.out[t] = there ? pixel(a.images[t], a.delta[from * a.d + t - row * a.d], Truncate) : a.images[t];
  }
}

}  // namespace

const char* apply_perturbation(const ApplyPerturbation& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool wide = a.d % 4 == 0 && aligned(a.images, 4) && aligned(a.out, 4) && aligned(a.delta, 16);
  const int64_t pieces = (a.d / 4 + kThreads - 1) / kThreads, work = (a.n + kRows - 1) / kRows * pieces, most = 65535;
  if (wide && work < UINT32_MAX - most)
    return launch(a.truncate ? four<true> : four<false>, work < most ? work : most, kThreads, 0, s, a, (uint32_t)work,
                  (uint32_t)pieces);
  return launch(a.truncate ? one<true> : one<false>, blocks(a.n * a.d), kThreads, 0, s, a);
}

}  // namespace cuda
}  // namespace ulfast
