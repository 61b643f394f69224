// The extension module: addresses in, nothing owned, the GIL released. ulfast/ops checks every argument first.
#include "bind.h"

namespace py = pybind11;
using namespace ulfast;

#ifdef ULFAST_CUDA
void add_cuda(py::module_ m);  // bindings_cuda.cpp
#endif

namespace {

// dict(name -> supported) would lose the order, so a list of pairs.
py::list levels() {
  py::list out;
  for (int i = 0; i < cpu::level_count(); ++i)
    out.append(py::make_tuple(std::string(cpu::level_name(i)), cpu::level_supported(i)));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of ulfast. Call them through ulfast.ops.";
  cpu::set_level("auto");
  m.def("cpu_levels", &levels);
  m.def("cpu_level", [] { return std::string(cpu::level()); });
  m.def("set_cpu_level", [](const std::string& name) { return cpu::set_level(name.c_str()); });
  m.def(
      "advise_huge_pages",
      [](uintptr_t p, int64_t bytes) { cpu::advise_huge_pages(reinterpret_cast<void*>(p), bytes); },
      py::call_guard<py::gil_scoped_release>());
  m.attr("compiler") = __VERSION__;
#define ULFAST_EXPORT(name) m.attr(#name) = name;
  ULFAST_CONSTANTS(ULFAST_EXPORT)
#define ULFAST_BIND(name, Arguments) bind<&cpu::name>(m, #name);
#define ULFAST_BIND_SCRATCH(name, Arguments) bind<&cpu::scratch<Arguments>>(m, #name "_scratch");
  ULFAST_OTHER_OPERATORS(ULFAST_BIND)
  ULFAST_ROW_OPERATORS(ULFAST_BIND)
  ULFAST_ROW_OPERATORS(ULFAST_BIND_SCRATCH)

#ifdef ULFAST_CUDA
  add_cuda(m.def_submodule("cuda", "Kernels for NVIDIA GPUs."));
#endif
}
