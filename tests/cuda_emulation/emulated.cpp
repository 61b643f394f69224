// The CUDA side of the extension as a module of its own.
#include "bindings_cuda.cpp"

PYBIND11_MODULE(emulated, m) { add_cuda(m); }
