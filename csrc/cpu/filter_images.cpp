// flags: -ffp-contract=off
//
// filter_images: filters every image with its own kernel, the same for all channels; the border is replicated.
//
// Bytes: n d (1 or 4, and 4). Flops: 2 n d side^2. An image is copied once, with its border, to scratch memory, and its
// result is clamped while it is in the cache. The taps are added in reading order on every level (convolution.h).
#include "convolution.h"
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

template <class T> void run(const FilterImages& a, float* bordered, int64_t begin, int64_t end) {
  const int64_t wc = a.w * a.c, d = a.h * wc, r = a.side / 2, stride = (a.w + a.side - 1) * a.c;
  for (int64_t n = begin; n < end; ++n) {
    const T* x = static_cast<const T*>(a.x) + n * d;
    for (int64_t y = 0; y < a.h + 2 * r; ++y) {
      const int64_t from = y < r ? 0 : y >= a.h + r ? a.h - 1 : y - r;
      float* to = bordered + y * stride;
      if (y == 0 || (y > r && y < a.h + r)) {  // others repeat the line before
        for (int64_t i = 0; i < wc; ++i) to[r * a.c + i] = unit(x[from * wc + i]);
        for (int64_t i = r * a.c - 1; i >= 0; --i) to[i] = to[i + a.c];
        for (int64_t i = r * a.c + wc; i < stride; ++i) to[i] = to[i - a.c];
      } else {
        __builtin_memcpy(to, to - stride, stride * sizeof(float));
      }
    }
    float* out = a.out + n * d;
    convolve(bordered, a.kernels + n * a.side * a.side, a.side, stride, a.c, a.h, wc, out);
    if (a.clamp)
      for (int64_t i = 0; i < d; ++i) out[i] = out[i] < 0.0f ? 0.0f : out[i] > 1.0f ? 1.0f : out[i];
  }
}

}  // namespace

void filter_images(const FilterImages& a, float* scratch, int64_t begin, int64_t end) {
  a.dtype == DType::u8 ? run<uint8_t>(a, scratch, begin, end) : run<float>(a, scratch, begin, end);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
