// project and project_classwise on CUDA: out = x - (x B^T) B.
//
// These are the kernels for rows of any width, dtype and address. Wide aligned rows are handled in project_resident.cu.
//
// Bytes (float32): 8 n d where a group of rows fits in shared memory (one kernel, x read once); otherwise two kernels,
// coefficients and update, over pieces of rows small enough for the second to find them in L2: 8 n d at best, 12 n d at
// worst. Flops: 4 n d k. In addition the basis is read twice per group of R rows: 8 k / R bytes per value, through L2.
// Bound: memory up to about k = 16 at R = 8, then the multiply-adds. A label out of range makes its row NaN and reads
// no basis. Two blocks per multiprocessor instead of one made two of its kernels spill.
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

template <class O> __device__ void fill_nan(O* out, int64_t d) {
  for (int64_t i = threadIdx.x; i < d; i += kThreads) narrow((typename Compute<O>::type)NAN, out + i);
}

// Everything of rows that fit into the tile, or, with coefficients already in `given` (splits, end - begin, k), only
// what comes after them.
template <class T, class O, int R, bool Given> __global__ void __launch_bounds__(kThreads, 1)
    project_kernel(Rows a, Plan plan, O* result, const typename Compute<T>::type* given, int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  A* coef = dynamic_shared<A>();  // (k, R), then the parts of a tile of products, then the rows
  A* parts = coef + (a.k * R + 3) / 4 * 4;
  T* tile = reinterpret_cast<T*>(parts + kWarps * kCols * R);
  for_each_run<R>(a, plan, begin, end, [&](const Run& run) {
    O* out = result + run.from;
    const bool whole = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(out) % alignof(Four<O>) == 0;
    if (run.label < 0) {
      for (int r = 0; r < run.count; ++r) fill_nan(out + number(a, run.at + r) * a.d, run.d);
      return;
    }
    const A* basis = static_cast<const A*>(a.basis) + run.label * a.k * a.d + run.from;
    __syncthreads();  // the previous rows have been used
    stage<T, R>(a, plan, tile, run.at, run.count, run.from, run.d);
    if (Given) gather<A, R>(given, plan.splits, end - begin, a.k, run.at - begin, run.count, coef);
    __syncthreads();
    if (!Given) dots_all<T, A, R>(a, plan, tile, basis, run.d, parts, coef);
    remove<T, A, R>(a, plan.pitch, tile, basis, run.count, run.d, coef, [&](int r, int64_t i, const A(&v)[4]) {
      Four<O> y;
#pragma unroll
      for (int u = 0; u < 4; ++u) narrow(v[u], &y.v[u]);
      O* to = out + number(a, run.at + r) * a.d + i;
      if (whole && i + 4 <= run.d)
        *reinterpret_cast<Four<O>*>(to) = y;
      else
        for (int u = 0; u < 4; ++u)
          if (i + u < run.d) to[u] = y.v[u];
    });
  });
}

int64_t fixed_of(const Project& a, int rows) { return fixed_bytes(a.k, rows, a.dtype == DType::f64 ? 8 : 4); }
Plan plan_of(const Project& a, int rows) {
  return cut(a.d, size_of(a.dtype), rows, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed_of(a, rows));
}

// Rows per group: two if eight would leave multiprocessors idle, or if the numbers are twice as wide.
int rows_of(const Project& a) {
  if (a.dtype == DType::f64) return 2;
  return (a.n + 7) / 8 * plan_of(a, 8).splits < attribute(cudaDevAttrMultiProcessorCount) ? 2 : 8;
}

template <class T, class O, int R> const char* run(const Project& a, cudaStream_t s) {
  using A = typename Compute<T>::type;
  const Plan plan = plan_of(a, R);
  const Rows rows{a.x, a.basis, nullptr, a.labels, a.order, a.x_stride, a.d, a.k, a.classes, 0};
  O* out = static_cast<O*>(a.out);
  A* coef = static_cast<A*>(a.coef);
  const size_t shared = (size_t)(fixed_of(a, R) + R * plan.pitch * (int64_t)sizeof(T));
  if (plan.splits == 1)
    return launch(project_kernel<T, O, R, false>, grid_of(a.n, R, 1), kThreads, shared, s, rows, plan, out,
                  (const A*)nullptr, (int64_t)0, a.n);
  const int64_t chunk = chunk_of(a.d, sizeof(T), R);
  for (int64_t i = 0; i < a.n; i += chunk) {
    const int64_t end = i + chunk < a.n ? i + chunk : a.n, grid = grid_of(end - i, R, plan.splits);
    const char* bad = launch(coefficients<T, R>, grid, kThreads, shared, s, rows, plan, coef, i, end);
    if (!bad)
      bad = launch(project_kernel<T, O, R, true>, grid, kThreads, shared, s, rows, plan, out, (const A*)coef, i, end);
    if (bad) return bad;
  }
  return nullptr;
}

template <class T, class O> const char* run(const Project& a, cudaStream_t s) {
  return rows_of(a) == 8 ? run<T, O, 8>(a, s) : run<T, O, 2>(a, s);
}

}  // namespace

int64_t project_scratch(const Project& a) {
  const int64_t mma = mma_fits(a) ? mma_scratch(a) : 0, resident = resident_fits(a) ? resident_scratch(a) : 0;
  const int rows = rows_of(a);
  const Plan plan = plan_of(a, rows);
  const int64_t chunk = chunk_of(a.d, size_of(a.dtype), rows);
  const int64_t pieces = plan.splits == 1 ? 0 : plan.splits * (chunk < a.n ? chunk : a.n) * a.k;
  const int64_t other = resident > pieces ? resident : pieces;
  return mma > other ? mma : other;  // which of the three runs depends on the addresses
}

int64_t project_takes_tensor_cores(const Project& a) { return mma_fits(a); }

int64_t project_sorts(const Project& a) { return a.classes > 0 && !resident_fits(a); }

const char* project(const Project& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool even = aligned(a.out, 16) && aligned(a.basis, 16);
  if (even && aligned(a.x, a.dtype == DType::u8 ? 4 : 16) && mma_fits(a)) return mma_project(a, s);
  const uintptr_t quad = a.dtype == DType::u8 ? 4 : a.dtype == DType::f32 ? 16 : 8;
  if (resident_fits(a) && aligned(a.x, quad) && aligned(a.out, a.dtype == DType::u8 ? 16 : quad) &&
      aligned(a.basis, 16))
    return resident_project(a, s);
  if (a.dtype == DType::f64) return run<double, double, 2>(a, s);
  return by_dtype(a.dtype, [&](auto x, auto result) { return run<decltype(x), decltype(result)>(a, s); });
}

}  // namespace cuda
}  // namespace ulfast
