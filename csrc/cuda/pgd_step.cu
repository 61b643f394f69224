// pgd_step on CUDA: a sign or L2 step along the gradient, back into the ball around the start, back into [0, 1].
//
// Bytes: 16 n d, bound by memory. L-infinity is elementwise. L2 takes one block per row: two norms, then the update, 32
// n d in all. The second and third reads come from the L2 cache if all rows in work fit into it (36 KB each at 32 px),
// otherwise from memory (1.8 MB each at 224 px). Few rows leave multiprocessors idle.
#include <math.h>

#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kMost = 1024;      // threads for a long row
constexpr int64_t kLong = 8192;  // values

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

// The sum over the block's threads, returned to all of them.
__device__ float block_sum(float v) {
  __shared__ float parts[32];
  for (int lanes = 16; lanes; lanes /= 2) v += __shfl_down_sync(0xffffffffu, v, lanes);
  __syncthreads();  // the previous sum has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < (int)blockDim.x / 32; ++i) total += parts[i];
  return total;
}

template <class V> __device__ __forceinline__ V at_once(const float* from, int64_t i) {
  return *reinterpret_cast<const V*>(from + i);
}

// V: one value or four.
template <class V> __global__ void __launch_bounds__(kMost) l2(PgdStep a) {
  constexpr int kEach = sizeof(V) / sizeof(float);
  union Values {
    V all;
    float v[kEach];
  };
  const int64_t begin = (int64_t)threadIdx.x * kEach, jump = (int64_t)blockDim.x * kEach;
  for (int64_t row = blockIdx.x; row < a.n; row += gridDim.x) {
    float* to = a.x + row * a.d;
    const float *grad = a.grad + row * a.d, *start = a.start + row * a.d;
    float squares[kEach] = {};
#pragma unroll 4
    for (int64_t i = begin; i < a.d; i += jump) {
      const Values g{at_once<V>(grad, i)};
#pragma unroll
      for (int u = 0; u < kEach; ++u) squares[u] += g.v[u] * g.v[u];
    }
    float sum = 0;
#pragma unroll
    for (int u = 0; u < kEach; ++u) sum += squares[u], squares[u] = 0;
    const float step = a.alpha / fmaxf(sqrtf(block_sum(sum)), 1e-12f);
#pragma unroll 2
    for (int64_t i = begin; i < a.d; i += jump) {
      const Values g{at_once<V>(grad, i)}, x{at_once<V>(to, i)}, s{at_once<V>(start, i)};
#pragma unroll
      for (int u = 0; u < kEach; ++u) {
        const float away = x.v[u] + step * g.v[u] - s.v[u];
        squares[u] += away * away;
      }
    }
    sum = 0;
#pragma unroll
    for (int u = 0; u < kEach; ++u) sum += squares[u];
    const float size = fmaxf(sqrtf(block_sum(sum)), 1e-12f), shrink = size > a.eps ? a.eps / size : 1.0f;
#pragma unroll 2
    for (int64_t i = begin; i < a.d; i += jump) {
      const Values g{at_once<V>(grad, i)}, s{at_once<V>(start, i)};
      Values x{at_once<V>(to, i)};
#pragma unroll
      for (int u = 0; u < kEach; ++u) x.v[u] = placed(a, s.v[u] + shrink * (x.v[u] + step * g.v[u] - s.v[u]));
      *reinterpret_cast<V*>(to + i) = x.all;
    }
  }
}

const char* run_l2(const PgdStep& a, cudaStream_t stream) {
  const bool wide = a.d % 4 == 0 && aligned(a.x, 16) && aligned(a.grad, 16) && aligned(a.start, 16);
  const int threads = a.d < kLong ? kThreads : kMost;
  return launch(wide ? l2<float4> : l2<float>, a.n < 65535 ? a.n : (int64_t)65535, threads, 0, stream, a);
}

}  // namespace

const char* pgd_step(const PgdStep& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.norm == Norm::l2) return run_l2(a, s);
  const bool wide = a.n * a.d % 4 == 0 && aligned(a.x, 16) && aligned(a.grad, 16) && aligned(a.start, 16);
  return wide ? launch(linf4, blocks(a.n * a.d / 4), kThreads, 0, s, a)
              : launch(linf, blocks(a.n * a.d), kThreads, 0, s, a);
}

}  // namespace cuda
}  // namespace ulfast
