// One stored pixel plus one perturbation, to one stored pixel; rounds as the CPU does (--fmad=false).
#pragma once

#include <math.h>

#include "launch.cuh"

namespace ulfast {
namespace cuda {

__device__ __forceinline__ uint8_t pixel(uint8_t x, float delta, bool truncate) {
  float v = (float)x + 255.0f * delta;
  v = v > 0.0f ? v : 0.0f;  // NaN becomes 0
  v = v < 255.0f ? v : 255.0f;
  return (uint8_t)(int)(truncate ? v : rintf(v));
}

}  // namespace cuda
}  // namespace ulfast
