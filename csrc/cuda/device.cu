// What the CUDA runtime says when it is asked for the current device.
#include "launch.cuh"

namespace ulfast {
namespace cuda {

const char* device_problem() {
  int multiprocessors = 0;
  const cudaError_t error = read_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace ulfast
