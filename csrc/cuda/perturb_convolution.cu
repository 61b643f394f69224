// perturb_convolution on CUDA: every image convolved with its class's filter (zeros outside), divided by its largest
// value, truncated to bytes.
//
// Bytes: 2 n d, and 8 n d of unscaled results through the scratch if an image is too large for registers, mostly in L2.
// Flops: 2 n d side^2 in separate multiplications and additions, and ten more operations a value for the quotient and
// the bytes: the arithmetic bounds it, even at 3 x 3. One block per image. A small image is kept in shared memory, with
// its border of zeros, and its results in registers: at 3 x 3 a thread has four rows of four neighbours, otherwise four
// rows of one column. The taps are added in reading order and not contracted, so the bytes are the CPU's. A label out
// of range leaves its image unchanged.
#include <math.h>

#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTall = 4;
constexpr int kColumns = 3;           // of a thread: 4 * 3 * 256 values of an image in registers
constexpr int64_t kSmall = 48 << 10;  // bytes of an image with its border
constexpr int kPad = 4;               // zeros before and after a row of a tiled image: one access
constexpr int kTiledRegisters = 64;   // a thread

// The largest value of the block's threads, returned to all; the values are not negative.
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

// v / top in the rounding of IEEE 754, given 1 / top: a quotient within an ulp becomes the nearest by one remainder
// (Markstein), and one more brings it that near. Neither may leave the range of the normal numbers.
__device__ __forceinline__ float quotient(float v, float top, float inverse) {
  float q = v * inverse;
  q = fmaf(fmaf(-q, top, v), inverse, q);
  return fmaf(fmaf(-q, top, v), inverse, q);
}

