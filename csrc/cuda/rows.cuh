// Rows against a basis, shared by project, ingest and the linear classifier: a group of R rows is staged in shared
// memory, where its products with the basis are computed and subtracted.
//
// Every contraction is written as fma, because the files are compiled with --fmad=false.
#pragma once

#include <math.h>

#include "types.cuh"

namespace ulfast {
namespace cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kCols = 8;                // basis rows taken at a time
constexpr int64_t kSegment = 48 << 10;  // bytes of shared memory for a piece of a group of rows that does not fit

struct Rows {
  const void* x;          // (sources, d), rows `stride` apart
  const void* basis;      // (k, d), or (classes, k, d) with labels
  const int64_t* index;   // (n): which row of x each is, or null: its own number
  const int64_t* labels;  // (n), or null
  const int64_t* order;   // (n): the order in which they are taken, or null
  int64_t stride, d, k, classes, sources;
};

// The number of the row at position `at` in the order.
__device__ __forceinline__ int64_t number(const Rows& a, int64_t at) { return a.order ? a.order[at] : at; }

// Its position in x; -1 if its index is out of range.
__device__ __forceinline__ int64_t source(const Rows& a, int64_t at) {
  const int64_t row = number(a, at);
  if (!a.index) return row;
  const int64_t from = a.index[row];
  return from >= 0 && from < a.sources ? from : -1;
}

// The number of rows from `at` on, up to `stop`, with one label, and the label: 0 without labels, -1 if out of range.
__device__ __forceinline__ int run_of(const Rows& a, int64_t at, int64_t stop, int64_t* label) {
  *label = 0;
  if (!a.labels) return (int)(stop - at);
  const int64_t mine = a.labels[number(a, at)];
  int count = 1;
  while (at + count < stop && a.labels[number(a, at + count)] == mine) ++count;
  *label = mine >= 0 && mine < a.classes ? mine : -1;
  return count;
}

// The rows of a tile: R of them, `pitch` values apart, in shared memory.
struct Plan {
  int64_t segment;  // features of a piece; d if the whole row is staged
  int64_t pitch;    // of the tile: the segment, rounded up so that every row begins at 16 bytes
  int64_t splits;   // pieces per row
};

__device__ __forceinline__ float fma_(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fma_(double a, double b, double c) { return fma(a, b, c); }

// Rows [first, first + count) of the order, features [from, from + d), into a tile of R; zeros elsewhere.
template <class T, int R>
__device__ void stage(const Rows& a, const Plan& plan, T* tile, int64_t first, int count, int64_t from, int64_t d) {
  constexpr int64_t wide_step = 16 / (int64_t)sizeof(T);
  struct alignas(16) Wide {
    T v[wide_step];
  };
  const T* x = static_cast<const T*>(a.x) + from;
  const bool wide16 = (reinterpret_cast<uintptr_t>(x) | (uintptr_t)(a.stride * (int64_t)sizeof(T))) % 16 == 0;
  for (int r = 0; r < count; ++r) {
    const int64_t row = source(a, first + r), there = row < 0 ? 0 : d;
    const T* values = x + (row < 0 ? 0 : row) * a.stride;
    T* to = tile + r * plan.pitch;
    const int64_t whole = wide16 ? there / wide_step : 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < whole; i += kThreads)
      reinterpret_cast<Wide*>(to)[i] = reinterpret_cast<const Wide*>(values)[i];
    for (int64_t i = whole * wide_step + threadIdx.x; i < plan.pitch; i += kThreads)
      to[i] = i < there ? values[i] : T{};
  }
  for (int64_t i = threadIdx.x; i < (R - count) * plan.pitch; i += kThreads) tile[count * plan.pitch + i] = T{};
}

template <class A> __device__ __forceinline__ void load4(const A* p, bool quick, int64_t left, A (&v)[4]) {
  if (quick) {
    const Four<A> four = *reinterpret_cast<const Four<A>*>(p);
    for (int u = 0; u < 4; ++u) v[u] = four.v[u];
  } else {
    for (int u = 0; u < 4; ++u) v[u] = u < left ? p[u] : A(0);
  }
}

// The sum of v[row] over the warp, for the row lane / (32 / R): lanes swap halves, so that R sums cost R - 1 shuffles
// and one for each halving that is left.
template <int R, int Offset, class A> __device__ __forceinline__ A sum_halves(A (&v)[R]) {
  if constexpr (R == 1) {
    A sum = v[0];
#pragma unroll
    for (int offset = Offset; offset; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
  } else {
    const bool upper = threadIdx.x % 32 & Offset;
    A half[R / 2];
#pragma unroll
    for (int i = 0; i < R / 2; ++i) {
      const A keep = upper ? v[i + R / 2] : v[i], send = upper ? v[i] : v[i + R / 2];
      half[i] = keep + __shfl_xor_sync(0xffffffffu, send, Offset);
    }
    return sum_halves<R / 2, Offset / 2>(half);
  }
}
template <int R, class A> __device__ __forceinline__ A sum_rows(A (&v)[R]) { return sum_halves<R, 16>(v); }

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

template <class T, class A, int R>
__device__ void dots_all(const Rows& a, const Plan& plan, const T* tile, const A* basis, int64_t d, A* parts, A* coef) {
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

// put(r, i, y): y is tile - sum_j coef[j] basis[j] at features i to i + 3 (of d; zeros beyond) of row r of `count`.
template <class T, class A, int R, class Put> __device__ void remove(const Rows& a, int64_t pitch, const T* tile,
                                                                     const A* basis, int count, int64_t d,
                                                                     const A* coef, const Put& put) {
  const bool quick = a.d % 4 == 0 && d % 4 == 0 && reinterpret_cast<uintptr_t>(basis) % 16 == 0;
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
      const Four<T> x = *reinterpret_cast<const Four<T>*>(tile + r * pitch + i);
      A y[4];
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const A v = (A)wide(x.v[u]);
        if (sizeof(T) == 1) {  // v / 255, rounded once together with the subtraction
          const A rest = A((float)(1.0 / 255.0 - (double)(1.0f / 255.0f)));
          y[u] = fma_(v, A(1.0f / 255.0f), fma_(v, rest, -acc[r][u]));
        } else {
          y[u] = v - acc[r][u];
        }
      }
      put(r, i, y);
    }
  }
}

