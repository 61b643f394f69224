// perturb_convolution: every image convolved with its class's filter (zero border, the same filter for all channels),
// divided by its largest value, back to bytes by truncation.
//
// Bytes: 2 n d. Flops: 2 n d side^2, which bound it. In NHWC order a shift by one pixel is a shift by c values, so a
// row of the result is side^2 shifted rows of the bordered image, each times one weight. Compiled without contraction:
// the taps are added in reading order, as the twin does, bit for bit on every level.
#include "simd.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kN = Vec<float>::size;

// Sum over the taps of weight * in[its offset] for one vector.
ULFAST_INLINE vecf taps(const float* in, const float* weights, int64_t side, int64_t stride, int64_t c) {
  vecf acc = {};
  for (int64_t dy = 0; dy < side; ++dy)
    for (int64_t dx = 0; dx < side; ++dx)
      acc += splat<float>(weights[dy * side + dx]) * load(in + dy * stride + dx * c);
  return acc;
}

// One row of the result, m values; returns the largest of them, or zero.
float row(const float* in, const float* weights, int64_t side, int64_t stride, int64_t c, int64_t m, float* out) {
  constexpr int U = 4;
  vecf top = {};
  int64_t i = 0;
  for (; i + U * kN <= m; i += U * kN) {
    vecf acc[U] = {};
    for (int64_t dy = 0; dy < side; ++dy)
      for (int64_t dx = 0; dx < side; ++dx) {
        const vecf w = splat<float>(weights[dy * side + dx]);
        const float* from = in + dy * stride + dx * c + i;
        for (int u = 0; u < U; ++u) acc[u] += w * load(from + u * kN);
      }
    for (int u = 0; u < U; ++u) {
      store(out + i + u * kN, acc[u]);
      top = acc[u] > top ? acc[u] : top;
    }
  }
  for (; i + kN <= m; i += kN) {
    const vecf acc = taps(in + i, weights, side, stride, c);
    store(out + i, acc);
    top = acc > top ? acc : top;
  }
  float most = 0;
  for (int u = 0; u < kN; ++u) most = top[u] > most ? top[u] : most;
  for (; i < m; ++i) {
    float s = 0;
    for (int64_t dy = 0; dy < side; ++dy)
      for (int64_t dx = 0; dx < side; ++dx) s += weights[dy * side + dx] * in[dy * stride + dx * c + i];
    out[i] = s;
    most = s > most ? s : most;
  }
  return most;
}

ULFAST_INLINE void finish(const float* y, float most, uint8_t* out, int64_t d) {
  const vecf divisor = vecf{} + most, full = vecf{} + 255.0f;
  int64_t i = 0;
  for (; i + kN <= d; i += kN) {
    vecf v = load(y + i) / divisor * full;
    v = v > 0.0f ? v : vecf{};
    narrow_bytes(out + i, __builtin_convertvector(v, veci));
  }
  for (; i < d; ++i) {
    const float v = y[i] / most * 255.0f;
    out[i] = (uint8_t)(int)(v > 0.0f ? v : 0.0f);
  }
}

}  // namespace

void convolve(const Convolve& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t wc = a.w * a.c, d = a.h * wc, before = a.side / 2;
  const int64_t stride = (a.w + a.side) * a.c;
  float *padded = scratch, *y = scratch + (a.h + a.side) * stride;
  for (int64_t i = 0; i < (a.h + a.side) * stride; ++i) padded[i] = 0;  // the border stays zero
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* x = a.images + n * d;
    for (int64_t r = 0; r < a.h; ++r) {
      float* to = padded + (r + before) * stride + before * a.c;
      int64_t i = 0;
      for (; i + kN <= wc; i += kN) store(to + i, load_as(x + r * wc + i));
      for (; i < wc; ++i) to[i] = (float)x[r * wc + i];
    }
    const float* weights = a.kernels + a.labels[n] * a.side * a.side;
    float most = 0;
    for (int64_t r = 0; r < a.h; ++r) {
      const float top = row(padded + r * stride, weights, a.side, stride, a.c, wc, y + r * wc);
      most = top > most ? top : most;
    }
    if (most > 0) {
      finish(y, most, a.out + n * d, d);
    } else {  // black stays black
      for (int64_t i = 0; i < d; ++i) a.out[n * d + i] = 0;
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
