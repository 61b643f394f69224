// flags: -ffp-contract=fast
//
// patch_filter: out = x - filter(x), where the filter of a pixel depends on its distance to the border.
//
// Bytes: 8 n d. Flops: 2 n d taps^2 c, which bound it. Images are NHWC, so a tap is a shift by a whole number of
// values, and its weight in a lane depends on the lane's channel and, near the border, on its column. The weights are
// passed as vectors, made once per call (ulfast/ops/cpu_filters.py). A vector of weights serves four images, so that
// loads do not outnumber multiplications by more than two.
#include "simd.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kN = Vec<float>::size;
constexpr int kU = 3;  // vectors of a part: a multiple of the three channels
constexpr int kPart = kU * kN;
constexpr int kImages = patch_filter_images;
static_assert(patch_filter_lanes % kPart == 0, "a block is whole parts on every level");

template <int G> void filter(const PatchFilter& a, float* bordered, int64_t first) {
  const int64_t line = a.w * a.c, d = a.h * line, r = a.taps / 2, reach = patch_filter_reach(a.taps, a.c);
  const int64_t offsets = 2 * reach + 1, pitch = line + 2 * reach, apart = a.h * pitch;
  const float* x = a.x + first * d;
  float* out = a.out + first * d;
  for (int64_t row = 0; row < G * a.h; ++row) {
    float* to = bordered + row * pitch;
    __builtin_memset(to, 0, reach * sizeof(float));
    __builtin_memcpy(to + reach, x + row * line, line * sizeof(float));
    __builtin_memset(to + reach + line, 0, reach * sizeof(float));
  }
  for (int64_t y = 0; y < a.h; ++y) {
    const int64_t kind = y < r ? y : y >= a.h - r ? a.taps - (a.h - y) : r;
    for (int64_t b = 0; b < a.blocks; ++b) {
      const float* weights = a.table + (a.ids[b] * a.taps + kind) * a.taps * offsets * patch_filter_lanes;
      for (int64_t at = 0; at < patch_filter_lanes; at += kPart) {
        const int64_t j = a.starts[b] + at;
        vecf acc[G][kU] = {};
        for (int64_t dy = 0; dy < a.taps; ++dy) {
          const int64_t from = y + dy - r;
          if (from < 0 || from >= a.h) continue;  // patches are within the image, so these weights are zero
          const float* w = weights + dy * offsets * patch_filter_lanes + at;
          const float* in = bordered + from * pitch + j;
          for (int64_t o = 0; o < offsets; ++o) {
            vecf wv[kU];
            for (int u = 0; u < kU; ++u) wv[u] = load(w + o * patch_filter_lanes + u * kN);
            for (int g = 0; g < G; ++g)
              for (int u = 0; u < kU; ++u) acc[g][u] += load(in + g * apart + o + u * kN) * wv[u];
          }
        }
        for (int g = 0; g < G; ++g)
          for (int u = 0; u < kU; ++u) {
            const int64_t to = g * d + y * line + j + u * kN;
            store(out + to, load(x + to) - acc[g][u]);
          }
      }
    }
  }
}

}  // namespace

void patch_filter(const PatchFilter& a, float* bordered, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kImages <= end; i += kImages) filter<kImages>(a, bordered, i);
  for (; i < end; ++i) filter<1>(a, bordered, i);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
