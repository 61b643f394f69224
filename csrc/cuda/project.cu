// project and project_classwise on CUDA: out = x - (x B^T) B.
//
// Bytes (float32): 8 n d where a group of rows fits in shared memory (one kernel, x read once); otherwise two kernels,
// coefficients and update, over pieces of rows small enough for the second to find them in L2: 8 n d at best, 12 n d at
// worst. Flops: 4 n d k. Beside that the basis is read twice a group of R rows: 8 k / R bytes a value, through L2.
// Bound: memory up to about k = 16 at R = 8, then the multiply-adds. Every contraction is written as fma, because the
// files are compiled with --fmad=false. A label out of range makes its row NaN and reads no basis. Not yet run on a
// GPU; tests/cuda_emulation runs it on the CPU. Two blocks a multiprocessor instead of one made two of its kernels
// spill.
#include <math.h>

#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kCols = 8;                // basis rows taken at a time
constexpr int64_t kSegment = 48 << 10;  // bytes of shared memory for a piece of a group of rows that does not fit

// Where the rows of a tile lie: R of them, `pitch` values apart, in shared memory.
struct Plan {
  int64_t segment;  // features of a piece; d if the whole row is staged
  int64_t pitch;    // of the tile: the segment, rounded up so that every row begins at 16 bytes
  int64_t splits;   // pieces a row
};

__device__ __forceinline__ float fma_(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fma_(double a, double b, double c) { return fma(a, b, c); }

// Rows [first, first + count) of the order, features [from, from + d), into the tile; zeros up to the pitch.
template <class T>
__device__ void stage(const Project& a, const Plan& plan, T* tile, int64_t first, int count, int64_t from, int64_t d) {
  constexpr int64_t wide_step = 16 / (int64_t)sizeof(T);
  struct alignas(16) Wide {
    T v[wide_step];
  };
  const T* x = static_cast<const T*>(a.x) + from;
  const bool wide16 = (reinterpret_cast<uintptr_t>(x) | (uintptr_t)(a.x_stride * (int64_t)sizeof(T))) % 16 == 0;
  for (int r = 0; r < count; ++r) {
    const int64_t row = a.order ? a.order[first + r] : first + r;
    const T* source = x + row * a.x_stride;
    T* to = tile + r * plan.pitch;
    const int64_t whole = wide16 ? d / wide_step : 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < whole; i += kThreads)
      reinterpret_cast<Wide*>(to)[i] = reinterpret_cast<const Wide*>(source)[i];
    for (int64_t i = whole * wide_step + threadIdx.x; i < plan.pitch; i += kThreads) to[i] = i < d ? source[i] : T{};
  }
}

template <class A> __device__ __forceinline__ void load4(const A* p, bool quick, int64_t left, A (&v)[4]) {
  if (quick) {
    const Four<A> four = *reinterpret_cast<const Four<A>*>(p);
    for (int u = 0; u < 4; ++u) v[u] = four.v[u];
  } else {
    for (int u = 0; u < 4; ++u) v[u] = u < left ? p[u] : A(0);
  }
}

// The sum of v[row] over the warp, for the row lane / (32 / R): lanes swap halves, so that R sums cost R + 3 shuffles.
template <int R, class A> __device__ __forceinline__ A sum_rows(A (&v)[R]) {
  const int lane = threadIdx.x % 32;
  int offset = 16;
#pragma unroll
  for (int half = R / 2; half >= 1; half /= 2, offset /= 2) {
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A keep = upper ? v[i + half] : v[i], send = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, send, offset);
    }
  }
  for (; offset; offset /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], offset);
  return v[0];
}

// coef[j * R + r] = tile row r . basis row j, for j < K of which `there` exist.
template <class T, class A, int R, int K> __device__ void dots(const T* tile, int64_t pitch, const A* basis,
                                                               int64_t stride, int64_t d, int there, bool quick,
                                                               A* parts, A* coef) {
  A acc[K][R];
  for (int j = 0; j < K; ++j)
    for (int r = 0; r < R; ++r) acc[j][r] = A(0);
  for (int64_t i = threadIdx.x * 4; i < d; i += kThreads * 4) {
    A b[K][4];
#pragma unroll
    for (int j = 0; j < K; ++j) load4(basis + (j < there ? j : there - 1) * stride + i, quick, d - i, b[j]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Four<T> x = *reinterpret_cast<const Four<T>*>(tile + r * pitch + i);
#pragma unroll
      for (int j = 0; j < K; ++j)
#pragma unroll
        for (int u = 0; u < 4; ++u) acc[j][r] = fma_((A)wide(x.v[u]), b[j][u], acc[j][r]);
    }
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < K; ++j) {
    const A sum = sum_rows<R>(acc[j]);
    if (lane % (32 / R) == 0) parts[(warp * kCols + j) * R + lane / (32 / R)] = sum;
  }
  __syncthreads();
  if (threadIdx.x < K * R && (int)threadIdx.x < there * R) {
    A sum = A(0);
    for (int w = 0; w < kWarps; ++w) sum += parts[w * kCols * R + threadIdx.x];
    coef[threadIdx.x] = sizeof(T) == 1 ? sum * A(1.0f / 255.0f) : sum;
  }
  __syncthreads();
}

