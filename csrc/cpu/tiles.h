// Register tiles shared by the linear kernels: products of a few rows with the basis, and updates by it.
#pragma once

#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {

// Basis rows in a tile of products: kRows * kCols sums and their operands, in 32 or 16 registers.
constexpr int kCols = kRegisters == 32 ? 5 : 3;
// Rows and vectors of a tile of updates. With 16 registers, streaming stores take two rows at a time, so that a line or
// two of each is written at once.
constexpr int kUpdateRows = kRegisters == 32 ? kRows : 2;
template <int R> constexpr int kVectors = kRegisters == 16 && R == kRows ? 3 : 4;

// Rows at arbitrary addresses: the class-wise projection takes them out of order.
template <class P, int R> struct Rows {
  P row[R];
};
template <int R, class P> ULFAST_INLINE Rows<P, R> strided(P first, int64_t stride) {
  Rows<P, R> rows;
  for (int r = 0; r < R; ++r) rows.row[r] = first + r * stride;
  return rows;
}

// c[r, j] += sum_i x[r, i] * b[j, i] for R rows and K columns. Bytes count as 0 to 255.
template <class A, int R, int K, class X>
ULFAST_INLINE void dots(const Rows<const X*, R>& x, const A* b, int64_t bs, int64_t d, A* c, int64_t cs) {
  using V = typename Vec<A>::type;
  constexpr int n = Vec<A>::size;
  V acc[R][K] = {};
  int64_t i = 0;
  for (; i + n <= d; i += n) {
    V bv[K];
    for (int j = 0; j < K; ++j) bv[j] = load(b + j * bs + i);
    for (int r = 0; r < R; ++r) {
      const V xv = load_as(x.row[r] + i);
      for (int j = 0; j < K; ++j) acc[r][j] += xv * bv[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < K; ++j) {
      A s = sum(acc[r][j]);
      for (int64_t t = i; t < d; ++t) s += to_float(x.row[r][t]) * b[j * bs + t];
      c[r * cs + j] += s;
    }
}

// The columns of the next tile of k: 9 are split as 5 + 4, 16 as 4 x 4, so that no tile is nearly empty.
ULFAST_INLINE int64_t even_tile(int64_t k) {
  const int64_t tiles = (k + kCols - 1) / kCols;
  return (k + tiles - 1) / tiles;
}

template <class A, int R, class X> ULFAST_INLINE void dots_all(const Rows<const X*, R>& x, const A* b, int64_t bs,
                                                               int64_t d, int64_t k, A* c, int64_t cs) {
  while (k > 0) {
    const int64_t now = even_tile(k);
    switch (now) {
      case 1:
        dots<A, R, 1>(x, b, bs, d, c, cs);
        break;
      case 2:
        dots<A, R, 2>(x, b, bs, d, c, cs);
        break;
      case 3:
        dots<A, R, 3>(x, b, bs, d, c, cs);
        break;
      default:  // four or five, if the registers hold them
        if constexpr (kCols > 3) now == 4 ? dots<A, R, 4>(x, b, bs, d, c, cs) : dots<A, R, 5>(x, b, bs, d, c, cs);
        break;
    }
    b += now * bs, c += now, k -= now;
  }
}

// The store of a projected vector: as the output's type, through the cache or past it.
template <class O, bool Stream> struct Put {
  template <class V> ULFAST_INLINE void vector(O* p, V v) {
    if constexpr (Stream)
      stream(p, v);
    else
      store_as(p, v);
  }
};

// Bytes are read as x / 255 with two constants: the float nearest to 1/255 and its error, so that the quotient is
// rounded once, together with the subtraction.
constexpr float kUnit = 1.0f / 255.0f;
constexpr float kUnitRest = (float)(1.0 / 255.0 - (double)kUnit);

// U vectors of `subtract`: those of the basis at b, of the rows at feature i.
template <class A, class O, int R, bool Bytes, bool Stream, int U>
ULFAST_INLINE void subtract_vectors(const Rows<const A*, R>& x, const A* b, int64_t bs, int64_t k, const A* c,
                                    int64_t cs, const Rows<O*, R>& out, int64_t i) {
  using V = typename Vec<A>::type;
  constexpr int n = Vec<A>::size;
  V acc[R][U] = {};
  for (int64_t j = 0; j < k; ++j) {
    V bv[U];
    for (int u = 0; u < U; ++u) bv[u] = load(b + j * bs + u * n);
    for (int r = 0; r < R; ++r) {
      const V cv = splat<A>(c[r * cs + j]);
      for (int u = 0; u < U; ++u) acc[r][u] += cv * bv[u];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < U; ++u) {
      const V xv = load(x.row[r] + i + u * n);
      const V v = Bytes ? xv * (A)kUnit - (acc[r][u] - xv * (A)kUnitRest) : xv - acc[r][u];
      Put<O, Stream>::vector(out.row[r] + i + u * n, v);
    }
}

// out[r, i] = unit(x[r, i]) - sum_j c[r, j] * b[j, i] for R rows; x / 255 if Bytes. The coefficients are broadcast from
// memory, so that any k takes one pass with the sums in registers. The sum is taken first: it is small, and subtracting
// its terms one by one would round each time at the size of x.
template <class A, class O, int R, bool Bytes, bool Stream>
ULFAST_INLINE void subtract(const Rows<const A*, R>& x, const A* b, int64_t bs, int64_t d, int64_t k, const A* c,
                            int64_t cs, const Rows<O*, R>& out) {
  constexpr int n = Vec<A>::size;
  int64_t i = 0;
  for (; i + kVectors<R> * n <= d; i += kVectors<R> * n)
    subtract_vectors<A, O, R, Bytes, Stream, kVectors<R>>(x, b + i, bs, k, c, cs, out, i);
  for (; i + n <= d; i += n) subtract_vectors<A, O, R, Bytes, Stream, 1>(x, b + i, bs, k, c, cs, out, i);
  for (; i < d; ++i)
    for (int r = 0; r < R; ++r) {
      A s = 0;
      for (int64_t j = 0; j < k; ++j) s += c[r * cs + j] * b[j * bs + i];
      const A xv = x.row[r][i];
      const A v = Bytes ? xv * (A)kUnit - (s - xv * (A)kUnitRest) : xv - s;
      if constexpr (sizeof(A) == 8)
        out.row[r][i] = v;
      else
        out.row[r][i] = from_float<O>(v);
    }
}

// dst = x as floats; bytes stay in [0, 255].
template <class T> ULFAST_INLINE void widen(const T* x, int64_t d, float* dst) {
  constexpr int n = Vec<float>::size;
  int64_t i = 0;
  if constexpr (sizeof(T) < 8)
    for (; i + n <= d; i += n) store(dst + i, load_as(x + i));
  for (; i < d; ++i) dst[i] = (float)to_float(x[i]);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
