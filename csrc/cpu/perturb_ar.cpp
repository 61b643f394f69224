// flags: -ffp-contract=off
//
// perturb_ar: autoregressive noise, scaled and added directly to the stored image.
//
// A value is the weighted sum of the eight before it in its 3 x 3 window, so one image is serial along its rows.
// Sixteen images are processed together, one per lane, whatever their labels. Only the first two rows and columns are
// random: 2 (h + w + 6) normals a channel instead of (h + 4)(w + 4). The size of a whole image must be known before its
// first pixel can be written, and sixteen images at 224 px are 10 MB: they are swept twice, once to measure and once to
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

constexpr int kLanes = perturb_ar_lanes;
constexpr int kBorder = 4;  // rows and columns that the sweep starts from, and that are cut off

constexpr int kN = Vec<float>::size;
constexpr int kParts = kLanes / kN;  // vectors that hold a value of all lanes

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

  // Row y >= 2 from the two above it, a vector of lanes at a time: its weights and its window stay in registers.
  const float* next(int64_t c, int64_t y) const {
    const float *above2 = row(c, y - 2), *above1 = row(c, y - 1);
    const float* first = border + (c * each() + 2 * y + 2 * W - 4) * kLanes;
    float* out = row(c, y);
    for (int part = 0; part < kLanes; part += kN) {
      const float *a = above2 + part, *b = above1 + part;
      vecf w[8];
      for (int t = 0; t < 8; ++t) w[t] = load(weights + (c * 8 + t) * kLanes + part);
      vecf a0 = load(a), a1 = load(a + kLanes), b0 = load(b), b1 = load(b + kLanes);
      vecf before2 = load(first + part), before1 = load(first + kLanes + part);
      store(out + part, before2);
      store(out + kLanes + part, before1);
      for (int64_t x = 2 * kLanes; x < W * kLanes; x += kLanes) {
        const vecf a2 = load(a + x), b2 = load(b + x);
        const vecf s = ar_value(w, a0, a1, a2, b0, b1, b2, before2, before1);
        store(out + x + part, s);
        a0 = a1, a1 = a2, b0 = b1, b1 = b2, before2 = before1, before1 = s;
      }
    }
    return out;
  }
};

// Weights of the images' classes and channels, and the random border of each.
void start(const PerturbAr& a, int64_t first, int lanes, const Sweep& sweep, float* z) {
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
void scales(const PerturbAr& a, const Sweep& sweep, float* scale) {
  constexpr int kD = Vec<double>::size, kWide = kLanes / kD;
  Vec<double>::type sums[kWide] = {};
  vecf largest[kParts] = {};
  for (int64_t y = 2; a.kind != Norm::none && y < sweep.H; ++y)
    for (int64_t c = 0; c < a.channels; ++c) {
      const float* row = sweep.next(c, y);
      if (y < kBorder) continue;
      for (int64_t x = kBorder * kLanes; x < sweep.W * kLanes; x += kLanes) {
        if (a.kind == Norm::l2) {
          for (int p = 0; p < kWide; ++p) {
            const Vec<double>::type v = load_double(row + x + p * kD);
            sums[p] += v * v;
          }
        } else {
          for (int p = 0; p < kParts; ++p) {
            const vecf v = load(row + x + p * kN);
            largest[p] = larger(larger(v, -v), largest[p]);
          }
        }
      }
    }
  double square[kLanes];
  float most[kLanes];
  __builtin_memcpy(square, sums, sizeof sums);
  __builtin_memcpy(most, largest, sizeof largest);
  for (int l = 0; l < kLanes; ++l) {
    const double length = a.kind == Norm::linf ? most[l] : __builtin_sqrt(square[l]);
    scale[l] = a.kind == Norm::none ? 1.0f : (float)(a.norm / (length > 1e-12 ? length : 1e-12));
  }
}

// The kN vectors of kN lanes to as many lines: after the step of S, value j of vector i has bit S of i and j exchanged.
#define ULFAST_LOW(S, j) (((j) & (S)) ? kN + (j) - (S) : (j))
#define ULFAST_HIGH(S, j) (((j) & (S)) ? kN + (j) : (j) + (S))
#define ULFAST_FOUR(F, S, j) F(S, j), F(S, j + 1), F(S, j + 2), F(S, j + 3)
#if defined(__AVX512F__)
#define ULFAST_ALL(F, S) ULFAST_FOUR(F, S, 0), ULFAST_FOUR(F, S, 4), ULFAST_FOUR(F, S, 8), ULFAST_FOUR(F, S, 12)
#elif defined(__AVX2__)
#define ULFAST_ALL(F, S) ULFAST_FOUR(F, S, 0), ULFAST_FOUR(F, S, 4)
#else
#define ULFAST_ALL(F, S) ULFAST_FOUR(F, S, 0)
#endif
template <int S> ULFAST_INLINE void exchange(vecf* v) {
  for (int i = 0; i < kN; ++i) {
    if (i & S) continue;
    const vecf low = v[i], high = v[i | S];
    v[i] = ULFAST_SHUFFLE(low, high, ULFAST_ALL(ULFAST_LOW, S));
    v[i | S] = ULFAST_SHUFFLE(low, high, ULFAST_ALL(ULFAST_HIGH, S));
  }
}
ULFAST_INLINE void scatter(vecf* v, float* lines, int64_t apart) {
  exchange<1>(v);
  exchange<2>(v);
  if constexpr (kN > 4) exchange<4>(v);
  if constexpr (kN > 8) exchange<8>(v);
  for (int l = 0; l < kN; ++l) store(lines + l * apart, v[l]);
}

// One row of the channels, (W, lanes) each, to a line of pixels of each lane, scaled; the lanes' lines lie `apart`.
void interleave(const Sweep& sweep, int64_t y, const float* scale, float* lines, int64_t line, int64_t apart) {
  int64_t x = kBorder, c = 0;
  for (int64_t at = 0; at < line; at += kN) {
    const int count = line - at < kN ? (int)(line - at) : kN;
    const float* from[kN];
    for (int t = 0; t < count; ++t) {
      from[t] = sweep.row(c, y) + x * kLanes;
      if (++c == sweep.channels) c = 0, ++x;
    }
    for (int part = 0; part < kLanes; part += kN) {
      const vecf by = load(scale + part);
      float* to = lines + part * apart + at;
      vecf v[kN];
      for (int t = 0; t < count; ++t) v[t] = load(from[t] + part) * by;
      if (count == kN) {
        scatter(v, to, apart);
      } else {
        for (int t = 0; t < count; ++t)
          for (int l = 0; l < kN; ++l) to[l * apart + t] = v[t][l];
      }
    }
  }
}

}  // namespace

void perturb_ar(const PerturbAr& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t H = a.h + kBorder, W = a.w + kBorder, line = a.w * a.channels, size = a.n * a.h * line;
  Sweep sweep{H, W, a.channels, scratch, nullptr, nullptr};
  sweep.ring = scratch + a.channels * sweep.each() * kLanes;
  sweep.weights = sweep.ring + a.channels * 3 * W * kLanes;
  float* lines = sweep.weights + a.channels * 8 * kLanes;  // a few rows of pixels of each lane
  const int64_t tall = perturb_ar_rows(a.w, a.channels);
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
          pixel_row<true>(a.images + at, from, static_cast<uint8_t*>(a.out) + at, m, size);
        else
          pixel_row<false>(a.images + at, from, static_cast<uint8_t*>(a.out) + at, m, size);
      }
      held = 0;
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
