// Rows of an image convolved with a filter, shared by perturb_convolution and filter_images. Files that include this
// are compiled without contraction, so that the taps are added identically on every level.
//
// In NHWC order a shift by one pixel is a shift by c values, so a row of the result is side^2 shifted rows of the
// bordered image, each times one weight. Most of those loads straddle two cache lines, so three or four rows are
// computed together and share them.
#pragma once

#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kN = Vec<float>::size;

// Rows of the result at a time (each loaded vector serves that many) and vectors of each: as the registers allow.
constexpr int kTall = kRegisters == 32 ? 4 : 3, kVectors = kRegisters == 32 ? 4 : 3;

// The contribution of one line of the bordered image to the rows [first, last] of a tile; the bounds are constants
// after inlining, so there is no branch per tap.
template <int R, int U> ULFAST_INLINE void line_taps(const float* in, const float* weights, int64_t side,
                                                     int64_t stride, int64_t c, int64_t line, int64_t i, int first,
                                                     int last, vecf (*acc)[U]) {
  for (int64_t dx = 0; dx < side; ++dx) {
    vecf v[U];
    for (int u = 0; u < U; ++u) v[u] = load(in + line * stride + dx * c + i + u * kN);
    for (int r = 0; r < R; ++r) {
      if (r < first || r > last) continue;
      const vecf w = splat<float>(weights[(line - r) * side + dx]);
      for (int u = 0; u < U; ++u) acc[r][u] += w * v[u];
    }
  }
}

// Rows y .. y + R - 1 of the result, features [i, i + U vectors), m values apart; `top` keeps the largest. Every row's
// taps are added in reading order, whatever R is.
template <int R, int U> ULFAST_INLINE void tile(const float* in, const float* weights, int64_t side, int64_t stride,
                                                int64_t c, int64_t m, int64_t i, float* out, vecf* top) {
  vecf acc[R][U] = {};
  // Only the middle lines serve every row of the tile; the others stop at, or begin with, a certain row.
  for (int last = 0; last < R - 1; ++last) line_taps<R, U>(in, weights, side, stride, c, last, i, 0, last, acc);
  for (int64_t line = R - 1; line < side; ++line) line_taps<R, U>(in, weights, side, stride, c, line, i, 0, R - 1, acc);
  for (int first = 1; first < R; ++first)
    line_taps<R, U>(in, weights, side, stride, c, side - 1 + first, i, first, R - 1, acc);
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < U; ++u) {
      store(out + r * m + i + u * kN, acc[r][u]);
      *top = larger(acc[r][u], *top);
    }
}

// R rows of the result, m values each; returns the largest of them, or zero.
template <int R>
float rows(const float* in, const float* weights, int64_t side, int64_t stride, int64_t c, int64_t m, float* out) {
  constexpr int U = kVectors;
  vecf top = {};
  int64_t i = 0;
  for (; i + U * kN <= m; i += U * kN) tile<R, U>(in, weights, side, stride, c, m, i, out, &top);
  for (; i + kN <= m; i += kN) tile<R, 1>(in, weights, side, stride, c, m, i, out, &top);
  float most = 0;
  for (int u = 0; u < kN; ++u) most = top[u] > most ? top[u] : most;
  for (; i < m; ++i)
    for (int r = 0; r < R; ++r) {
      float s = 0;
      for (int64_t dy = 0; dy < side; ++dy)
        for (int64_t dx = 0; dx < side; ++dx) s += weights[dy * side + dx] * in[(r + dy) * stride + dx * c + i];
      out[r * m + i] = s;
      most = s > most ? s : most;
    }
  return most;
}

// As many rows of the result at a time as possible: a tall tile needs a filter that reaches over all of its rows. `in`
// is the bordered image, `stride` values a row; returns the largest value, or zero.
ULFAST_INLINE float convolve(const float* in, const float* weights, int64_t side, int64_t stride, int64_t c, int64_t h,
                             int64_t m, float* out) {
  float most = 0;
  for (int64_t r = 0; r < h;) {
    const bool tall = r + kTall <= h && side >= kTall - 1;
    const auto some = tall ? rows<kTall> : rows<1>;
    const float top = some(in + r * stride, weights, side, stride, c, m, out + r * m);
    most = top > most ? top : most;
    r += tall ? kTall : 1;
  }
  return most;
}

}  // namespace

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
