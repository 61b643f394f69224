// flags: -ffp-contract=fast
//
// project: out = x - (x B^T) B, one pass over x; project_classwise: the same with the basis of each row's label.
//
// Bytes (float32): 8 n d. Flops: 4 n d k. Bound: the larger of bytes / copy bandwidth and flops / multiply-add rate;
// at k = 10 both are near on a two-core AVX-512 machine. Rows are processed in groups that stay in the second-level
// cache between the products and the update; d is cut into blocks so that the block of the basis stays in the first
// level and is fetched once per group, not once per row; with few registers the basis is packed for that (packed.h).
// Class-wise, rows are visited in the order of their labels, so that a group shares its basis there too; the caller
// sorts nothing.
#include "packed.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int64_t kBlock = 4224;          // features at a time, at most
constexpr int64_t kPart = 192;            // a block is a whole number of these: of vectors, and of chunks
constexpr int64_t kGroupBytes = 1 << 19;  // of x that should stay in the second-level cache

template <class T> constexpr bool kByte = sizeof(T) == 1;

// Rows of type T, staged to floats where they are not.
template <class T, int R> struct Stage {
  using A = typename Compute<T>::type;
  alignas(64) A tile[R * kBlock];
  Rows<const A*, R> rows(const Rows<const T*, R>& x, int64_t d) {
    for (int r = 0; r < R; ++r) widen(x.row[r], d, tile + r * kBlock);
    return strided<R>((const A*)tile, kBlock);
  }
};
template <int R> struct Stage<float, R> {
  Rows<const float*, R> rows(const Rows<const float*, R>& x, int64_t) { return x; }
};
template <int R> struct Stage<double, R> {
  Rows<const double*, R> rows(const Rows<const double*, R>& x, int64_t) { return x; }
};

// Writes d projected features of each row to their places; streaming stores go row by row, so that lines are full.
template <class A, class O, int R>
ULFAST_INLINE void leave(const Rows<const A*, R>& from, const Rows<O*, R>& out, int64_t d) {
  constexpr int n = Vec<A>::size;
  for (int r = 0; r < R; ++r)
    for (int64_t i = 0; i < d; i += n) Put<O, true>::vector(out.row[r] + i, load(from.row[r] + i));
}

// Features [i, i + d) of the R rows at a position: their products with the basis, or the update by them.
template <class T, class O, int R, bool Stream>
ULFAST_INLINE void block(const Project& a, const typename Compute<T>::type* basis, int64_t at, int64_t i, int64_t d,
                         bool update) {
  using A = typename Compute<T>::type;
  Rows<const T*, R> x;
  Rows<O*, R> out;
  for (int r = 0; r < R; ++r) {
    const int64_t row = a.order ? a.order[at + r] : at + r;
    x.row[r] = static_cast<const T*>(a.x) + row * a.x_stride + i;
    out.row[r] = static_cast<O*>(a.out) + row * a.d + i;
  }
  Stage<T, R> stage;
  auto rows = stage.rows(x, d);
  A* coef = static_cast<A*>(a.coef) + at * a.k;
  basis += i;
  if constexpr (kPacks) {
    // Whole chunks, then the rest, packed or not: a row's bits do not depend on the other rows.
    const int64_t some = d / kChunk<A>, whole = some * kChunk<A>;
    const A* packed = static_cast<const A*>(a.packed) + i * a.k;
    if (!update) {
      a.packed ? packed_dots_all(rows, packed, a.k, some, coef, a.k)
               : dots_all(rows, basis, a.d, whole, a.k, coef, a.k);
    } else if (!a.packed) {
      subtract<A, O, R, kByte<T>, Stream>(rows, basis, a.d, whole, a.k, coef, a.k, out);
    } else if constexpr (Stream) {
      alignas(64) A tile[R * kBlock];
      packed_subtract<A, A, R, kByte<T>>(rows, packed, a.k, some, coef, a.k, strided<R>((A*)tile, kBlock));
      leave(strided<R>((const A*)tile, kBlock), out, whole);
    } else {
      packed_subtract<A, O, R, kByte<T>>(rows, packed, a.k, some, coef, a.k, out);
    }
    basis += whole, d -= whole;
    for (int r = 0; r < R; ++r) rows.row[r] += whole, out.row[r] += whole;
    if (d == 0) return;
  }
  if (update)
    subtract<A, O, R, kByte<T>, Stream>(rows, basis, a.d, d, a.k, coef, a.k, out);
  else
    dots_all(rows, basis, a.d, d, a.k, coef, a.k);
}

