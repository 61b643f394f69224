// What every CPU level offers: kernels over a range of rows, without threads. dispatch.cpp shares the rows out.
#pragma once

#include "../ulfast.h"

namespace ulfast {

struct Table {
  const char* name;
  int tile;  // rows that a range should be a multiple of
  void (*project)(const Project& a, int64_t begin, int64_t end);
  // Chunks [begin, end) of the packed basis, and how many there are; none where a level uses the basis as it lies.
  void (*pack)(const Project& a, int64_t begin, int64_t end);
  int64_t (*chunks)(const Project& a);
  void (*ingest)(const Ingest& a, int64_t begin, int64_t end);
  // Adds the gradient of the rows to grad (c, d), the loss and the number of correct rows to result.
  void (*softmax_gradient)(const SoftmaxRegressionStep& a, float* grad, double* result, int64_t begin, int64_t end);
  // weight[begin, end) -= scale * sum over threads of grad
  void (*softmax_update)(const SoftmaxRegressionStep& a, int threads, float scale, int64_t begin, int64_t end);
  void (*apply_perturbation)(const ApplyPerturbation& a, int64_t begin, int64_t end);
  void (*pgd_step)(const PgdStep& a, int64_t begin, int64_t end);
  void (*philox_uniform)(const Philox& a, int64_t begin, int64_t end);
  void (*philox_normal)(const Philox& a, int64_t begin, int64_t end);
  void (*perturb_lsp)(const PerturbLsp& a, float* scratch, int64_t begin, int64_t end);
  void (*perturb_ar)(const PerturbAr& a, float* scratch, int64_t begin, int64_t end);
  // Features [begin, end) of all rows.
  void (*class_moments)(const ClassMoments& a, float* scratch, int64_t begin, int64_t end);
  void (*perturb_convolution)(const PerturbConvolution& a, float* scratch, int64_t begin, int64_t end);
  void (*perturb_linear)(const PerturbLinear& a, float* scratch, int64_t begin, int64_t end);
  void (*patch_filter)(const PatchFilter& a, float* scratch, int64_t begin, int64_t end);
};

#if defined(ULFAST_LEVEL)
namespace ULFAST_LEVEL {
void project(const Project& a, int64_t begin, int64_t end);
void pack(const Project& a, int64_t begin, int64_t end);
int64_t chunks(const Project& a);
void ingest(const Ingest& a, int64_t begin, int64_t end);
void softmax_gradient(const SoftmaxRegressionStep& a, float* grad, double* result, int64_t begin, int64_t end);
void softmax_update(const SoftmaxRegressionStep& a, int threads, float scale, int64_t begin, int64_t end);
void apply_perturbation(const ApplyPerturbation& a, int64_t begin, int64_t end);
void pgd_step(const PgdStep& a, int64_t begin, int64_t end);
void philox_uniform(const Philox& a, int64_t begin, int64_t end);
void philox_normal(const Philox& a, int64_t begin, int64_t end);
void perturb_lsp(const PerturbLsp& a, float* scratch, int64_t begin, int64_t end);
void perturb_ar(const PerturbAr& a, float* scratch, int64_t begin, int64_t end);
void class_moments(const ClassMoments& a, float* scratch, int64_t begin, int64_t end);
void perturb_convolution(const PerturbConvolution& a, float* scratch, int64_t begin, int64_t end);
void perturb_linear(const PerturbLinear& a, float* scratch, int64_t begin, int64_t end);
void patch_filter(const PatchFilter& a, float* scratch, int64_t begin, int64_t end);
}  // namespace ULFAST_LEVEL
#endif

}  // namespace ulfast
