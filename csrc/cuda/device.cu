// The CUDA runtime's answer to a query of the current device.
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
