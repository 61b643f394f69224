// The interface of every CPU level: kernels over a range of rows, without threads. dispatch.cpp distributes the rows.
//
// The lists below generate, line by line, a level's functions, the pointers to them and the table of both.
#pragma once

#include "../ulfast.h"

// Kernels that do not belong to a row operator: result, name, arguments.
// - pack: chunks [begin, end) of the packed basis; `chunks` returns their number, zero if the level does not pack the
//   basis.
// - softmax_gradient adds the gradient of the rows to grad (c, d), the loss and the number of correct rows to result.
// - softmax_update: weight[begin, end) -= scale * sum over threads of grad.
// - class_moments: features [begin, end) of all rows.
#define ULFAST_OTHER_KERNELS(F)                                                                                      \
  F(void, project, const Project& a, int64_t begin, int64_t end)                                                     \
  F(void, pack, const Project& a, int64_t begin, int64_t end)                                                        \
  F(int64_t, chunks, const Project& a)                                                                               \
  F(void, ingest, const Ingest& a, int64_t begin, int64_t end)                                                       \
  F(void, softmax_gradient, const SoftmaxRegressionStep& a, float* grad, double* result, int64_t begin, int64_t end) \
  F(void, softmax_update, const SoftmaxRegressionStep& a, int threads, float scale, int64_t begin, int64_t end)      \
  F(void, class_moments, const ClassMoments& a, float* scratch, int64_t begin, int64_t end)

namespace ulfast {

struct Table {
  const char* name;
  int tile;  // rows that a range should be a multiple of
#define ULFAST_POINTER(R, name, ...) R (*name)(__VA_ARGS__);
#define ULFAST_ROW_POINTER(name, Arguments) \
  void (*name)(const Arguments& a, float* scratch, int64_t begin, int64_t end);
  ULFAST_OTHER_KERNELS(ULFAST_POINTER)
  ULFAST_ROW_OPERATORS(ULFAST_ROW_POINTER)
#undef ULFAST_POINTER
#undef ULFAST_ROW_POINTER
};

#if defined(ULFAST_LEVEL)
namespace ULFAST_LEVEL {
#define ULFAST_DECLARE(R, name, ...) R name(__VA_ARGS__);
#define ULFAST_ROW_DECLARE(name, Arguments) void name(const Arguments& a, float* scratch, int64_t begin, int64_t end);
ULFAST_OTHER_KERNELS(ULFAST_DECLARE)
ULFAST_ROW_OPERATORS(ULFAST_ROW_DECLARE)
#undef ULFAST_DECLARE
#undef ULFAST_ROW_DECLARE
}  // namespace ULFAST_LEVEL
#endif

}  // namespace ulfast
