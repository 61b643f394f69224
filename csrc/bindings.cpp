// pybind11: addresses in, nothing owned, the GIL released. ulfast/ops/cpu.py checks every argument first.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "ulfast.h"

namespace py = pybind11;
using namespace ulfast;

#ifdef ULFAST_CUDA
void add_cuda(py::module_ m);  // bindings_cuda.cpp
#endif

namespace {

template <class T> T* ptr(uintptr_t address) { return reinterpret_cast<T*>(address); }

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
  const auto nogil = py::call_guard<py::gil_scoped_release>();

  m.def("cpu_levels", &levels);
  m.def("cpu_level", [] { return std::string(cpu::level()); });
  m.def("set_cpu_level", [](const std::string& name) { return cpu::set_level(name.c_str()); });
  m.attr("compiler") = __VERSION__;

#ifdef ULFAST_CUDA
  add_cuda(m.def_submodule("cuda", "Kernels for NVIDIA GPUs."));
#endif
  m.def("advise_huge_pages", [](uintptr_t p, int64_t bytes) { cpu::advise_huge_pages(ptr<void>(p), bytes); }, nogil);
  m.def(
      "project",
      [](uintptr_t x, uintptr_t basis, uintptr_t coef, uintptr_t out, int64_t n, int64_t d, int64_t k, int64_t x_stride,
         int dtype, uintptr_t labels, uintptr_t order, int64_t classes, uintptr_t packed, int threads) {
        return cpu::project(
            {ptr<const void>(x), ptr<const void>(basis), ptr<void>(coef), ptr<void>(out), n, d, k, x_stride,
             static_cast<DType>(dtype), ptr<const int64_t>(labels), ptr<int64_t>(order), classes, ptr<void>(packed)},
            threads);
      },
      nogil);
  m.def(
      "ingest",
      [](uintptr_t images, uintptr_t basis, uintptr_t mean, uintptr_t std, uintptr_t index, uintptr_t shift,
         uintptr_t flip, uintptr_t coef, uintptr_t out, int64_t images_n, int64_t n, int64_t h, int64_t w, int64_t c,
         int64_t k, int dtype, uintptr_t labels, int64_t classes, int in_dtype, int threads) {
        return cpu::ingest(
            {ptr<const void>(images), ptr<const float>(basis), ptr<const float>(mean), ptr<const float>(std),
             ptr<const int64_t>(index), ptr<const int32_t>(shift), ptr<const uint8_t>(flip), ptr<float>(coef),
             ptr<void>(out), images_n, n, h, w, c, k, static_cast<DType>(dtype), ptr<const int64_t>(labels), classes,
             static_cast<DType>(in_dtype)},
            threads);
      },
      nogil);
  m.def(
      "softmax_regression_step",
      [](uintptr_t x, uintptr_t labels, uintptr_t index, uintptr_t weight, uintptr_t coef, uintptr_t grad,
         uintptr_t result, int64_t rows, int64_t n, int64_t d, int64_t c, double lr, int dtype, int threads) {
        return cpu::softmax_regression_step({ptr<const void>(x), ptr<const int64_t>(labels), ptr<const int64_t>(index),
                                             ptr<float>(weight), ptr<float>(coef), ptr<float>(grad),
                                             ptr<double>(result), rows, n, d, c, (float)lr, static_cast<DType>(dtype)},
                                            threads);
      },
      nogil);
  m.def(
      "apply_perturbation",
      [](uintptr_t images, uintptr_t delta, uintptr_t index, uintptr_t out, int64_t n, int64_t d, int64_t rows,
         bool truncate, int threads) {
        return cpu::apply_perturbation({ptr<const uint8_t>(images), ptr<const float>(delta), ptr<const int64_t>(index),
                                        ptr<uint8_t>(out), n, d, rows, truncate},
                                       threads);
      },
      nogil);
  m.def(
      "pgd_step",
      [](uintptr_t x, uintptr_t grad, uintptr_t start, int64_t n, int64_t d, double alpha, double eps, int norm,
         bool clamp, int threads) {
        cpu::pgd_step({ptr<float>(x), ptr<const float>(grad), ptr<const float>(start), n, d, (float)alpha, (float)eps,
                       norm, clamp},
                      threads);
      },
      nogil);
  m.def(
      "philox_uniform",
      [](uintptr_t out, int64_t seed, int64_t stream, int64_t first, int64_t n, int64_t d, int threads) {
        cpu::philox_uniform({ptr<float>(out), seed, stream, first, n, d}, threads);
      },
      nogil);
  m.def(
      "philox_normal",
      [](uintptr_t out, int64_t seed, int64_t stream, int64_t first, int64_t n, int64_t d, int threads) {
        cpu::philox_normal({ptr<float>(out), seed, stream, first, n, d}, threads);
      },
      nogil);
  m.def(
      "perturb_lsp",
      [](uintptr_t labels, uintptr_t centroids, uintptr_t mixing, uintptr_t scratch, uintptr_t images, uintptr_t out,
         int64_t seed, int64_t first, int64_t n, int64_t classes, int64_t h, int64_t w, int64_t channels, int64_t patch,
         double norm, bool truncate, int threads) {
        return cpu::perturb_lsp({ptr<const int64_t>(labels), ptr<const float>(centroids), ptr<const float>(mixing),
                                 ptr<float>(scratch), ptr<const uint8_t>(images), ptr<void>(out), seed, first, n,
                                 classes, h, w, channels, patch, (float)norm, truncate},
                                threads);
      },
      nogil);
  m.def(
      "perturb_ar",
      [](uintptr_t labels, uintptr_t coefficients, uintptr_t scratch, uintptr_t images, uintptr_t out, int64_t seed,
         int64_t first, int64_t n, int64_t classes, int64_t h, int64_t w, int64_t channels, double norm, int kind,
         bool truncate, int threads) {
        return cpu::perturb_ar({ptr<const int64_t>(labels), ptr<const float>(coefficients), ptr<float>(scratch),
                                ptr<const uint8_t>(images), ptr<void>(out), seed, first, n, classes, h, w, channels,
                                (float)norm, kind, truncate},
                               threads);
      },
      nogil);
  m.def("perturb_ar_scratch", &perturb_ar_scratch);
  m.def(
      "class_moments",
      [](uintptr_t x, uintptr_t labels, uintptr_t order, uintptr_t scratch, uintptr_t sums, uintptr_t squares,
         int64_t n, int64_t d, int64_t classes, int threads) {
        return cpu::class_moments({ptr<const uint8_t>(x), ptr<const int64_t>(labels), ptr<int64_t>(order),
                                   ptr<float>(scratch), ptr<int64_t>(sums), ptr<int64_t>(squares), n, d, classes},
                                  threads);
      },
      nogil);
  m.attr("class_moments_block") = class_moments_block;
  m.def(
      "perturb_convolution",
      [](uintptr_t images, uintptr_t labels, uintptr_t kernels, uintptr_t scratch, uintptr_t out, int64_t n,
         int64_t classes, int64_t h, int64_t w, int64_t c, int64_t side, int threads) {
        return cpu::perturb_convolution(
            {ptr<const uint8_t>(images), ptr<const int64_t>(labels), ptr<const float>(kernels), ptr<float>(scratch),
             ptr<uint8_t>(out), n, classes, h, w, c, side},
            threads);
      },
      nogil);
  m.def("perturb_convolution_scratch", &perturb_convolution_scratch);
  m.def(
      "patch_filter",
      [](uintptr_t x, uintptr_t table, uintptr_t starts, uintptr_t ids, uintptr_t scratch, uintptr_t out, int64_t n,
         int64_t h, int64_t w, int64_t c, int64_t taps, int64_t blocks, int threads) {
        cpu::patch_filter({ptr<const float>(x), ptr<const float>(table), ptr<const int64_t>(starts),
                           ptr<const int64_t>(ids), ptr<float>(scratch), ptr<float>(out), n, h, w, c, taps, blocks},
                          threads);
      },
      nogil);
  m.def("patch_filter_scratch", &patch_filter_scratch);
  m.def(
      "perturb_linear",
      [](uintptr_t images, uintptr_t labels, uintptr_t weight, uintptr_t scratch, uintptr_t out, int64_t n, int64_t d,
         int64_t c, int64_t steps, double alpha, double eps, double share, double levels, int threads) {
        return cpu::perturb_linear(
            {ptr<const uint8_t>(images), ptr<const int64_t>(labels), ptr<const float>(weight), ptr<float>(scratch),
             ptr<uint8_t>(out), n, d, c, steps, (float)alpha, (float)eps, (float)share, (float)levels},
            threads);
      },
      nogil);
  m.def("perturb_linear_scratch", &perturb_linear_scratch);
}
