// flags: -ffp-contract=off
//
// shift_pixels: every pixel is read a random step away, interpolated between the four neighbours there.
//
// Bytes: n d (1 or 4, and 4), and two random numbers per pixel, whose generation and the four loads bound it. Colour
// images are copied to four channels, so that a pixel is one vector; the row's places and weights are computed first,
// in a loop that the compiler vectorises. Compiled without contraction: the same on every level.
#include "normals.h"
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int64_t kAtOnce = 64;  // pixels of a row whose places are computed together

// Places from which m pixels of row y are read, from column x on: the left one of two in [0, side), and the weight of
// the right one.
ULFAST_INLINE void places(const float* u, int64_t m, float first, float step, float reach, float side, int32_t* low,
                          int32_t* high, float* share) {
  for (int64_t i = 0; i < m; ++i) {
    const float at = first + step * (float)i + (u[2 * i] * 2.0f - 1.0f) * reach;
    float floor = (float)(int32_t)at;
    floor = floor > at ? floor - 1.0f : floor;
    share[i] = at - floor;
    float place = floor < 0.0f ? floor + side : floor;
    place = place >= side ? place - side : place;
    low[i] = (int32_t)place;
    high[i] = place + 1.0f >= side ? 0 : (int32_t)place + 1;
  }
}

template <class T> void run(const ShiftPixels& a, float* scratch, int64_t begin, int64_t end) {
  const int64_t pixels = a.h * a.w, d = pixels * a.c, wide = a.c == 3 ? 4 : a.c;
  float *u = scratch, *image = scratch + 2 * pixels;
  for (int64_t n = begin; n < end; ++n) {
    numbers<false>(a.seed, (uint32_t)a.stream, a.first + n, 2 * pixels, u);
    const T* x = static_cast<const T*>(a.x) + n * d;
    if (a.c == 3) {
      for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < 3; ++c) image[4 * p + c] = unit(x[3 * p + c]);
    } else {
      for (int64_t i = 0; i < d; ++i) image[i] = unit(x[i]);
    }
    float* out = a.out + n * d;
    for (int64_t y = 0; y < a.h; ++y) {
      for (int64_t begin_x = 0; begin_x < a.w; begin_x += kAtOnce) {
        const int64_t m = a.w - begin_x < kAtOnce ? a.w - begin_x : kAtOnce;
        const float* own = u + 2 * (y * a.w + begin_x);
        int32_t left[kAtOnce], right[kAtOnce], top[kAtOnce], bottom[kAtOnce];
        float across[kAtOnce], down[kAtOnce];
        places(own, m, (float)begin_x, 1.0f, a.reach, (float)a.w, left, right, across);
        places(own + 1, m, (float)y, 0.0f, a.reach, (float)a.h, top, bottom, down);
        float* to = out + (y * a.w + begin_x) * a.c;
        for (int64_t i = 0; i < m; ++i) {
          const int64_t above = top[i] * a.w, below = bottom[i] * a.w;
          const float *aa = image + (above + left[i]) * wide, *ab = image + (above + right[i]) * wide;
          const float *ba = image + (below + left[i]) * wide, *bb = image + (below + right[i]) * wide;
          if (wide == 4) {
            vf4 p, q, r, s;
            __builtin_memcpy(&p, aa, sizeof p), __builtin_memcpy(&q, ab, sizeof q);
            __builtin_memcpy(&r, ba, sizeof r), __builtin_memcpy(&s, bb, sizeof s);
            const vf4 upper = p + across[i] * (q - p), lower = r + across[i] * (s - r);
            const vf4 v = upper + down[i] * (lower - upper);
            __builtin_memcpy(to + i * a.c, &v, a.c * sizeof(float));
          } else {
            for (int64_t c = 0; c < a.c; ++c) {
              const float upper = aa[c] + across[i] * (ab[c] - aa[c]), lower = ba[c] + across[i] * (bb[c] - ba[c]);
              to[i * a.c + c] = upper + down[i] * (lower - upper);
            }
          }
        }
      }
    }
  }
}

}  // namespace

void shift_pixels(const ShiftPixels& a, float* scratch, int64_t begin, int64_t end) {
  a.dtype == DType::u8 ? run<uint8_t>(a, scratch, begin, end) : run<float>(a, scratch, begin, end);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
