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

// A store to memory that is not read again soon, so that the inputs stay in L2.
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

// Prefetches a line to L2.
__device__ __forceinline__ void soon(const void* at) {
#ifndef ULFAST_EMULATE
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// `bytes` (4, 8 or 16) from memory to shared memory, or zeros, some time before `arrived` returns, without a
// register; a barrier tells other threads. At once before compute capability 8.
template <int bytes> __device__ __forceinline__ void fetch(void* to, const void* from, bool there) {
#if defined(ULFAST_EMULATE) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
  struct alignas(bytes) Piece {
    uint32_t v[bytes / 4];
  };
  *static_cast<Piece*>(to) = there ? *static_cast<const Piece*>(from) : Piece{};
#else
  const unsigned at = (unsigned)__cvta_generic_to_shared(to);
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(bytes),
                 "r"(there ? bytes : 0)
                 : "memory");
#endif
}
__device__ __forceinline__ void arrived() {
#if !defined(ULFAST_EMULATE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
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
