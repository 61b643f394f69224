// class_moments: sums and sums of squares of every value over the images of each class, exact whole numbers.
//
// Bytes: n d, read once. Flops: 3 n d. The accumulators of a block of features stay in the first-level cache while the
// images of a class go by; a float holds 256 squares of a byte exactly, then they are added to the 64-bit result.
#include "simd.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int64_t kExact = 256;  // rows: 256 * 255^2 < 2^24

void add(const uint8_t* x, float* sum, float* square, int64_t d) {
  constexpr int n = Vec<float>::size;
  int64_t i = 0;
  for (; i + n <= d; i += n) {
    const vecf v = load_as(x + i);
    store(sum + i, load(sum + i) + v);
    store(square + i, load(square + i) + v * v);
  }
  for (; i < d; ++i) {
    const float v = (float)x[i];
    sum[i] += v;
    square[i] += v * v;
  }
}

// Two rows at a time halve the traffic of the accumulators.
void add_two(const uint8_t* x, const uint8_t* y, float* sum, float* square, int64_t d) {
  constexpr int n = Vec<float>::size;
  int64_t i = 0;
  for (; i + n <= d; i += n) {
    const vecf v = load_as(x + i), w = load_as(y + i);
    store(sum + i, load(sum + i) + (v + w));
    store(square + i, load(square + i) + (v * v + w * w));
  }
  for (; i < d; ++i) {
    const float v = (float)x[i], w = (float)y[i];
    sum[i] += v + w;
    square[i] += v * v + w * w;
  }
}

}  // namespace

void moments(const ClassMoments& a, float* scratch, int64_t begin, int64_t end) {
  float *sum = scratch, *square = scratch + class_moments_block;
  for (int64_t f = begin; f < end; f += class_moments_block) {
    const int64_t d = end - f < class_moments_block ? end - f : class_moments_block;
    for (int64_t at = 0; at < a.n;) {
      const int64_t label = a.labels[a.order[at]];
      for (int64_t i = 0; i < d; ++i) sum[i] = square[i] = 0;
      int64_t stop = at;
      while (stop < a.n && stop - at < kExact && a.labels[a.order[stop]] == label) ++stop;
      for (; at + 2 <= stop; at += 2)
        add_two(a.x + a.order[at] * a.d + f, a.x + a.order[at + 1] * a.d + f, sum, square, d);
      for (; at < stop; ++at) add(a.x + a.order[at] * a.d + f, sum, square, d);
      int64_t *sums = a.sums + label * a.d + f, *squares = a.squares + label * a.d + f;
      for (int64_t i = 0; i < d; ++i) {
        sums[i] += (int64_t)sum[i];
        squares[i] += (int64_t)square[i];
      }
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
