// flags: -ffp-contract=off
//
// pgd_step: a sign or L2 step along the gradient, back into the ball around the start, back into [0, 1].
//
// Bytes: 16 n d (three reads, one write), bound by memory in one pass for L-infinity. L2 needs two norms of a row
// before scaling it; a row of 12 KB stays in the first-level cache meanwhile, so memory traffic is still one pass.
#include "table.h"
#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kN = Vec<float>::size;
constexpr int64_t kPart = 1024;  // values summed in float before they are added to a double

template <class V> ULFAST_INLINE V between(V v, V low, V high) {
  v = v > low ? v : low;
  return v < high ? v : high;
}

template <bool Clamp> void linf_row(const PgdStep& a, int64_t row) {
  float* x = a.x + row * a.d;
  const float *g = a.grad + row * a.d, *s = a.start + row * a.d;
  const vecf zero = {}, one = zero + 1.0f, up = zero + a.alpha, down = -up, bound = zero + a.eps;
  int64_t i = 0;
  for (; i + kN <= a.d; i += kN) {
    const vecf gv = load(g + i), sv = load(s + i);
    const vecf step = gv > zero ? up : gv < zero ? down : zero;  // none along a gradient of zero, or NaN
    vecf v = sv + between(load(x + i) + step - sv, -bound, bound);
    if (Clamp) v = between(v, zero, one);
    store(x + i, v);
  }
  for (; i < a.d; ++i) {
    const float step = g[i] > 0 ? a.alpha : g[i] < 0 ? -a.alpha : 0.0f;
    float v = s[i] + between(x[i] + step - s[i], -a.eps, a.eps);
    if (Clamp) v = between(v, 0.0f, 1.0f);
    x[i] = v;
  }
}

// Squares of f(i) summed over the row.
template <class F, class G> ULFAST_INLINE double squares(int64_t d, F&& vector, G&& scalar) {
  double total = 0;
  int64_t i = 0;
  while (i + kN <= d) {
    const int64_t whole = d - (d - i) % kN, stop = i + kPart < whole ? i + kPart : whole;
    vecf part = {};
    for (; i + kN <= stop; i += kN) {
      const vecf v = vector(i);
      part += v * v;
    }
    total += sum(part);
  }
  for (; i < d; ++i) total += (double)scalar(i) * scalar(i);
  return total;
}

ULFAST_INLINE double norm_of(double squares) { return squares > 1e-24 ? __builtin_sqrt(squares) : 1e-12; }

template <bool Clamp> void l2_row(const PgdStep& a, int64_t row) {
  float* x = a.x + row * a.d;
  const float *g = a.grad + row * a.d, *s = a.start + row * a.d;
  const double size = squares(a.d, [&](int64_t i) { return load(g + i); }, [&](int64_t i) { return g[i]; });
  const float step = (float)(a.alpha / norm_of(size));
  const vecf stepv = vecf{} + step;
  const double away = norm_of(squares(
      a.d, [&](int64_t i) { return load(x + i) + stepv * load(g + i) - load(s + i); },
      [&](int64_t i) { return x[i] + step * g[i] - s[i]; }));
  const float shrink = away > a.eps ? (float)(a.eps / away) : 1.0f;
  const vecf zero = {}, one = zero + 1.0f, shrinkv = zero + shrink;
  int64_t i = 0;
  for (; i + kN <= a.d; i += kN) {
    const vecf sv = load(s + i);
    vecf v = sv + shrinkv * (load(x + i) + stepv * load(g + i) - sv);
    if (Clamp) v = between(v, zero, one);
    store(x + i, v);
  }
  for (; i < a.d; ++i) {
    float v = s[i] + shrink * (x[i] + step * g[i] - s[i]);
    if (Clamp) v = between(v, 0.0f, 1.0f);
    x[i] = v;
  }
}

}  // namespace

void pgd_step(const PgdStep& a, float*, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (a.norm == Norm::l2)
      a.clamp ? l2_row<true>(a, row) : l2_row<false>(a, row);
    else
      a.clamp ? linf_row<true>(a, row) : linf_row<false>(a, row);
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
