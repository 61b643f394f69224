// perturb_ar: autoregressive noise, scaled and put straight onto the stored image.
//
// A value is the weighted sum of the eight before it in its 3 x 3 window, so one image is serial along its rows.
// Sixteen images go side by side, a lane each, whatever their labels. Only the first two rows and columns are random:
// 2 (h + w + 6) normals a channel instead of (h + 4)(w + 4). The size of a whole image must be known before its first
// pixel can be written, and sixteen images at 224 px are 10 MB: they are swept twice, once to measure and once to
// write, with three rows in the cache at a time, which is quicker than keeping them.
//
// Arithmetic: 2 * 16 (h + 2)(w + 2) channels multiplications and additions, uncontracted; at 32 px 55,500 and 420
// normals an image. A vector of sixteen values takes 8 multiplications and 8 additions, one cycle each where both run
// side by side. Bytes: 2 d, little beside it.
#include "normals.h"
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kLanes = 16;
constexpr int kBorder = 4;  // rows and columns that the sweep starts from, and that are cut off

typedef float lanes16 __attribute__((vector_size(64)));
typedef float lanes16_loose __attribute__((vector_size(64), aligned(4), may_alias));

ULFAST_INLINE lanes16 get(const float* p) { return *reinterpret_cast<const lanes16_loose*>(p); }
ULFAST_INLINE void put(float* p, lanes16 v) { *reinterpret_cast<lanes16_loose*>(p) = v; }

// The sixteen images of a group, a row at a time. Row y of channel c is (W, lanes): the first two rows lie in `border`,
// later ones take turns in `ring`.
struct Sweep {
  int64_t H, W, channels;
  float* border;   // (channels, 2 W + 2 (H - 2), lanes): two rows, then the two first values of each row below
  float* ring;     // (channels, 3, W, lanes)
  float* weights;  // (channels, 8, lanes)

  int64_t each() const { return 2 * W + 2 * (H - 2); }

  float* row(int64_t c, int64_t y) const {
    return y < 2 ? border + (c * each() + y * W) * kLanes : ring + (c * 3 + y % 3) * W * kLanes;
  }

  // Row y >= 2 from the two above it.
  const float* next(int64_t c, int64_t y) const {
    const float *a = row(c, y - 2), *b = row(c, y - 1), *first = border + (c * each() + 2 * y + 2 * W - 4) * kLanes;
    float* out = row(c, y);
    lanes16 w[8];
    for (int t = 0; t < 8; ++t) w[t] = get(weights + (c * 8 + t) * kLanes);
    lanes16 a0 = get(a), a1 = get(a + kLanes), b0 = get(b), b1 = get(b + kLanes);
    lanes16 before2 = get(first), before1 = get(first + kLanes);
    put(out, before2);
    put(out + kLanes, before1);
    for (int64_t x = 2 * kLanes; x < W * kLanes; x += kLanes) {
      const lanes16 a2 = get(a + x), b2 = get(b + x);
      lanes16 s = w[0] * a0;
      s += w[1] * a1;
      s += w[2] * a2;
      s += w[3] * b0;
      s += w[4] * b1;
      s += w[5] * b2;
      s += w[6] * before2;
      s += w[7] * before1;
      put(out + x, s);
      a0 = a1, a1 = a2, b0 = b1, b1 = b2, before2 = before1, before1 = s;
    }
    return out;
  }
};

// Weights of the images' classes and channels, and the random border of each.
void start(const Ar& a, int64_t first, int lanes, const Sweep& sweep, float* z) {
  const int64_t each = sweep.each();
  for (int l = 0; l < kLanes; ++l) {
    const int64_t image = first + (l < lanes ? l : 0);  // empty lanes repeat the first
    for (int64_t c = 0; c < a.channels; ++c) {
      const float* from = a.coefficients + (a.labels[image] * a.channels + c) * 9;
      for (int t = 0; t < 8; ++t) sweep.weights[(c * 8 + t) * kLanes + l] = from[t];
    }
    numbers<true>((uint64_t)a.seed, philox::kStreamAr, (uint64_t)(a.first + image), a.channels * each, z);
    for (int64_t t = 0; t < a.channels * each; ++t) sweep.border[t * kLanes + l] = z[t];
  }
}

// What every lane is multiplied with: norm / its own norm, L2 in float64 or L-infinity; 1 for neither.
void scales(const Ar& a, const Sweep& sweep, float* scale) {
  double square[kLanes] = {};
  float largest[kLanes] = {};
  for (int64_t y = 2; a.kind != 0 && y < sweep.H; ++y)
    for (int64_t c = 0; c < a.channels; ++c) {
      const float* row = sweep.next(c, y);
      if (y < kBorder) continue;
      // The pragmas are needed: the compiler otherwise takes the sixteen lanes apart one by one.
      for (int64_t x = kBorder * kLanes; x < sweep.W * kLanes; x += kLanes) {
        if (a.kind == 1) {
#pragma omp simd
          for (int l = 0; l < kLanes; ++l) square[l] += (double)row[x + l] * row[x + l];
        } else {
#pragma omp simd
          for (int l = 0; l < kLanes; ++l) {
            const float v = row[x + l], size = v < 0 ? -v : v;
            largest[l] = size > largest[l] ? size : largest[l];
          }
        }
      }
    }
  for (int l = 0; l < kLanes; ++l) {
    const double length = a.kind == 2 ? largest[l] : __builtin_sqrt(square[l]);
    scale[l] = a.kind == 0 ? 1.0f : (float)(a.norm / (length > 1e-12 ? length : 1e-12));
  }
}

