// The CUDA kernels' side of the extension module, as bindings.cpp.
#include "bind.h"

namespace py = pybind11;
using namespace ulfast;

void add_cuda(py::module_ m);

void add_cuda(py::module_ m) {
  m.attr("ingest_width") = cuda::ingest_width;
  m.attr("ingest_channels") = cuda::ingest_channels;
  m.attr("perturb_lsp_latents") = cuda::perturb_lsp_latents;
  m.attr("perturb_convolution_side") = cuda::perturb_convolution_side;
#define ULFAST_BIND(name, Arguments) bind<&cuda::name>(m, #name);
  ULFAST_CUDA_OPERATORS(ULFAST_BIND)
  ULFAST_CUDA_SIZES(ULFAST_BIND)
}