// The coefficients of `count` rows from the pieces' sums in `parts` (splits, rows, k), always in the same order.
template <class A, int R>
__device__ void gather(const A* parts, int64_t splits, int64_t rows, int64_t k, int64_t first, int count, A* coef) {
  for (int64_t i = threadIdx.x; i < k * R; i += kThreads) {
    const int64_t j = i / R, r = i % R;
    A sum = A(0);
    for (int64_t s = 0; s < splits && r < count; ++s) sum += parts[(s * rows + first + r) * k + j];
    coef[i] = sum;
  }
}

// Rows of one label in a piece of a group.
struct Run {
  int64_t at, label;       // the first in the order; the label is -1 if it is out of range, 0 without labels
  int count;               // rows
  int64_t split, from, d;  // the piece, its first feature and its features
};

// body(run) for the runs of rows [begin, end) in groups of R rows: a block takes (group, piece) after (group, piece).
template <int R, class Body> __device__ __forceinline__ void for_each_run(const Rows& a, const Plan& plan,
                                                                          int64_t begin, int64_t end,
                                                                          const Body& body) {
  const int64_t groups = (end - begin + R - 1) / R;
  for (int64_t w = blockIdx.x; w < groups * plan.splits; w += gridDim.x) {
    const int64_t group = w / plan.splits, split = w - group * plan.splits;
    const int64_t from = split * plan.segment, d = a.d - from < plan.segment ? a.d - from : plan.segment;
    const int64_t stop = begin + (group + 1) * R < end ? begin + (group + 1) * R : end;
    for (int64_t at = begin + group * R; at < stop;) {
      int64_t label;
      const int count = run_of(a, at, stop, &label);
      body(Run{at, label, count, split, from, d});
      at += count;
    }
  }
}

// Products of rows [begin, end) with their basis, piece by piece: parts (splits, end - begin, k). A group is R rows of
// the order; its rows with one label after another share a basis and go together. Nothing is written for a row without
// a basis.
template <class T, int R> __global__ void __launch_bounds__(kThreads, 1)
    coefficients(Rows a, Plan plan, typename Compute<T>::type* out, int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  A* coef = dynamic_shared<A>();  // (k, R), then the parts of a tile of products, then the rows
  A* parts = coef + (a.k * R + 3) / 4 * 4;
  T* tile = reinterpret_cast<T*>(parts + kWarps * kCols * R);
  for_each_run<R>(a, plan, begin, end, [&](const Run& run) {
    if (run.label < 0) return;
    const A* basis = static_cast<const A*>(a.basis) + run.label * a.k * a.d + run.from;
    __syncthreads();  // the previous rows have been used
    stage<T, R>(a, plan, tile, run.at, run.count, run.from, run.d);
    __syncthreads();
    dots_all<T, A, R>(a, plan, tile, basis, run.d, parts, coef);
    for (int64_t i = threadIdx.x; i < a.k * R; i += kThreads) {
      const int64_t j = i / R, r = i % R;
      if (r < run.count) out[(run.split * (end - begin) + run.at - begin + r) * a.k + j] = coef[i];
    }
  });
}

// Bytes of shared memory beside the tile.
inline int64_t fixed_bytes(int64_t k, int rows, int64_t size) {
  return ((k * rows + 3) / 4 * 4 + kWarps * kCols * rows) * size;
}

// Rows of `d` values of `size` bytes: staged whole if they fit into `fits` bytes, otherwise in pieces; no splits if not
// even those fit.
inline Plan cut(int64_t d, int64_t size, int rows, int64_t fits) {
  const int64_t step = size < 4 ? 16 : 4;  // 16 bytes, and four values
  const int64_t pitch = (d + step - 1) / step * step;
  if (rows * pitch * size <= fits) return {d, pitch, 1};
  const int64_t room = (fits < kSegment ? fits : kSegment) / (rows * size);
  const int64_t segment = room / 16 * 16;
  if (segment < 16) return {0, 0, 0};
  return {segment, segment, (d + segment - 1) / segment};
}

// Rows whose values stay in half of the L2 between two kernels.
inline int64_t chunk_of(int64_t d, int64_t size, int rows) {
  const int64_t some = attribute(cudaDevAttrL2CacheSize) / 2 / (d * size) / rows * rows;
  return some < rows ? rows : some;
}

// Blocks for the groups of `n` rows in `splits` pieces.
inline int64_t grid_of(int64_t n, int rows, int64_t splits) {
  const int64_t work = (n + rows - 1) / rows * splits, most = 4 * (int64_t)attribute(cudaDevAttrMultiProcessorCount);
  return work < most ? work : most;
}

}  // namespace cuda
}  // namespace ulfast