// 3 x 3 and C channels, rows of whole words. A thread makes four rows of four neighbours, from six rows of three
// accesses of 16 bytes; the same four words are those that it brings to shared memory, an image ahead. Whole: no thread
// has less.
template <int C, bool Whole> __global__ void __launch_bounds__(kThreads, 65536 / kTiledRegisters / kThreads)
    tiled_convolution_kernel(PerturbConvolution a) {
  const int line = (int)(a.w * C), quads = line / 4, h = (int)a.h, d = h * line, pitch = line + kPad;
  const int groups = (h + kTall - 1) / kTall, t = (int)threadIdx.x;
  float *parts = dynamic_shared<float>(), *image = parts + kThreads / 32;  // the warps' largest values
  const int row = t / quads * kTall, at = row * line + t % quads * 4;
  const int mine = row < h ? (h - row < kTall ? h - row : kTall) : 0;             // rows
  float4* tile = reinterpret_cast<float4*>(image + row * pitch + t % quads * 4);  // from the tap at the upper left
  for (int i = t; i < (groups * kTall + 2) * pitch + kPad; i += (int)blockDim.x) image[i] = 0;
  if (t < kThreads / 32) parts[t] = 0;  // a block may have fewer warps
  uint32_t x[kTall] = {};
  int64_t n = blockIdx.x, label = a.labels[n];
#pragma unroll
  for (int r = 0; r < kTall; ++r)
    if (r < mine) x[r] = *reinterpret_cast<const uint32_t*>(a.images + n * d + at + r * line);
  __syncthreads();  // the border is there
  for (; n < a.n; n += gridDim.x) {
    uint8_t* out = a.out + n * d + at;
    const bool there = label >= 0 && label < a.classes;  // the same for the whole block
    float weights[9];
    if (there) {
#pragma unroll
      for (int i = 0; i < 9; ++i) weights[i] = a.kernels[label * 9 + i];
    }
#pragma unroll
    for (int r = 0; r < kTall; ++r)
      if (r < mine) {
        float v[4];
        stored4(x[r], v);
        tile[((r + 1) * pitch + kPad) / 4] = float4{v[0], v[1], v[2], v[3]};
        if (!there) *reinterpret_cast<uint32_t*>(out + r * line) = x[r];
      }
    const int64_t next = n + gridDim.x;
    if (next < a.n) {
      label = a.labels[next];
#pragma unroll
      for (int r = 0; r < kTall; ++r)
        if (r < mine) x[r] = *reinterpret_cast<const uint32_t*>(a.images + next * d + at + r * line);
    }
    __syncthreads();  // the image is there
    if (!there) {
      __syncthreads();  // and may be overwritten
      continue;
    }
    float acc[kTall][4] = {}, top = 0;
    if (mine) {
#pragma unroll
      for (int tap = 0; tap < kTall + 2; ++tap) {
        const float4 *from = tile + tap * (pitch / 4), f0 = from[0], f1 = from[1], f2 = from[2];
        const float v[12] = {f0.x, f0.y, f0.z, f0.w, f1.x, f1.y, f1.z, f1.w, f2.x, f2.y, f2.z, f2.w};
#pragma unroll
        for (int r = 0; r < kTall; ++r)
          if (tap >= r && tap < r + 3) {
#pragma unroll
            for (int dx = 0; dx < 3; ++dx)
#pragma unroll
              for (int u = 0; u < 4; ++u) {
                const float product = weights[(tap - r) * 3 + dx] * v[kPad + u + (dx - 1) * C];
                acc[r][u] = tap == r && dx == 0 ? product : acc[r][u] + product;
              }
          }
      }
#pragma unroll
      for (int r = 0; r < kTall; ++r)
#pragma unroll
        for (int u = 0; u < 4; ++u)
          if (r < mine) top = fmaxf(top, acc[r][u]);
    }
    for (int lanes = 16; lanes; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
    if (t % 32 == 0) parts[t / 32] = top;
    __syncthreads();  // and the image may be overwritten
#pragma unroll
    for (int i = 0; i < kThreads / 32; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(parts + i);
      top = fmaxf(fmaxf(top, fmaxf(four.x, four.y)), fmaxf(four.z, four.w));
    }
    if (top > 1e-18f && top < 1e18f) {
      const float inverse = 1.0f / top;
#pragma unroll
      for (int r = 0; r < kTall; ++r) {
        float v[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) v[u] = quotient(fmaxf(acc[r][u], 0.0f), top, inverse) * 255.0f;
        const uint32_t word = truncated4(v);
        if (r < mine) *reinterpret_cast<uint32_t*>(out + r * line) = word;
      }
    } else {
#pragma unroll
      for (int r = 0; r < kTall; ++r)
#pragma unroll
        for (int u = 0; u < 4; ++u)
          if (r < mine) out[r * line + u] = scaled(acc[r][u], top);
    }
  }
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

// Whether tiles of four rows and four neighbours, one a thread, make up an image.
bool tiled(const PerturbConvolution& a) {
  const int64_t groups = (a.h + kTall - 1) / kTall;
  return a.side == 3 && (a.c == 1 || a.c == 3) && a.w * a.c % 4 == 0 && groups * (a.w * a.c / 4) <= kThreads &&
         aligned(a.images, 4) && aligned(a.out, 4);
}

const char* run_tiled(const PerturbConvolution& a, cudaStream_t stream) {
  const int64_t groups = (a.h + kTall - 1) / kTall, line = a.w * a.c, threads = (groups * (line / 4) + 31) / 32 * 32;
  const int64_t bytes = (kThreads / 32 + (groups * kTall + 2) * (line + kPad) + kPad) * (int64_t)sizeof(float);
  const int64_t held = 65536 / kTiledRegisters / threads, most = held < 16 ? held : 16;  // a multiprocessor
  const int64_t grid = most * attribute(cudaDevAttrMultiProcessorCount);
  const bool whole = a.h % kTall == 0 && groups * (line / 4) == threads;
  const auto kernel = a.c == 1 ? (whole ? tiled_convolution_kernel<1, true> : tiled_convolution_kernel<1, false>)
                               : (whole ? tiled_convolution_kernel<3, true> : tiled_convolution_kernel<3, false>);
  return launch(kernel, a.n < grid ? a.n : grid, (int)threads, (size_t)bytes, stream, a);
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
  if (tiled(a)) return run_tiled(a, s);
  if (const int64_t bytes = small_bytes(a))
    return launch(a.side == 3 ? small_convolution_kernel<3> : small_convolution_kernel<0>, grid_of(a), kThreads,
                  (size_t)bytes, s, a);
  const size_t shared = (size_t)(a.side * a.side + kThreads / 32) * sizeof(float);
  return launch(perturb_convolution_kernel, grid_of(a), kThreads, shared, s, a);
}

}  // namespace cuda
}  // namespace ulfast
