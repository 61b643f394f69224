// Numbers of the rows: bytes, halves, floats; four of them at a time.
#pragma once

#include "../floats.h"

#include "launch.cuh"

#ifndef ULFAST_EMULATE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace ulfast {
namespace cuda {

#ifdef ULFAST_EMULATE
inline float wide(f16 v) { return widened(v); }
inline float wide(bf16 v) { return widened(v); }
inline void narrow(float v, f16* out) { *out = rounded_f16(v); }
inline void narrow(float v, bf16* out) { *out = rounded_bf16(v); }
#else
__device__ __forceinline__ float wide(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ float wide(bf16 v) { return __bfloat162float(__ushort_as_bfloat16(v.bits)); }
__device__ __forceinline__ void narrow(float v, f16* out) { out->bits = __half_as_ushort(__float2half_rn(v)); }
__device__ __forceinline__ void narrow(float v, bf16* out) { out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
#endif
__device__ __forceinline__ float wide(uint8_t v) { return (float)v; }
__device__ __forceinline__ float wide(float v) { return v; }
__device__ __forceinline__ double wide(double v) { return v; }
__device__ __forceinline__ void narrow(float v, float* out) { *out = v; }
__device__ __forceinline__ void narrow(double v, double* out) { *out = v; }

// Four neighbours, loaded and stored at once: 4 (bytes), 8, 16 or 32 bytes.
template <class T> struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) Four {
  T v[4];
};

// To memory that is not read again soon: the result leaves the inputs their place in L2.
template <class T> __device__ __forceinline__ void stream_out(T* to, const Four<T>& v) {
#ifdef ULFAST_EMULATE
  *reinterpret_cast<Four<T>*>(to) = v;
#else
  if constexpr (sizeof(Four<T>) == 16) {
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&v));
  } else {
    static_assert(sizeof(Four<T>) == 8, "four values");
    __stcs(reinterpret_cast<uint2*>(to), *reinterpret_cast<const uint2*>(&v));
  }
#endif
}

// Brings a line to L2 that will be read soon.
__device__ __forceinline__ void soon(const void* at) {
#ifndef ULFAST_EMULATE
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// Copies 16 aligned bytes to shared memory, without a register and without waiting; copies_end waits for those of this
// thread, a barrier for those of others.
__device__ __forceinline__ void copy16_begin(void* shared, const void* from) {
#ifdef ULFAST_EMULATE
  memcpy(shared, from, 16);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(from)
               : "memory");
#endif
}
__device__ __forceinline__ void copies_end() {
#ifndef ULFAST_EMULATE
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

template <class T> struct Compute {
  using type = float;
};
template <> struct Compute<double> {
  using type = double;
};

inline bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace cuda
}  // namespace ulfast
