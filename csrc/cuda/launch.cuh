// Shared by the CUDA files. Kernels run on the caller's stream, allocate nothing and never synchronise, so that a graph
// can capture them; a launch failure reaches Python as an error.
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "../ulfast.h"

namespace ulfast {
namespace cuda {

constexpr int kThreads = 256;

// Blocks for `work` items of one thread each: a grid of a few waves, whose threads stride over the rest.
inline int64_t blocks(int64_t work) {
  const int64_t need = (work + kThreads - 1) / kThreads, most = 4096;
  return need < 1 ? 1 : need < most ? need : most;
}

#ifdef ULFAST_EMULATE  // tests/cuda_emulation/cuda_runtime.h
template <class... P>
const char* launch(void (*kernel)(P...), int64_t grid, int threads, size_t shared, cudaStream_t, P... arguments) {
  emulation::run(grid, threads, shared, [&] { kernel(arguments...); });
  return nullptr;
}
template <class T> T* dynamic_shared() { return reinterpret_cast<T*>(emulation::shared); }
#else
// Launches a kernel; if a block needs more than 48 KB of shared memory, the kernel's limit is raised first.
template <class... P> const char* launch(void (*kernel)(P...), int64_t grid, int threads, size_t shared,
                                         cudaStream_t stream, P... arguments) {
  if (shared > (48 << 10)) {
    const cudaError_t raised =
        cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (raised != cudaSuccess) return cudaGetErrorString(raised);
  }
  void* addresses[] = {(void*)&arguments...};
  const cudaError_t error = cudaLaunchKernel((const void*)kernel, (unsigned)grid, threads, addresses, shared, stream);
  cudaGetLastError();  // reported here, not at the next launch
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
template <class T> __device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ float4 ulfast_shared[];
  return reinterpret_cast<T*>(ulfast_shared);
}
#endif

inline cudaError_t read_attribute(cudaDeviceAttr which, int* value) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, which, device);
  cudaGetLastError();  // reported here, not by the next launch
  return error;
}

// A property of the current device. If it cannot be read, a value that every device has, since sizes are divided by it;
// the following launch reports the problem, and device_problem() does so before any launch.
inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  if (read_attribute(which, &value) == cudaSuccess) return value;
  return which == cudaDevAttrMultiProcessorCount ? 1 : 48 << 10;
}

}  // namespace cuda
}  // namespace ulfast
