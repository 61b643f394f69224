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
  void (*softmax_gradient)(const SoftmaxStep& a, float* grad, double* result, int64_t begin, int64_t end);
  // weight[begin, end) -= scale * sum over threads of grad
  void (*softmax_update)(const SoftmaxStep& a, int threads, float scale, int64_t begin, int64_t end);
  void (*apply)(const Apply& a, int64_t begin, int64_t end);
  void (*pgd)(const PgdStep& a, int64_t begin, int64_t end);
  void (*philox_uniform)(const Philox& a, int64_t begin, int64_t end);
  void (*philox_normal)(const Philox& a, int64_t begin, int64_t end);
  void (*lsp)(const Lsp& a, float* scratch, int64_t begin, int64_t end);
  void (*ar)(const Ar& a, float* scratch, int64_t begin, int64_t end);
  // Features [begin, end) of all rows.
  void (*moments)(const ClassMoments& a, float* scratch, int64_t begin, int64_t end);
  void (*convolve)(const Convolve& a, float* scratch, int64_t begin, int64_t end);
  void (*linear)(const Linear& a, float* scratch, int64_t begin, int64_t end);
  void (*patch_filter)(const PatchFilter& a, float* scratch, int64_t begin, int64_t end);
};

#if defined(ULFAST_LEVEL)
namespace ULFAST_LEVEL {
void project(const Project& a, int64_t begin, int64_t end);
void pack(const Project& a, int64_t begin, int64_t end);
int64_t chunks(const Project& a);
void ingest(const Ingest& a, int64_t begin, int64_t end);
void softmax_gradient(const SoftmaxStep& a, float* grad, double* result, int64_t begin, int64_t end);
void softmax_update(const SoftmaxStep& a, int threads, float scale, int64_t begin, int64_t end);
void apply(const Apply& a, int64_t begin, int64_t end);
void pgd(const PgdStep& a, int64_t begin, int64_t end);
void philox_uniform(const Philox& a, int64_t begin, int64_t end);
void philox_normal(const Philox& a, int64_t begin, int64_t end);
void lsp(const Lsp& a, float* scratch, int64_t begin, int64_t end);
void ar(const Ar& a, float* scratch, int64_t begin, int64_t end);
void moments(const ClassMoments& a, float* scratch, int64_t begin, int64_t end);
void convolve(const Convolve& a, float* scratch, int64_t begin, int64_t end);
void linear(const Linear& a, float* scratch, int64_t begin, int64_t end);
void patch_filter(const PatchFilter& a, float* scratch, int64_t begin, int64_t end);
}  // namespace ULFAST_LEVEL
#endif

}  // namespace ulfast
