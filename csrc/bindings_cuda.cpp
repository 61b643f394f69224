// The CUDA kernels' side of the bindings: addresses in, nothing owned. ulfast/ops/cuda.py checks every argument first.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "ulfast.h"

namespace py = pybind11;
using namespace ulfast;

namespace {

template <class T> T* ptr(uintptr_t address) { return reinterpret_cast<T*>(address); }

void launched(const char* problem) {
  if (problem) throw std::runtime_error(std::string("ulfast: a CUDA kernel could not be launched: ") + problem);
}

}  // namespace

void add_cuda(py::module_ m) {
  m.def("project",
        [](uintptr_t x, uintptr_t basis, uintptr_t coef, uintptr_t out, int64_t n, int64_t d, int64_t k,
           int64_t x_stride, int dtype, uintptr_t labels, uintptr_t order, int64_t classes, uintptr_t stream) {
          launched(cuda::project(
              {ptr<const void>(x), ptr<const void>(basis), ptr<void>(coef), ptr<void>(out), n, d, k, x_stride,
               static_cast<DType>(dtype), ptr<const int64_t>(labels), ptr<int64_t>(order), classes},
              ptr<void>(stream)));
        });
  m.def("project_scratch", [](int64_t n, int64_t d, int64_t k, int dtype) {
    return cuda::project_scratch(
        {nullptr, nullptr, nullptr, nullptr, n, d, k, d, static_cast<DType>(dtype), nullptr, nullptr, 0});
  });
  m.def("ingest",
        [](uintptr_t images, uintptr_t basis, uintptr_t mean, uintptr_t std_, uintptr_t index, uintptr_t shift,
           uintptr_t flip, uintptr_t coef, uintptr_t out, int64_t images_n, int64_t n, int64_t h, int64_t w, int64_t c,
           int64_t k, int dtype, uintptr_t labels, int64_t classes, uintptr_t order, uintptr_t stream) {
          launched(cuda::ingest({ptr<const void>(images),
                                 ptr<const float>(basis),
                                 ptr<const float>(mean),
                                 ptr<const float>(std_),
                                 ptr<const int64_t>(index),
                                 ptr<const int32_t>(shift),
                                 ptr<const uint8_t>(flip),
                                 ptr<float>(coef),
                                 ptr<void>(out),
                                 images_n,
                                 n,
                                 h,
                                 w,
                                 c,
                                 k,
                                 static_cast<DType>(dtype),
                                 ptr<const int64_t>(labels),
                                 classes,
                                 DType::u8,
                                 ptr<const int64_t>(order)},
                                ptr<void>(stream)));
        });
  m.def("ingest_scratch", [](int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
    Ingest a{};
    a.n = n, a.h = h, a.w = w, a.c = c, a.k = k;
    return cuda::ingest_scratch(a);
  });
  m.def("softmax_regression_step", [](uintptr_t x, uintptr_t labels, uintptr_t index, uintptr_t weight, uintptr_t coef,
                                      uintptr_t grad, uintptr_t result, int64_t rows, int64_t n, int64_t d, int64_t c,
                                      double lr, int dtype, uintptr_t stream) {
    launched(cuda::softmax_regression_step(
        {ptr<const void>(x), ptr<const int64_t>(labels), ptr<const int64_t>(index), ptr<float>(weight),
         ptr<float>(coef), ptr<float>(grad), ptr<double>(result), rows, n, d, c, (float)lr, static_cast<DType>(dtype)},
        ptr<void>(stream)));
  });
  m.def("softmax_scratch", [](int64_t n, int64_t d, int64_t c, double lr, int dtype) {
    SoftmaxRegressionStep a{};
    a.n = n, a.d = d, a.c = c, a.lr = (float)lr, a.dtype = static_cast<DType>(dtype);
    return py::make_tuple(cuda::softmax_scratch(a), cuda::softmax_parts(a));
  });
  m.def("apply_perturbation", [](uintptr_t images, uintptr_t delta, uintptr_t index, uintptr_t out, int64_t n,
                                 int64_t d, int64_t rows, bool truncate, uintptr_t stream) {
    launched(cuda::apply_perturbation({ptr<const uint8_t>(images), ptr<const float>(delta), ptr<const int64_t>(index),
                                       ptr<uint8_t>(out), n, d, rows, truncate},
                                      ptr<void>(stream)));
  });
  m.def("pgd_step", [](uintptr_t x, uintptr_t grad, uintptr_t start, int64_t n, int64_t d, double alpha, double eps,
                       int norm, bool clamp, uintptr_t stream) {
    launched(cuda::pgd_step(
        {ptr<float>(x), ptr<const float>(grad), ptr<const float>(start), n, d, (float)alpha, (float)eps, norm, clamp},
        ptr<void>(stream)));
  });
  m.def("philox_uniform",
        [](uintptr_t out, int64_t seed, int64_t stream_id, int64_t first, int64_t n, int64_t d, uintptr_t stream) {
          launched(cuda::philox_uniform({ptr<float>(out), seed, stream_id, first, n, d}, ptr<void>(stream)));
        });
  m.def("philox_normal",
        [](uintptr_t out, int64_t seed, int64_t stream_id, int64_t first, int64_t n, int64_t d, uintptr_t stream) {
          launched(cuda::philox_normal({ptr<float>(out), seed, stream_id, first, n, d}, ptr<void>(stream)));
        });
  m.def("perturb_lsp", [](uintptr_t labels, uintptr_t centroids, uintptr_t mixing, uintptr_t images, uintptr_t out,
                          int64_t seed, int64_t first, int64_t n, int64_t classes, int64_t h, int64_t w,
                          int64_t channels, int64_t patch, double norm, bool truncate, uintptr_t stream) {
    launched(cuda::perturb_lsp({ptr<const int64_t>(labels), ptr<const float>(centroids), ptr<const float>(mixing),
                                nullptr, ptr<const uint8_t>(images), ptr<void>(out), seed, first, n, classes, h, w,
                                channels, patch, (float)norm, truncate},
                               ptr<void>(stream)));
  });
  m.def("perturb_ar", [](uintptr_t labels, uintptr_t coefficients, uintptr_t images, uintptr_t out, int64_t seed,
                         int64_t first, int64_t n, int64_t classes, int64_t h, int64_t w, int64_t channels, double norm,
                         int kind, bool truncate, uintptr_t stream) {
    launched(cuda::perturb_ar(
        {ptr<const int64_t>(labels), ptr<const float>(coefficients), nullptr, ptr<const uint8_t>(images),
         ptr<void>(out), seed, first, n, classes, h, w, channels, (float)norm, kind, truncate},
        ptr<void>(stream)));
  });
  m.def("perturb_ar_fits", [](int64_t h, int64_t w, int64_t channels) {
    PerturbAr a{};
    a.h = h, a.w = w, a.channels = channels;
    return cuda::perturb_ar_fits(a);
  });
  m.def("class_moments", [](uintptr_t x, uintptr_t labels, uintptr_t order, uintptr_t sums, uintptr_t squares,
                            int64_t n, int64_t d, int64_t classes, uintptr_t stream) {
    launched(cuda::class_moments({ptr<const uint8_t>(x), ptr<const int64_t>(labels), ptr<int64_t>(order), nullptr,
                                  ptr<int64_t>(sums), ptr<int64_t>(squares), n, d, classes},
                                 ptr<void>(stream)));
  });
  m.def("perturb_convolution",
        [](uintptr_t images, uintptr_t labels, uintptr_t kernels, uintptr_t scratch, uintptr_t out, int64_t n,
           int64_t classes, int64_t h, int64_t w, int64_t c, int64_t side, uintptr_t stream) {
          launched(cuda::perturb_convolution(
              {ptr<const uint8_t>(images), ptr<const int64_t>(labels), ptr<const float>(kernels), ptr<float>(scratch),
               ptr<uint8_t>(out), n, classes, h, w, c, side},
              ptr<void>(stream)));
        });
  m.def("perturb_linear",
        [](uintptr_t images, uintptr_t labels, uintptr_t weight, uintptr_t out, int64_t n, int64_t d, int64_t c,
           int64_t steps, double alpha, double eps, double share, double levels, uintptr_t stream) {
          launched(cuda::perturb_linear(
              {ptr<const uint8_t>(images), ptr<const int64_t>(labels), ptr<const float>(weight), nullptr,
               ptr<uint8_t>(out), n, d, c, steps, (float)alpha, (float)eps, (float)share, (float)levels},
              ptr<void>(stream)));
        });
  m.def("perturb_linear_fits", &cuda::perturb_linear_fits);
  m.def("perturb_convolution_scratch", [](int64_t n, int64_t h, int64_t w, int64_t c) {
    return cuda::perturb_convolution_scratch({nullptr, nullptr, nullptr, nullptr, nullptr, n, 0, h, w, c, 0});
  });
}
