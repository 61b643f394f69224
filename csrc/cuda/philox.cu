// Philox numbers on CUDA, bit for bit those of the CPU: the same header, compiled with --fmad=false.
//
// Bytes: 4 n d written. Arithmetic: about 60 integer operations for four words and 45 float operations a pair of
// normals; on current GPUs the writing bounds the uniform numbers and the arithmetic the normal ones. Not yet run on a
// GPU.
#include "../random/philox.h"

#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

// One block of four words a thread.
template <bool Normal> __global__ void numbers(Philox a) {
  const int64_t quads = (a.d + 3) / 4, total = a.n * quads, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const int64_t row = t / quads, block = t - row * quads;
    uint32_t w[4];
    float v[4];
    philox::words((uint64_t)a.seed, (uint32_t)a.stream, (uint64_t)(a.first + row), (uint32_t)block, w);
    if (Normal) {
      philox::normal2(w[0], w[1], &v[0], &v[1]);
      philox::normal2(w[2], w[3], &v[2], &v[3]);
    } else {
      for (int i = 0; i < 4; ++i) v[i] = philox::uniform(w[i]);
    }
    float* out = a.out + row * a.d + block * 4;
    for (int i = 0; i < 4; ++i)
      if (block * 4 + i < a.d) out[i] = v[i];
  }
}

}  // namespace

const char* philox_uniform(const Philox& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  return launch(numbers<false>, blocks(a.n * ((a.d + 3) / 4)), kThreads, 0, static_cast<cudaStream_t>(stream), a);
}

const char* philox_normal(const Philox& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  return launch(numbers<true>, blocks(a.n * ((a.d + 3) / 4)), kThreads, 0, static_cast<cudaStream_t>(stream), a);
}

}  // namespace cuda
}  // namespace ulfast