// Positions [begin, end), all by the same basis.
template <class T, class O, bool Stream>
void run(const Project& a, const typename Compute<T>::type* basis, int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  const int64_t fit = kGroupBytes / (a.d * (int64_t)sizeof(T));
  // Many rows share one fetch of a basis that is too large for the core's caches.
  const int64_t group = (fit < 32 ? 32 : fit) / kRows * kRows;
  const int64_t blocks = (a.d + kBlock - 1) / kBlock, even = ((a.d + blocks - 1) / blocks + kPart - 1) / kPart * kPart;
  A* coef = static_cast<A*>(a.coef);
  for (int64_t g = begin; g < end; g += group) {
    const int64_t stop = g + group < end ? g + group : end;
    for (int64_t i = g * a.k; i < stop * a.k; ++i) coef[i] = 0;
    for (int update = 0; update < 2; ++update) {
      for (int64_t i = 0; i < a.d; i += even) {
        const int64_t d = a.d - i < even ? a.d - i : even;
        int64_t at = g;
        if (update && !(kPacks && a.packed))
          for (; at + kUpdateRows <= stop; at += kUpdateRows)
            block<T, O, kUpdateRows, Stream>(a, basis, at, i, d, true);
        for (; at + kRows <= stop; at += kRows) block<T, O, kRows, Stream>(a, basis, at, i, d, update);
        for (; at < stop; ++at) block<T, O, 1, Stream>(a, basis, at, i, d, update);
      }
      if (kByte<T> && !update)
        for (int64_t i = g * a.k; i < stop * a.k; ++i) coef[i] *= (A)kUnit;
    }
  }
}

// The whole range with one basis, or run by run of the same label.
template <class T, class O, bool Stream> void run(const Project& a, int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  const A* bases = static_cast<const A*>(a.basis);
  if (!a.labels) return run<T, O, Stream>(a, bases, begin, end);
  while (begin < end) {
    const int64_t label = a.labels[a.order[begin]];
    int64_t stop = begin + 1;
    while (stop < end && a.labels[a.order[stop]] == label) ++stop;
    run<T, O, Stream>(a, bases + label * a.k * a.d, begin, stop);
    begin = stop;
  }
}

}  // namespace

int64_t chunks(const Project& a) {
  if (!kPacks || a.labels) return 0;
  return a.dtype == DType::f64 ? a.d / kChunk<double> : a.d / kChunk<float>;
}

void pack(const Project& a, int64_t begin, int64_t end) {
  if (a.dtype == DType::f64)
    pack_chunks(static_cast<const double*>(a.basis), a.k, a.d, static_cast<double*>(a.packed), begin, end);
  else
    pack_chunks(static_cast<const float*>(a.basis), a.k, a.d, static_cast<float*>(a.packed), begin, end);
}

void project(const Project& a, int64_t begin, int64_t end) {
  // Streaming stores need every vector aligned.
  const bool big =
      a.n * a.d * 4 >= kStreamBytes && reinterpret_cast<uintptr_t>(a.out) % kBytes == 0 && a.d * 4 % kBytes == 0;
  switch (a.dtype) {
    case DType::u8:
      return big ? run<uint8_t, float, true>(a, begin, end) : run<uint8_t, float, false>(a, begin, end);
    case DType::f32:
      return big ? run<float, float, true>(a, begin, end) : run<float, float, false>(a, begin, end);
    case DType::f16:
      return run<f16, f16, false>(a, begin, end);
    case DType::bf16:
      return run<bf16, bf16, false>(a, begin, end);
    case DType::f64:
      return run<double, double, false>(a, begin, end);
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
