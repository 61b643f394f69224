// perturb_ar: autoregressive noise, scaled and put straight onto the stored image.
//
// A value is the weighted sum of the eight before it in its 3 x 3 window, so one image is serial along its rows.
// Sixteen images go side by side, a lane each, whatever their labels: 16 (h + 2)(w + 2) channels multiply-adds a lane,
// in chains of one multiplication and one addition (8 cycles) a value. Only the first two rows and columns are random:
// 2 (h + w + 6) normals a channel instead of (h + 4)(w + 4). At 32 px: 27,700 multiply-adds and 420 normals an image;
// bound by the arithmetic of both, the 6 KB read and written are little beside it.
#include "normals.h"
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kLanes = 16;
constexpr int kBorder = 4;  // rows and columns that the sweep starts from, and that are cut off

// One channel of sixteen images: plane (H, W, lanes) whose first two rows and columns are filled.
void sweep(const float* weights, int64_t H, int64_t W, float* plane) {
  float w[8][kLanes];
  __builtin_memcpy(w, weights, sizeof w);
  for (int64_t y = 2; y < H; ++y) {
    const float* __restrict__ above2 = plane + (y - 2) * W * kLanes;
    const float* __restrict__ above1 = plane + (y - 1) * W * kLanes;
    float* row = plane + y * W * kLanes;
    float before2[kLanes], before1[kLanes];
    for (int l = 0; l < kLanes; ++l) before2[l] = row[l], before1[l] = row[kLanes + l];
    for (int64_t x = 2; x < W; ++x) {
      const float* a = above2 + (x - 2) * kLanes;
      const float* b = above1 + (x - 2) * kLanes;
      float* __restrict__ out = row + x * kLanes;
      for (int l = 0; l < kLanes; ++l) {
        float s = w[0][l] * a[l];
        s += w[1][l] * a[kLanes + l];
        s += w[2][l] * a[2 * kLanes + l];
        s += w[3][l] * b[l];
        s += w[4][l] * b[kLanes + l];
        s += w[5][l] * b[2 * kLanes + l];
        s += w[6][l] * before2[l];
        s += w[7][l] * before1[l];
        before2[l] = before1[l];
        before1[l] = s;
        out[l] = s;
      }
    }
  }
}

// The random border of `lanes` images: for each channel two rows, then two values of each row below.
void start(const Ar& a, int64_t first, int lanes, int64_t H, int64_t W, float* z, float* planes) {
  const int64_t each = 2 * W + 2 * (H - 2);
  for (int l = 0; l < lanes; ++l) {
    numbers<true>((uint64_t)a.seed, philox::kStreamAr, (uint64_t)(a.first + first + l), a.channels * each, z);
    for (int64_t c = 0; c < a.channels; ++c) {
      float* plane = planes + c * H * W * kLanes + l;
      const float* from = z + c * each;
      for (int64_t t = 0; t < 2 * W; ++t) plane[t * kLanes] = from[t];
      from += 2 * W;
      for (int64_t y = 2; y < H; ++y, from += 2) {
        plane[y * W * kLanes] = from[0];
        plane[(y * W + 1) * kLanes] = from[1];
      }
    }
  }
}

// Squares of `count` values of each lane, added in float64. The pragma is needed: the compiler otherwise takes the
// sixteen lanes apart one by one, which cost 40% of the kernel.
void add_squares(const float* __restrict__ row, int64_t count, double* __restrict__ square) {
  for (int64_t x = 0; x < count; ++x)
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) square[l] += (double)row[x * kLanes + l] * row[x * kLanes + l];
}

void keep_largest(const float* __restrict__ row, int64_t count, float* __restrict__ largest) {
  for (int64_t x = 0; x < count; ++x)
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const float v = row[x * kLanes + l], size = v < 0 ? -v : v;
      largest[l] = size > largest[l] ? size : largest[l];
    }
}

// What every lane is multiplied with: norm / its own norm, L2 in float64 or L-infinity; 1 for neither.
void scales(const Ar& a, int64_t H, int64_t W, const float* planes, float* scale) {
  double square[kLanes] = {};
  float largest[kLanes] = {};
  for (int64_t c = 0; c < a.channels; ++c)
    for (int64_t y = kBorder; y < H; ++y) {
      const float* row = planes + ((c * H + y) * W + kBorder) * kLanes;
      if (a.kind == 1) add_squares(row, a.w, square);
      if (a.kind == 2) keep_largest(row, a.w, largest);
    }
  for (int l = 0; l < kLanes; ++l) {
    const double length = a.kind == 2 ? largest[l] : __builtin_sqrt(square[l]);
    scale[l] = a.kind == 0 ? 1.0f : (float)(a.norm / (length > 1e-12 ? length : 1e-12));
  }
}

}  // namespace

void ar(const Ar& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t H = a.h + kBorder, W = a.w + kBorder, plane = H * W * kLanes, line = a.w * a.channels;
  float* planes = scratch;
  float* lines = planes + a.channels * plane;  // one row of pixels of each lane
  float* z = lines + kLanes * line;
  for (int64_t i = begin; i < end; i += kLanes) {
    const int lanes = end - i < kLanes ? (int)(end - i) : kLanes;
    start(a, i, lanes, H, W, z, planes);
    for (int64_t c = 0; c < a.channels; ++c) {
      float weights[8 * kLanes];
      for (int l = 0; l < kLanes; ++l) {
        const float* from = a.coefficients + (a.labels[i + (l < lanes ? l : 0)] * a.channels + c) * 9;
        for (int t = 0; t < 8; ++t) weights[t * kLanes + l] = from[t];
      }
      sweep(weights, H, W, planes + c * plane);
    }
    float scale[kLanes];
    scales(a, H, W, planes, scale);
    for (int64_t y = 0; y < a.h; ++y) {
      for (int64_t x = 0; x < a.w; ++x)
        for (int64_t c = 0; c < a.channels; ++c) {
          const float* from = planes + c * plane + ((y + kBorder) * W + x + kBorder) * kLanes;
          float* to = lines + x * a.channels + c;
          for (int l = 0; l < kLanes; ++l) to[l * line] = from[l] * scale[l];
        }
      for (int l = 0; l < lanes; ++l) {
        const int64_t at = ((i + l) * a.h + y) * line;
        if (!a.images)
          __builtin_memcpy(static_cast<float*>(a.out) + at, lines + l * line, line * sizeof(float));
        else if (a.truncate)
          pixel_row<true>(a.images + at, lines + l * line, static_cast<uint8_t*>(a.out) + at, line);
        else
          pixel_row<false>(a.images + at, lines + l * line, static_cast<uint8_t*>(a.out) + at, line);
      }
    }
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
