// project and project_classwise on CUDA for wide rows: the basis stays in shared memory (resident.cuh).
//
// Bytes (float32): 8 n d where a slice holds a row (one launch, x read once), otherwise 12 n d (three launches). The
// basis is read once per block: 4 k d per multiprocessor. Flops: 4 n d k. A value takes 8 k / R bytes of shared memory.
// Bound: memory up to about k = 16, then the multiply-adds.
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kRows = 4;

template <class T, class O, int R, Part part, bool Own, bool Whole, bool Ahead>
__global__ void __launch_bounds__(kBlock, 1) resident_project_kernel(Rows a, Task task, O* result) {
  for_each_group<T, R, 1, part, Own, Whole, Ahead>(a, task,
                                                   [&](const float (&x)[R][kChunks][4], const Group<R>& g,
                                                       int64_t first, const Room& at, int64_t from, int d, int, int) {
                                                     removed<T, R, 1, Own, Whole>(
                                                         x, g, at.basis, task.slices.features, d, (int)a.k, at.coef,
                                                         [&](int r, int, int f, const float (&v)[4]) {
                                                           if (first + r >= task.end) return;
                                                           Four<O> y;
#pragma unroll
                                                           for (int u = 0; u < 4; ++u)
                                                             narrow(Own && (g.bad >> r & 1) ? NAN : v[u], &y.v[u]);
                                                           stream_out(result + (first + r) * a.d + from + f, y);
                                                         });
                                                   });
}

template <class T, int R, bool Own> __global__ void __launch_bounds__(kBlock, 1)
    resident_products_kernel(Rows a, Task task) {
  for_each_group<T, R, 1, Part::products, Own, false, !Own>(
      a, task, [](const float (&)[R][kChunks][4], const Group<R>&, int64_t, const Room&, int64_t, int, int, int) {});
}

template <class T>
const char* products_of(const Rows& a, Slices s, int64_t begin, int64_t end, float* scratch, cudaStream_t stream) {
  const Task task{s, begin, end, scratch};
  const int64_t count = (end - begin) * a.k;
  const auto kernel = a.labels ? resident_products_kernel<T, kRows, true> : resident_products_kernel<T, kRows, false>;
  const char* bad = launch(kernel, (int64_t)s.splits * s.blocks, kBlock, (size_t)s.shared, stream, a, task);
  if (bad) return bad;
  return launch(add_slices, blocks(count), kThreads, 0, stream, (const float*)scratch, scratch + s.splits * count,
                count, s.splits);
}

Slices slices_of(const Project& a, bool ahead) {
  const bool own = a.classes > 0;
  return cut_slices(a.n, a.d, own ? a.classes * a.k : a.k, a.k, kRows, 4, kSlice,
                    ahead ? ahead_bytes(kRows, size_of(a.dtype)) : 0, 0);
}
// Prefers one launch, with or without the next group in flight, to three.
struct Choice {
  Slices slices;
  bool ahead;
};
Choice choice_of(const Project& a) {
  const Slices with = slices_of(a, true), without = slices_of(a, false);
  if (with.splits == 1) return {with, true};
  return without.splits == 1 ? Choice{without, false} : Choice{with, true};
}

template <class T, class O> const char* run(const Project& a, cudaStream_t stream) {
  const Choice choice = choice_of(a);
  const Slices s = choice.slices;
  const Rows rows{a.x, a.basis, nullptr, a.labels, nullptr, a.x_stride, a.d, a.k, a.classes, 0};
  O* out = static_cast<O*>(a.out);
  const int64_t grid = (int64_t)s.splits * s.blocks;
  if (s.splits == 1) {
    constexpr Part all = Part::all;
    const auto kernel = a.labels        ? resident_project_kernel<T, O, kRows, all, true, false, false>
                        : !choice.ahead ? resident_project_kernel<T, O, kRows, all, false, false, false>
                        : a.d == kSlice ? resident_project_kernel<T, O, kRows, all, false, true, true>
                                        : resident_project_kernel<T, O, kRows, all, false, false, true>;
    return launch(kernel, grid, kBlock, (size_t)s.shared, stream, rows, Task{s, 0, a.n, nullptr}, out);
  }
  float* scratch = static_cast<float*>(a.coef);
  for (int64_t i = 0; i < a.n; i += kRowsAtOnce) {
    const int64_t end = i + kRowsAtOnce < a.n ? i + kRowsAtOnce : a.n;
    const char* bad = products_of<T>(rows, s, i, end, scratch, stream);
    const Task rest{s, i, end, scratch + s.splits * (end - i) * a.k};
    const auto kernel = a.labels ? resident_project_kernel<T, O, kRows, Part::rest, true, false, false>
                                 : resident_project_kernel<T, O, kRows, Part::rest, false, false, true>;
    if (!bad) bad = launch(kernel, grid, kBlock, (size_t)s.shared, stream, rows, rest, out);
    if (bad) return bad;
  }
  return nullptr;
}

}  // namespace

__global__ void add_slices(const float* parts, float* out, int64_t count, int splits) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < count; i += (int64_t)gridDim.x * kThreads) {
    float sum = 0.0f;
    for (int s = 0; s < splits; ++s) sum += parts[s * count + i];
    out[i] = sum;
  }
}

const char* slice_products(const Rows& a, Slices slices, int64_t begin, int64_t end, float* scratch,
                           cudaStream_t stream) {
  return products_of<uint8_t>(a, slices, begin, end, scratch, stream);
}

bool resident_fits(const Project& a) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 8) return false;
  if (a.dtype == DType::f64 || a.d % 4 || a.x_stride % 4 || a.k == 0 || a.d < kTeam * 2) return false;
  const Slices s = choice_of(a).slices;
  const int64_t groups = (a.n + kRows - 1) / kRows;
  return s.splits > 0 && 2 * groups * s.splits >= attribute(cudaDevAttrMultiProcessorCount);
}

int64_t resident_scratch(const Project& a) {
  const Slices s = choice_of(a).slices;
  return s.splits == 1 ? 0 : (s.splits + 1) * (a.n < kRowsAtOnce ? a.n : kRowsAtOnce) * a.k;
}

const char* resident_project(const Project& a, cudaStream_t stream) {
  return by_dtype(a.dtype, [&](auto x, auto result) { return run<decltype(x), decltype(result)>(a, stream); });
}

}  // namespace cuda
}  // namespace ulfast
