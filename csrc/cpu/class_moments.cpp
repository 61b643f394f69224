// flags: -ffp-contract=fast
//
// class_moments: sums and sums of squares of every value over the images of each class, exact, in integers.
//
// Bytes: n d, read once. Flops: 3 n d. The accumulators of a block of features stay in the first-level cache while the
// images of a class are read; a float holds the sum of 256 squared bytes exactly, which is then added to the 64-bit
// result.
#include "simd.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int64_t kExact = 256;  // rows: 256 * 255^2 < 2^24

// R rows at a time: the accumulators are read and written only once for all of them.
template <int R> void add(const uint8_t* const* x, int64_t first, float* sum, float* square, int64_t d) {
  constexpr int n = Vec<float>::size;
  int64_t i = 0;
  for (; i + n <= d; i += n) {
    vecf s = load(sum + i), q = load(square + i);
    for (int r = 0; r < R; ++r) {
      const vecf v = load_as(x[r] + first + i);
      s += v;
      q += v * v;
    }
    store(sum + i, s);
    store(square + i, q);
  }
  for (; i < d; ++i)
    for (int r = 0; r < R; ++r) {
      const float v = (float)x[r][first + i];
      sum[i] += v;
      square[i] += v * v;
    }
}

}  // namespace

void class_moments(const ClassMoments& a, float* scratch, int64_t begin, int64_t end) {
  float *sum = scratch, *square = scratch + class_moments_block;
  for (int64_t f = begin; f < end; f += class_moments_block) {
    const int64_t d = end - f < class_moments_block ? end - f : class_moments_block;
    for (int64_t at = 0; at < a.n;) {
      const int64_t label = a.labels[a.order[at]];
      for (int64_t i = 0; i < d; ++i) sum[i] = square[i] = 0;
      int64_t stop = at;
      while (stop < a.n && stop - at < kExact && a.labels[a.order[stop]] == label) ++stop;
      while (at < stop) {
        constexpr int R = 8;
        const int some = stop - at < R ? 1 : R;
        const uint8_t* rows[R];
        for (int r = 0; r < some; ++r) rows[r] = a.images + a.order[at + r] * a.d;
        if (some == R)
          add<R>(rows, f, sum, square, d);
        else
          add<1>(rows, f, sum, square, d);
        at += some;
      }
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
