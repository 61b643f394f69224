// flags: -ffp-contract=fast
//
// softmax_regression_step: forward, loss, gradient and update of a linear classifier in one pass over the rows.
//
// Bytes: n d (uint8 rows). Flops: 4 n d c. At c = 10 the multiply-adds bound it, not memory. Rows are processed in
// groups that stay in the second-level cache between the forward products and the gradient.
#include "table.h"
#include "tiles.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kGroup = 32;  // rows at a time
// Features at a time in the forward products: the weights of a tile of classes stay in the second-level cache for all
// rows of the group. Shorter blocks would fit the first level, but add up their sums more often.
constexpr int64_t kForward = 4096;
constexpr int kClasses = kRegisters == 32 ? 10 : 5;  // gradient rows a register tile holds (two vectors each)
// Bytes become floats once for every tile of classes. From three tiles of the smaller kind on it is quicker to keep the
// floats: so many features at a time, which for a group fit into the first-level cache.
constexpr bool kMayKeep = kRegisters == 16;
constexpr int64_t kKept = 96;

double exp_(double x) { return __builtin_exp(x); }

// grad[j, i] += sum_r p[r, j] * x[r, i] for K classes over all rows of the group: U vectors at feature i.
template <int K, int U, class T> ULFAST_INLINE void outer_vectors(const T* const* x, int64_t rows, int64_t i,
                                                                  const float* p, int64_t ps, float* grad, int64_t gs) {
  constexpr int n = Vec<float>::size;
  vecf acc[K][U];
  for (int j = 0; j < K; ++j)
    for (int u = 0; u < U; ++u) acc[j][u] = load(grad + j * gs + i + u * n);
  for (int64_t r = 0; r < rows; ++r) {
    vecf xv[U];
    for (int u = 0; u < U; ++u) xv[u] = load_as(x[r] + i + u * n);
    for (int j = 0; j < K; ++j) {
      const vecf pv = splat<float>(p[r * ps + j]);
      for (int u = 0; u < U; ++u) acc[j][u] += pv * xv[u];
    }
  }
  for (int j = 0; j < K; ++j)
    for (int u = 0; u < U; ++u) store(grad + j * gs + i + u * n, acc[j][u]);
}

template <int K, class T> ULFAST_INLINE void outer(const T* const* x, int64_t rows, int64_t d, const float* p,
                                                   int64_t ps, float* grad, int64_t gs) {
  constexpr int n = Vec<float>::size;
  int64_t i = 0;
  for (; i + 2 * n <= d; i += 2 * n) outer_vectors<K, 2>(x, rows, i, p, ps, grad, gs);
  for (; i + n <= d; i += n) outer_vectors<K, 1>(x, rows, i, p, ps, grad, gs);
  for (; i < d; ++i)
    for (int j = 0; j < K; ++j) {
      float s = grad[j * gs + i];
      for (int64_t r = 0; r < rows; ++r) s += p[r * ps + j] * to_float(x[r][i]);
      grad[j * gs + i] = s;
    }
}

template <class T> ULFAST_INLINE void outer_all(const T* const* x, int64_t rows, int64_t d, int64_t c, const float* p,
                                                int64_t ps, float* grad, int64_t gs) {
  int64_t j = 0;
  for (; j + kClasses <= c; j += kClasses) outer<kClasses>(x, rows, d, p + j, ps, grad + j * gs, gs);
  if constexpr (kClasses > 5)
    for (; j + 5 <= c; j += 5) outer<5>(x, rows, d, p + j, ps, grad + j * gs, gs);
  for (; j + 2 <= c; j += 2) outer<2>(x, rows, d, p + j, ps, grad + j * gs, gs);
  for (; j < c; ++j) outer<1>(x, rows, d, p + j, ps, grad + j * gs, gs);
}

// The same, with the rows widened once.
template <class T>
ULFAST_INLINE void outer_kept(const T* const* x, int64_t rows, int64_t d, int64_t c, const float* p, float* grad) {
  alignas(64) float tile[kGroup * kKept];
  const float* kept[kGroup];
  for (int64_t r = 0; r < rows; ++r) kept[r] = tile + r * kKept;
  for (int64_t i = 0; i < d; i += kKept) {
    const int64_t now = d - i < kKept ? d - i : kKept;
    for (int64_t r = 0; r < rows; ++r) widen(x[r] + i, now, tile + r * kKept);
    outer_all(kept, rows, now, c, p, c, grad + i, d);
  }
}