template <class T, class A, int R> __device__ void dots_all(const Project& a, const Plan& plan, const T* tile,
                                                            const A* basis, int64_t d, A* parts, A* coef) {
  const bool quick = a.d % 4 == 0 && d % 4 == 0 && reinterpret_cast<uintptr_t>(basis) % 16 == 0;
  const int tiles = (int)((a.k + kCols - 1) / kCols), now = tiles ? (int)((a.k + tiles - 1) / tiles) : 0;
  for (int64_t j = 0; j < a.k; j += now) {
    const int there = (int)(a.k - j < now ? a.k - j : now);
    const A* b = basis + j * a.d;
    A* c = coef + j * R;
    if (there > 5)
      dots<T, A, R, 8>(tile, plan.pitch, b, a.d, d, there, quick, parts, c);
    else if (there > 2)
      dots<T, A, R, 5>(tile, plan.pitch, b, a.d, d, there, quick, parts, c);
    else
      dots<T, A, R, 2>(tile, plan.pitch, b, a.d, d, there, quick, parts, c);
  }
}

// out = tile - sum_j coef[j] basis[j] for features [from, from + d) of `count` rows.
template <class T, class O, class A, int R> __device__ void subtract(const Project& a, const Plan& plan, const T* tile,
                                                                     const A* basis, int64_t first, int count,
                                                                     int64_t from, int64_t d, const A* coef) {
  const bool quick = a.d % 4 == 0 && d % 4 == 0 && reinterpret_cast<uintptr_t>(basis) % 16 == 0;
  O* out = static_cast<O*>(a.out) + from;
  const bool whole = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(out) % alignof(Four<O>) == 0;
  for (int64_t i = threadIdx.x * 4; i < d; i += kThreads * 4) {
    A acc[R][4];
    for (int r = 0; r < R; ++r)
      for (int u = 0; u < 4; ++u) acc[r][u] = A(0);
#pragma unroll 4
    for (int64_t j = 0; j < a.k; ++j) {
      A b[4];
      load4(basis + j * a.d + i, quick, d - i, b);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int u = 0; u < 4; ++u) acc[r][u] = fma_(coef[j * R + r], b[u], acc[r][u]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= count) break;
      const int64_t row = a.order ? a.order[first + r] : first + r;
      const Four<T> x = *reinterpret_cast<const Four<T>*>(tile + r * plan.pitch + i);
      Four<O> y;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const A v = (A)wide(x.v[u]);
        if (sizeof(T) == 1) {  // v / 255, rounded once together with the subtraction
          const A rest = A((float)(1.0 / 255.0 - (double)(1.0f / 255.0f)));
          narrow(fma_(v, A(1.0f / 255.0f), fma_(v, rest, -acc[r][u])), &y.v[u]);
        } else {
          narrow(v - acc[r][u], &y.v[u]);
        }
      }
      O* to = out + row * a.d + i;
      if (whole && i + 4 <= d)
        *reinterpret_cast<Four<O>*>(to) = y;
      else
        for (int u = 0; u < 4; ++u)
          if (i + u < d) to[u] = y.v[u];
    }
  }
}

template <class O> __device__ void fill_nan(const Project& a, int64_t at, int64_t from, int64_t d) {
  const int64_t row = a.order ? a.order[at] : at;
  O* out = static_cast<O*>(a.out) + row * a.d + from;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) narrow((typename Compute<O>::type)NAN, out + i);
}

enum class Part { kAll, kCoefficients, kUpdate };

// A group is R rows of the order; its rows with one label after another share a basis and go together. A block takes
// (group, piece) after (group, piece).
template <class T, class O, int R, Part P> __global__ void __launch_bounds__(kThreads, 1)
    project_kernel(Project a, Plan plan, int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  A* coef = dynamic_shared<A>();  // (k, R), then the parts of a tile of products, then the rows
  A* parts = coef + (a.k * R + 3) / 4 * 4;
  T* tile = reinterpret_cast<T*>(parts + kWarps * kCols * R);
  const int64_t groups = (end - begin + R - 1) / R;
  for (int64_t w = blockIdx.x; w < groups * plan.splits; w += gridDim.x) {
    const int64_t group = w / plan.splits, split = w - group * plan.splits;
    const int64_t from = split * plan.segment, d = a.d - from < plan.segment ? a.d - from : plan.segment;
    const int64_t stop = begin + (group + 1) * R < end ? begin + (group + 1) * R : end;
    for (int64_t at = begin + group * R; at < stop;) {
      int64_t label = 0;
      int count = (int)(stop - at);
      if (a.labels) {
        label = a.labels[a.order ? a.order[at] : at];
        for (count = 1; at + count < stop; ++count)
          if (a.labels[a.order ? a.order[at + count] : at + count] != label) break;
      }
      if (a.labels && (label < 0 || label >= a.classes)) {
        if (P != Part::kCoefficients)
          for (int r = 0; r < count; ++r) fill_nan<O>(a, at + r, from, d);
        at += count;
        continue;
      }
      const A* basis = static_cast<const A*>(a.basis) + label * a.k * a.d + from;
      __syncthreads();  // the last rows have been used
      stage<T>(a, plan, tile, at, count, from, d);
      for (int64_t i = threadIdx.x; i < (R - count) * plan.pitch; i += kThreads) tile[count * plan.pitch + i] = T{};
      if (P == Part::kUpdate)  // the pieces' sums, always in the same order
        for (int64_t i = threadIdx.x; i < a.k * R; i += kThreads) {
          const int64_t j = i / R, r = i % R;
          A sum = A(0);
          for (int64_t s = 0; s < plan.splits && r < count; ++s)
            sum += static_cast<const A*>(a.coef)[(s * (end - begin) + at - begin + r) * a.k + j];
          coef[i] = sum;
        }
      __syncthreads();
      if (P != Part::kUpdate) dots_all<T, A, R>(a, plan, tile, basis, d, parts, coef);
      if (P == Part::kCoefficients) {
        for (int64_t i = threadIdx.x; i < a.k * R; i += kThreads) {
          const int64_t j = i / R, r = i % R;
          if (r < count) static_cast<A*>(a.coef)[(split * (end - begin) + at - begin + r) * a.k + j] = coef[i];
        }
      } else {
        subtract<T, O, A, R>(a, plan, tile, basis, at, count, from, d, coef);
      }
      at += count;
    }
  }
}

