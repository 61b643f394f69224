// Philox numbers on CUDA, bit for bit those of the CPU: the same header, compiled with --fmad=false.
//
// Bytes: 4 n d written. Arithmetic: about 60 integer operations per four words and 45 float operations per pair of
// normals; on current GPUs the writes bound the uniform numbers and the arithmetic the normal ones.
#include "../random/philox.h"

#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

// One block of four words per thread; Index is wide enough for all of them.
template <bool Normal, class Index> __global__ void numbers(Philox a) {
  const Index quads = (Index)((a.d + 3) / 4), total = (Index)a.n * quads, step = (Index)gridDim.x * blockDim.x;
  const bool wide = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  for (Index t = (Index)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const Index row = t / quads, block = t - row * quads;
    uint32_t w[4];
    float v[4];
    philox::words((uint64_t)a.seed, (uint32_t)a.stream, (uint64_t)(a.first + (int64_t)row), (uint32_t)block, w);
    if (Normal) {
      philox::normal2(w[0], w[1], &v[0], &v[1]);
      philox::normal2(w[2], w[3], &v[2], &v[3]);
    } else {
      for (int i = 0; i < 4; ++i) v[i] = philox::uniform(w[i]);
    }
    float* out = a.out + (int64_t)row * a.d + (int64_t)block * 4;
    if (wide) {
      stream_out(out, Four<float>{{v[0], v[1], v[2], v[3]}});
    } else {
      for (int i = 0; i < 4; ++i)
        if ((int64_t)block * 4 + i < a.d) out[i] = v[i];
    }
  }
}

template <bool Normal> const char* run(const Philox& a, void* stream) {
  const int64_t work = a.n * ((a.d + 3) / 4), grid = blocks(work);
  const auto kernel = work + grid * kThreads < (int64_t)1 << 31 ? numbers<Normal, uint32_t> : numbers<Normal, uint64_t>;
  return launch(kernel, grid, kThreads, 0, static_cast<cudaStream_t>(stream), a);
}

}  // namespace

const char* philox_uniform(const Philox& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  return run<false>(a, stream);
}

const char* philox_normal(const Philox& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  return run<true>(a, stream);
}

}  // namespace cuda
}  // namespace ulfast
