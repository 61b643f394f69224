// pgd_step on CUDA: a sign or L2 step along the gradient, back into the ball around the start, back into [0, 1].
//
// Bytes: 16 n d, bound by memory. L-infinity is elementwise. L2 takes a block a row: two norms, then the update; the
// row (12 KB at 32 px) comes from L2 cache the second and third time.
#include <math.h>

#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

__device__ __forceinline__ float between(float v, float low, float high) { return fminf(fmaxf(v, low), high); }

__device__ __forceinline__ float placed(const PgdStep& a, float v) { return a.clamp ? between(v, 0.0f, 1.0f) : v; }

__device__ __forceinline__ float stepped(const PgdStep& a, float x, float g, float s) {
  const float move = g > 0 ? a.alpha : g < 0 ? -a.alpha : 0.0f;
  return placed(a, s + between(x + move - s, -a.eps, a.eps));
}

__global__ void linf4(PgdStep a) {
  const int64_t total = a.n * a.d / 4, step = (int64_t)gridDim.x * blockDim.x;
  float4* x = reinterpret_cast<float4*>(a.x);
#pragma unroll 2
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const float4 g = reinterpret_cast<const float4*>(a.grad)[t], s = reinterpret_cast<const float4*>(a.start)[t];
    const float4 v = x[t];
    x[t] = float4{stepped(a, v.x, g.x, s.x), stepped(a, v.y, g.y, s.y), stepped(a, v.z, g.z, s.z),
                  stepped(a, v.w, g.w, s.w)};
  }
}

__global__ void linf(PgdStep a) {
  const int64_t total = a.n * a.d, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    a.x[t] = stepped(a, a.x[t], a.grad[t], a.start[t]);
  }
}

// The sum over the block's threads, given to all of them.
__device__ float block_sum(float v) {
  __shared__ float parts[kThreads / 32];
  for (int lanes = 16; lanes; lanes /= 2) v += __shfl_down_sync(0xffffffffu, v, lanes);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < kThreads / 32; ++i) total += parts[i];
  return total;
}

__global__ void l2(PgdStep a) {
  for (int64_t row = blockIdx.x; row < a.n; row += gridDim.x) {
    float* x = a.x + row * a.d;
    const float *g = a.grad + row * a.d, *s = a.start + row * a.d;
    float squares = 0;
    for (int64_t i = threadIdx.x; i < a.d; i += blockDim.x) squares += g[i] * g[i];
    const float step = a.alpha / fmaxf(sqrtf(block_sum(squares)), 1e-12f);
    squares = 0;
    for (int64_t i = threadIdx.x; i < a.d; i += blockDim.x) {
      const float away = x[i] + step * g[i] - s[i];
      squares += away * away;
    }
    const float size = fmaxf(sqrtf(block_sum(squares)), 1e-12f), shrink = size > a.eps ? a.eps / size : 1.0f;
    for (int64_t i = threadIdx.x; i < a.d; i += blockDim.x)
      x[i] = placed(a, s[i] + shrink * (x[i] + step * g[i] - s[i]));
  }
}

}  // namespace

const char* pgd_step(const PgdStep& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.norm == Norm::l2) return launch(l2, a.n < 65535 ? a.n : (int64_t)65535, kThreads, 0, s, a);
  const bool wide = a.n * a.d % 4 == 0 && aligned(a.x, 16) && aligned(a.grad, 16) && aligned(a.start, 16);
  return wide ? launch(linf4, blocks(a.n * a.d / 4), kThreads, 0, s, a)
              : launch(linf, blocks(a.n * a.d), kThreads, 0, s, a);
}

}  // namespace cuda
}  // namespace ulfast