int64_t item(DType t) { return t == DType::u8 ? 1 : t == DType::f32 ? 4 : t == DType::f64 ? 8 : 2; }

// Rows a group: two where eight would leave multiprocessors idle, or where the numbers are twice as wide.
int rows_of(const Project& a) {
  return a.dtype == DType::f64 || a.n < 8 * attribute(cudaDevAttrMultiProcessorCount) ? 2 : 8;
}
int64_t fixed_bytes(const Project& a, int rows) {
  return ((a.k * rows + 3) / 4 * 4 + kWarps * kCols * rows) * (a.dtype == DType::f64 ? 8 : 4);
}
Plan plan_of(const Project& a, int rows) {
  const int64_t size = item(a.dtype), step = size < 4 ? 16 : 4;  // 16 bytes, and four values
  const int64_t pitch = (a.d + step - 1) / step * step;
  const int64_t fits = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed_bytes(a, rows);
  if (rows * pitch * size <= fits) return {a.d, pitch, 1};
  const int64_t room = (fits < kSegment ? fits : kSegment) / (rows * size);
  const int64_t segment = room / 16 * 16;
  return {segment, segment, (a.d + segment - 1) / segment};
}
// Rows whose values stay in half of the L2 between the two kernels.
int64_t chunk_of(const Project& a, int rows) {
  const int64_t some = attribute(cudaDevAttrL2CacheSize) / 2 / (a.d * item(a.dtype)) / rows * rows;
  return some < rows ? rows : some;
}

template <class T, class O, int R> const char* run(const Project& a, cudaStream_t s) {
  const Plan plan = plan_of(a, R);
  const size_t shared = (size_t)(fixed_bytes(a, R) + R * plan.pitch * (int64_t)sizeof(T));
  const int64_t most = 4 * (int64_t)attribute(cudaDevAttrMultiProcessorCount);
  const auto grid = [&](int64_t rows) {
    const int64_t work = (rows + R - 1) / R * plan.splits;
    return work < most ? work : most;
  };
  if (plan.splits == 1)
    return launch(project_kernel<T, O, R, Part::kAll>, grid(a.n), kThreads, shared, s, a, plan, (int64_t)0, a.n);
  const int64_t chunk = chunk_of(a, R);
  for (int64_t i = 0; i < a.n; i += chunk) {
    const int64_t end = i + chunk < a.n ? i + chunk : a.n;
    const char* bad =
        launch(project_kernel<T, O, R, Part::kCoefficients>, grid(end - i), kThreads, shared, s, a, plan, i, end);
    if (!bad) bad = launch(project_kernel<T, O, R, Part::kUpdate>, grid(end - i), kThreads, shared, s, a, plan, i, end);
    if (bad) return bad;
  }
  return nullptr;
}

template <class T, class O> const char* run(const Project& a, cudaStream_t s) {
  return rows_of(a) == 8 ? run<T, O, 8>(a, s) : run<T, O, 2>(a, s);
}

}  // namespace

int64_t project_scratch(const Project& a) {
  const int rows = rows_of(a);
  const Plan plan = plan_of(a, rows);
  const int64_t chunk = chunk_of(a, rows);
  return plan.splits == 1 ? 0 : plan.splits * (chunk < a.n ? chunk : a.n) * a.k;
}

const char* project(const Project& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::u8:
      return run<uint8_t, float>(a, s);
    case DType::f16:
      return run<f16, f16>(a, s);
    case DType::bf16:
      return run<bf16, bf16>(a, s);
    case DType::f32:
      return run<float, float>(a, s);
    case DType::f64:
      return run<double, double, 2>(a, s);
  }
  return "unknown dtype";
}

}  // namespace cuda
}  // namespace ulfast