// Logits in p become softmax minus one-hot, times `scale`; returns the row's loss. Float64, as the loss of a row near 0
// needs.
ULFAST_INLINE double residual(float* p, int64_t c, int64_t label, double scale, bool* correct) {
  int64_t best = 0;
  for (int64_t j = 1; j < c; ++j)
    if (p[j] > p[best]) best = j;
  const double top = p[best];
  const double chosen = p[label];
  double total = 0;
  for (int64_t j = 0; j < c; ++j) {
    const double e = exp_(p[j] - top);
    total += e;
    p[j] = (float)e;
  }
  const double loss = __builtin_log(total) + top - chosen, share = scale / total;
  for (int64_t j = 0; j < c; ++j) p[j] = (float)(p[j] * share);
  p[label] -= (float)scale;
  *correct = best == label;
  return loss;
}

// Adds the products of R rows' features [i, i + d) with `classes` rows of weights to their logits p.
template <class T, int R> ULFAST_INLINE void forward(const SoftmaxRegressionStep& a, const T* const* x, int64_t i,
                                                     int64_t d, const float* weight, int64_t classes, float* p) {
  Rows<const T*, R> rows;
  for (int r = 0; r < R; ++r) rows.row[r] = x[r] + i;
  dots_all(rows, weight + i, a.d, d, classes, p, a.c);
}

template <class T> void run(const SoftmaxRegressionStep& a, float* grad, double* result, int64_t begin, int64_t end) {
  constexpr float unit = sizeof(T) == 1 ? kUnit : 1.0f;
  for (int64_t g = begin; g < end; g += kGroup) {
    const int64_t rows = end - g < kGroup ? end - g : kGroup;
    float* p = a.coef + g * a.c;
    const T* x[kGroup];
    for (int64_t r = 0; r < rows; ++r) x[r] = static_cast<const T*>(a.x) + (a.index ? a.index[g + r] : g + r) * a.d;
    for (int64_t i = 0; i < rows * a.c; ++i) p[i] = 0;
    for (int64_t i = 0; i < a.d; i += kForward) {
      const int64_t d = a.d - i < kForward ? a.d - i : kForward;
      for (int64_t j = 0, now; j < a.c; j += now) {
        now = even_tile(a.c - j);
        const float* weight = a.weight + j * a.d;
        int64_t r = 0;
        for (; r + kRows <= rows; r += kRows) forward<T, kRows>(a, x + r, i, d, weight, now, p + r * a.c + j);
        for (; r < rows; ++r) forward<T, 1>(a, x + r, i, d, weight, now, p + r * a.c + j);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      bool correct;
      if (unit != 1.0f)
        for (int64_t j = 0; j < a.c; ++j) p[r * a.c + j] *= unit;
      const int64_t label = a.labels[a.index ? a.index[g + r] : g + r];
      result[0] += residual(p + r * a.c, a.c, label, unit, &correct);
      result[1] += correct;
    }
    if (!grad) continue;
    // Rows are drawn at random: the next group's rows are prefetched while this one's gradient is computed.
    for (int64_t r = g + kGroup; r < g + 2 * kGroup && r < end; ++r)
      for (int64_t t = 0; t < a.d; t += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(static_cast<const T*>(a.x) + (a.index ? a.index[r] : r) * a.d + t);
    if constexpr (kMayKeep && sizeof(T) == 1)
      if (a.c > 2 * kClasses) {
        outer_kept(x, rows, a.d, a.c, p, grad);
        continue;
      }
    outer_all(x, rows, a.d, a.c, p, a.c, grad, a.d);
  }
}

}  // namespace

void softmax_gradient(const SoftmaxRegressionStep& a, float* grad, double* result, int64_t begin, int64_t end) {
  if (a.dtype == DType::u8)
    run<uint8_t>(a, grad, result, begin, end);
  else
    run<float>(a, grad, result, begin, end);
}

void softmax_update(const SoftmaxRegressionStep& a, int threads, float scale, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float s = a.grad[i];
    for (int t = 1; t < threads; ++t) s += a.grad[t * a.c * a.d + i];
    a.weight[i] -= scale * s;
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