#if defined(__AVX512F__)
// Sixteen vectors of sixteen lanes to sixteen lines: after the step of S, value j of vector i has bit S of i and j
// exchanged.
#define ULFAST_LOW(S, j) (((j) & (S)) ? 16 + (j) - (S) : (j))
#define ULFAST_HIGH(S, j) (((j) & (S)) ? 16 + (j) : (j) + (S))
#define ULFAST_ALL(F, S)                                                                                        \
  F(S, 0), F(S, 1), F(S, 2), F(S, 3), F(S, 4), F(S, 5), F(S, 6), F(S, 7), F(S, 8), F(S, 9), F(S, 10), F(S, 11), \
      F(S, 12), F(S, 13), F(S, 14), F(S, 15)
template <int S> ULFAST_INLINE void exchange(lanes16* v) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & S) continue;
    const lanes16 low = v[i], high = v[i | S];
    v[i] = __builtin_shufflevector(low, high, ULFAST_ALL(ULFAST_LOW, S));
    v[i | S] = __builtin_shufflevector(low, high, ULFAST_ALL(ULFAST_HIGH, S));
  }
}
ULFAST_INLINE void scatter(lanes16* v, float* lines, int64_t line) {
  exchange<1>(v);
  exchange<2>(v);
  exchange<4>(v);
  exchange<8>(v);
  for (int l = 0; l < kLanes; ++l) put(lines + l * line, v[l]);
}
#else
ULFAST_INLINE void scatter(const lanes16* v, float* lines, int64_t line) {
  for (int l = 0; l < kLanes; ++l)
    for (int t = 0; t < kLanes; ++t) lines[l * line + t] = v[t][l];
}
#endif

// One row of the channels, (W, lanes) each, to a line of pixels of each lane, scaled; the lanes' lines lie `apart`.
void interleave(const Sweep& sweep, int64_t y, const float* scale, float* lines, int64_t line, int64_t apart) {
  const lanes16 by = get(scale);
  int64_t x = kBorder, c = 0;
  for (int64_t at = 0; at < line; at += kLanes) {
    const int count = line - at < kLanes ? (int)(line - at) : kLanes;
    lanes16 v[kLanes];
    for (int t = 0; t < count; ++t) {
      v[t] = get(sweep.row(c, y) + x * kLanes) * by;
      if (++c == sweep.channels) c = 0, ++x;
    }
    if (count == kLanes) {
      scatter(v, lines + at, apart);
    } else {
      for (int t = 0; t < count; ++t)
        for (int l = 0; l < kLanes; ++l) lines[l * apart + at + t] = v[t][l];
    }
  }
}

}  // namespace

void ar(const Ar& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t H = a.h + kBorder, W = a.w + kBorder, line = a.w * a.channels;
  Sweep sweep{H, W, a.channels, scratch, nullptr, nullptr};
  sweep.ring = scratch + a.channels * sweep.each() * kLanes;
  sweep.weights = sweep.ring + a.channels * 3 * W * kLanes;
  float* lines = sweep.weights + a.channels * 8 * kLanes;  // a few rows of pixels of each lane
  const int64_t tall = ar_rows(a.w, a.channels);
  float* z = lines + kLanes * tall * line;
  for (int64_t i = begin; i < end; i += kLanes) {
    const int lanes = end - i < kLanes ? (int)(end - i) : kLanes;
    start(a, i, lanes, sweep, z);
    float scale[kLanes];
    scales(a, sweep, scale);
    int64_t held = 0;
    for (int64_t y = 2; y < H; ++y) {
      for (int64_t c = 0; c < a.channels; ++c) sweep.next(c, y);
      if (y < kBorder) continue;
      interleave(sweep, y, scale, lines + held * line, line, tall * line);
      if (++held < tall && y + 1 < H) continue;
      const int64_t m = held * line;
      for (int l = 0; l < lanes; ++l) {
        const int64_t at = ((i + l) * a.h + y + 1 - kBorder - held) * line;
        const float* from = lines + l * tall * line;
        if (!a.images)
          __builtin_memcpy(static_cast<float*>(a.out) + at, from, m * sizeof(float));
        else if (a.truncate)
          pixel_row<true>(a.images + at, from, static_cast<uint8_t*>(a.out) + at, m);
        else
          pixel_row<false>(a.images + at, from, static_cast<uint8_t*>(a.out) + at, m);
      }
      held = 0;
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
