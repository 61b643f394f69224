// The CUDA kernels' part of the extension module; see bindings.cpp.
#include "bind.h"

namespace py = pybind11;
using namespace ulfast;

void add_cuda(py::module_ m);

void add_cuda(py::module_ m) {
#define ULFAST_EXPORT(name) m.attr(#name) = cuda::name;
  ULFAST_CUDA_CONSTANTS(ULFAST_EXPORT)
#define ULFAST_BIND(name, Arguments) bind<&cuda::name>(m, #name);
  ULFAST_CUDA_OPERATORS(ULFAST_BIND)
  ULFAST_CUDA_SIZES(ULFAST_BIND)
  m.def("device_problem", &cuda::device_problem);
}
