// One stored pixel plus one perturbation, to one stored pixel. Files that include this are compiled without
// contraction.
#pragma once
#include "simd.h"

namespace ulfast {
namespace ULFAST_LEVEL {
namespace {

ULFAST_INLINE float round_even(float v) {  // exact for |v| < 2**22, which a clamped pixel is
  return (v + 0x1.8p23f) - 0x1.8p23f;
}

template <bool Truncate> ULFAST_INLINE uint8_t pixel(uint8_t x, float delta) {
  float v = (float)x + 255.0f * delta;
  v = v > 0.0f ? v : 0.0f;  // NaN becomes 0 here and never an undefined conversion
  v = v < 255.0f ? v : 255.0f;
  return (uint8_t)(int)(Truncate ? v : round_even(v));
}

template <bool Truncate> ULFAST_INLINE veci pixels(const uint8_t* x, const float* delta) {
  vecf v = load_as(x) + 255.0f * load(delta);
  v = smaller(larger(v, vecf{}), vecf{} + 255.0f);
  if (!Truncate) v = (v + 0x1.8p23f) - 0x1.8p23f;
  return __builtin_convertvector(v, veci);
}

// out = clamp(x + 255 * delta) for n values.
template <bool Truncate> ULFAST_INLINE void pixel_row(const uint8_t* x, const float* delta, uint8_t* out, int64_t n) {
  constexpr int step = Vec<float>::size;
  int64_t i = 0;
  for (; i + step <= n; i += step) narrow_bytes(out + i, pixels<Truncate>(x + i, delta + i));
  for (; i < n; ++i) out[i] = pixel<Truncate>(x[i], delta[i]);
}

}  // namespace
}  // namespace ULFAST_LEVEL
}  // namespace ulfast
