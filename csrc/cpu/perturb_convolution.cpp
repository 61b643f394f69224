// flags: -ffp-contract=off
//
// perturb_convolution: every image convolved with its class's filter (zero border, the same filter for all channels),
// divided by its largest value, and truncated to bytes.
//
// Bytes: 2 n d. Flops: 2 n d side^2, which bound it (convolution.h). Compiled without contraction: the taps are added
// in reading order, as the twin does, bit for bit on every level.
#include "convolution.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

ULFAST_INLINE void finish(const float* y, float most, uint8_t* out, int64_t d) {
  const vecf divisor = vecf{} + most, full = vecf{} + 255.0f;
  int64_t i = 0;
  for (; i + kN <= d; i += kN) {
    const vecf v = larger(load(y + i) / divisor * full, vecf{});
    narrow_bytes(out + i, __builtin_convertvector(v, veci));
  }
  for (; i < d; ++i) {
    const float v = y[i] / most * 255.0f;
    out[i] = (uint8_t)(int)(v > 0.0f ? v : 0.0f);
  }
}

}  // namespace

void perturb_convolution(const PerturbConvolution& a, float* scratch, int64_t begin, int64_t end) {
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
    const float most = convolve(padded, weights, a.side, stride, a.c, a.h, wc, y);
    if (most > 0) {
      finish(y, most, a.out + n * d, d);
    } else {  // black stays black
      for (int64_t i = 0; i < d; ++i) a.out[n * d + i] = 0;
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
