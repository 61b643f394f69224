// perturb_convolution on CUDA: every image convolved with its class's filter (zeros outside), divided by its largest
// value, truncated to bytes.
//
// Bytes: 2 n d, and 8 n d of unscaled results through the scratch, most of it in L2. Flops: 2 n d side^2, which bound
// it from 5 x 5 on. A block an image; a thread makes four rows of one column, so that a pixel that is read serves up to
// four results. A small image lies in shared memory, with its border of zeros, and its results stay in registers. The
// taps are added in reading order and not contracted: the bytes of the CPU. A label out of range leaves its image as it
// is.
#include <math.h>

#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTall = 4;
constexpr int kColumns = 3;            // of a thread: 4 * 3 * 256 values of an image in registers
constexpr int64_t kSmall = 48 << 10;   // bytes of an image with its border

// The largest value of the block's threads, given to all; the values are not negative.
__device__ float largest_of(float v, float* parts) {
  for (int lanes = 16; lanes; lanes /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  for (int i = 0; i < kThreads / 32; ++i) v = fmaxf(v, parts[i]);
  return v;
}

__device__ __forceinline__ uint8_t scaled(float v, float top) {
  v = top > 0 ? v / top * 255.0f : 0.0f;  // black stays black
  return (uint8_t)(int)(v > 0.0f ? v : 0.0f);
}

// Side 0: any.
template <int Side> __global__ void __launch_bounds__(kThreads) small_convolution_kernel(PerturbConvolution a) {
  const int side = Side ? Side : (int)a.side, before = side / 2, h = (int)a.h, c = (int)a.c, line = (int)a.w * c;
  const int pitch = line + (side - 1) * c, groups = (h + kTall - 1) / kTall, d = h * line;
  float* weights = dynamic_shared<float>();  // (side, side), then the warps' largest values, then the image
  float *parts = weights + side * side, *image = parts + kThreads / 32;
  const int tall = groups * kTall + side - 1;  // rows with the border, and those that fill the last group
  for (int i = threadIdx.x; i < tall * pitch; i += kThreads) image[i] = 0;
  for (int64_t n = blockIdx.x; n < a.n; n += gridDim.x) {
    const int64_t label = a.labels[n];
    const uint8_t* x = a.images + n * d;
    uint8_t* out = a.out + n * d;
    if (label < 0 || label >= a.classes) {
      for (int i = threadIdx.x; i < d; i += kThreads) out[i] = x[i];
      continue;
    }
    __syncthreads();  // the last image and its weights have been used
    for (int i = threadIdx.x; i < side * side; i += kThreads) weights[i] = a.kernels[label * side * side + i];
    for (int i = threadIdx.x; i < d; i += kThreads) {
      const int y = i / line;
      image[(y + before) * pitch + before * c + i - y * line] = (float)x[i];
    }
    __syncthreads();
    float acc[kColumns][kTall], top = 0;
#pragma unroll
    for (int g = 0; g < kColumns; ++g) {
      const int t = (int)threadIdx.x + g * kThreads, row = t / line * kTall, at = t - t / line * line;
#pragma unroll
      for (int r = 0; r < kTall; ++r) acc[g][r] = 0;
      if (t >= groups * line) continue;
      const float* from = image + row * pitch + at;
#pragma unroll(Side ? Side + kTall - 1 : 1)
      for (int tap = 0; tap < side + kTall - 1; ++tap)
#pragma unroll(Side ? Side : 1)
        for (int dx = 0; dx < side; ++dx) {
          const float v = from[tap * pitch + dx * c];
#pragma unroll
          for (int r = 0; r < kTall; ++r)
            if (tap >= r && tap < r + side) acc[g][r] += weights[(tap - r) * side + dx] * v;
        }
#pragma unroll
      for (int r = 0; r < kTall; ++r)
        if (row + r < h && acc[g][r] > top) top = acc[g][r];
    }
    top = largest_of(top, parts);
#pragma unroll
    for (int g = 0; g < kColumns; ++g) {
      const int t = (int)threadIdx.x + g * kThreads, row = t / line * kTall, at = t - t / line * line;
      if (t >= groups * line) continue;
#pragma unroll
      for (int r = 0; r < kTall; ++r)
        if (row + r < h) out[(row + r) * line + at] = scaled(acc[g][r], top);
    }
  }
}

__global__ void perturb_convolution_kernel(PerturbConvolution a) {
  float* weights = dynamic_shared<float>();  // (side, side), then the warps' largest values
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
    top = largest_of(top, largest);
    for (int64_t i = threadIdx.x; i < d; i += kThreads) out[i] = scaled(y[i], top);
  }
}

// Bytes of shared memory of a small image; 0 if it is too large.
int64_t small_bytes(const PerturbConvolution& a) {
  const int64_t groups = (a.h + kTall - 1) / kTall, rows = groups * kTall + a.side - 1;
  const int64_t bytes = (a.side * a.side + kThreads / 32 + rows * (a.w + a.side - 1) * a.c) * (int64_t)sizeof(float);
  return groups * a.w * a.c <= kColumns * kThreads && bytes <= kSmall ? bytes : 0;
}

int64_t grid_of(const PerturbConvolution& a) {
  const int64_t most = 8 * (int64_t)attribute(cudaDevAttrMultiProcessorCount);
  return a.n < most ? a.n : most;
}

}  // namespace

// Floats: the unscaled result of an image a block, where it is too large for registers.
int64_t perturb_convolution_scratch(const PerturbConvolution& a) {
  return small_bytes(a) ? 0 : grid_of(a) * a.h * a.w * a.c;
}

const char* perturb_convolution(const PerturbConvolution& a, void* stream) {
  if (a.n == 0 || a.h * a.w * a.c == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  if (const int64_t bytes = small_bytes(a))
    return launch(a.side == 3 ? small_convolution_kernel<3> : small_convolution_kernel<0>, grid_of(a), kThreads,
                  (size_t)bytes, s, a);
  const size_t shared = (size_t)(a.side * a.side + kThreads / 32) * sizeof(float);
  return launch(perturb_convolution_kernel, grid_of(a), kThreads, shared, s, a);
}

}  // namespace cuda
}  // namespace ulfast
