// perturb_convolution on CUDA: every image convolved with its class's filter (zeros outside), divided by its largest
// value, truncated to bytes.
//
// Bytes: 2 n d, and 8 n d of unscaled results through the scratch, most of it in L2. Flops: 2 n d side^2, which bound
// it from 5 x 5 on. A block an image; a thread makes four rows of one column, so that a pixel that is read serves up to
// four results. The taps are added in reading order and not contracted: the bytes of the CPU. A label out of range
// leaves its image as it is. Not yet run on a GPU.
#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTall = 4;

__global__ void perturb_convolution_kernel(PerturbConvolution a) {
  float* weights = dynamic_shared<float>();  // (side, side), then the threads' largest values
  float* largest = weights + a.side * a.side;
  const int64_t line = a.w * a.c, d = a.h * line, before = a.side / 2, groups = (a.h + kTall - 1) / kTall;
  float* y = a.scratch + blockIdx.x * d;
  for (int64_t n = blockIdx.x; n < a.n; n += gridDim.x) {
    const int64_t label = a.labels[n];
    const uint8_t* x = a.images + n * d;
    uint8_t* out = a.out + n * d;
    if (label < 0 || label >= a.classes) {
      for (int64_t i = threadIdx.x; i < d; i += kThreads) out[i] = x[i];
      continue;
    }
    __syncthreads();  // the last image's weights and largest values have been used
    for (int64_t i = threadIdx.x; i < a.side * a.side; i += kThreads)
      weights[i] = a.kernels[label * a.side * a.side + i];
    __syncthreads();
    float top = 0;
    for (int64_t t = threadIdx.x; t < groups * line; t += kThreads) {
      const int64_t row = t / line * kTall, at = t % line, column = at / a.c;
      float acc[kTall] = {};
      for (int64_t tap = 0; tap < a.side + kTall - 1; ++tap) {
        const int64_t from = row + tap - before;
        if (from < 0 || from >= a.h) continue;
        for (int64_t dx = 0; dx < a.side; ++dx) {
          const int64_t sideways = column + dx - before;
          if (sideways < 0 || sideways >= a.w) continue;
          const float v = (float)x[from * line + at + (dx - before) * a.c];
#pragma unroll
          for (int r = 0; r < kTall; ++r)
            if (tap >= r && tap < r + a.side) acc[r] += weights[(tap - r) * a.side + dx] * v;
        }
      }
#pragma unroll
      for (int r = 0; r < kTall; ++r)
        if (row + r < a.h) {
          y[(row + r) * line + at] = acc[r];
          top = acc[r] > top ? acc[r] : top;
        }
    }
    largest[threadIdx.x] = top;
    __syncthreads();
    for (int i = 0; i < kThreads; ++i) top = largest[i] > top ? largest[i] : top;
    for (int64_t i = threadIdx.x; i < d; i += kThreads) {
      const float v = top > 0 ? y[i] / top * 255.0f : 0.0f;  // black stays black
      out[i] = (uint8_t)(int)(v > 0.0f ? v : 0.0f);
    }
  }
}

int64_t grid_of(const PerturbConvolution& a) {
  const int64_t most = 2 * (int64_t)attribute(cudaDevAttrMultiProcessorCount);
  return a.n < most ? a.n : most;
}

}  // namespace

// Floats: the unscaled result of an image a block.
int64_t perturb_convolution_scratch(const PerturbConvolution& a) { return grid_of(a) * a.h * a.w * a.c; }

const char* perturb_convolution(const PerturbConvolution& a, void* stream) {
  if (a.n == 0 || a.h * a.w * a.c == 0) return nullptr;
  const size_t shared = (size_t)(a.side * a.side + kThreads) * sizeof(float);
  return launch(perturb_convolution_kernel, grid_of(a), kThreads, shared, static_cast<cudaStream_t>(stream), a);
}

}  // namespace cuda
}  // namespace ulfast
