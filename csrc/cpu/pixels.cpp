// apply_perturbation: clamp(images + 255 * delta[index]) to uint8. Bytes: n d (1 + 4 + 1); bound by memory.
//
// Compiled without contraction, so that every level rounds alike.
#include "table.h"
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
  v = v > 0.0f ? v : vecf{};
  v = v < 255.0f ? v : vecf{} + 255.0f;
  if (!Truncate) v = (v + 0x1.8p23f) - 0x1.8p23f;
  return __builtin_convertvector(v, veci);
}

template <bool Truncate> void run(const Apply& a, int64_t begin, int64_t end) {
  constexpr int n = Vec<float>::size;
  const int64_t d = a.d;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* x = a.images + row * d;
    const float* delta = a.delta + (a.index ? a.index[row] : row) * d;
    uint8_t* out = a.out + row * d;
    int64_t i = 0;
    for (; i + n <= d; i += n) narrow_bytes(out + i, pixels<Truncate>(x + i, delta + i));
    for (; i < d; ++i) out[i] = pixel<Truncate>(x[i], delta[i]);
  }
}

}  // namespace

void apply(const Apply& a, int64_t begin, int64_t end) {
  a.truncate ? run<true>(a, begin, end) : run<false>(a, begin, end);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
