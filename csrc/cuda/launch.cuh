// Shared by the CUDA files. Kernels run on the caller's stream, allocate nothing and never synchronise, so that a graph
// can capture them; what a launch says reaches Python as an error.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../ulfast.h"

namespace ulfast {
namespace cuda {

constexpr int kThreads = 256;

// Blocks for `work` items of one thread each: a grid of a few waves, whose threads stride over the rest.
inline unsigned blocks(int64_t work) {
  const int64_t need = (work + kThreads - 1) / kThreads, most = 4096;
  return (unsigned)(need < 1 ? 1 : need < most ? need : most);
}

inline const char* status() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace ulfast
