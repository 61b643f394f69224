// CUDA on the CPU, for the tests: stands in for the toolkit's cuda_runtime.h, so that g++ compiles a .cu file and its
// kernels run here. Blocks run one after another; the threads of a block are fibres that run in turn until they meet at
// a barrier or a shuffle. ULFAST_EMULATED_ORDER=1 lets the last thread go first: a missing barrier then shows as
// another result. It finds wrong indices and races of that kind, nothing about speed, alignment faults or memory order.
#pragma once
#define ULFAST_EMULATE

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another

struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess, cudaErrorInsufficientDriver = 35 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInsufficientDriver ? "CUDA driver version is insufficient for CUDA runtime version" : "";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline int emulated(const char* name, int usual) {
  const char* text = getenv(name);
  return text ? atoi(text) : usual;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  if (emulated("ULFAST_EMULATED_OLD_DRIVER", 0)) return cudaErrorInsufficientDriver;
  if (which == cudaDevAttrMultiProcessorCount) *value = emulated("ULFAST_EMULATED_SMS", 2);
  if (which == cudaDevAttrMaxSharedMemoryPerBlockOptin) *value = emulated("ULFAST_EMULATED_SHARED", 100 << 10);
  if (which == cudaDevAttrL2CacheSize) *value = emulated("ULFAST_EMULATED_L2", 1 << 20);
  if (which == cudaDevAttrComputeCapabilityMajor) *value = emulated("ULFAST_EMULATED_CAPABILITY", 9);
  return cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Fibre {
  ucontext_t context;  // for the first entry
  jmp_buf here;        // for the others: it asks nothing of the system, and is twenty times quicker
  std::unique_ptr<char[]> stack;
  unsigned long barriers = 0, warps = 0;  // passed so far
  bool begun = false, done = false;
};
inline std::vector<Fibre> fibres;
inline jmp_buf scheduler;
inline const std::function<void()>* body;
inline int now;
alignas(64) inline char shared[256 << 10];
inline double lanes[1024];  // what each thread offers in a shuffle

inline void yield() {
  if (!_setjmp(fibres[now].here)) _longjmp(scheduler, 1);
}
inline void resume(Fibre& fibre) {
  if (_setjmp(scheduler)) return;
  if (fibre.begun) _longjmp(fibre.here, 1);
  fibre.begun = true;
  setcontext(&fibre.context);
}

// Until every thread of [first, last) has arrived as often as this one.
inline void meet(unsigned long Fibre::* count, int first, int last) {
  const int self = now;
  const unsigned long mine = ++(fibres[self].*count);
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (int i = first; i < last; ++i) waiting |= !fibres[i].done && fibres[i].*count < mine;
    if (waiting) yield();
  }
}
inline void enter() {
  (*body)();
  fibres[now].done = true;
  yield();
}

inline void run(int64_t grid, int threads, size_t bytes, const std::function<void()>& kernel) {
  if (bytes > sizeof shared || threads > 1024) abort();
  body = &kernel;
  blockDim.x = (unsigned)threads, gridDim.x = (unsigned)grid;
  const bool backwards = emulated("ULFAST_EMULATED_ORDER", 0);
  for (int64_t block = 0; block < grid; ++block) {
    blockIdx.x = (unsigned)block;
    memset(shared, 0xff, sizeof shared);  // NaN: nothing may be read before it is written
    fibres.resize(threads);
    for (auto& fibre : fibres) {
      fibre.barriers = fibre.warps = 0, fibre.begun = fibre.done = false;
      if (!fibre.stack) fibre.stack.reset(new char[64 << 10]);
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack.get();
      fibre.context.uc_stack.ss_size = 64 << 10;
      makecontext(&fibre.context, enter, 0);
    }
    for (int left = threads; left;) {
      left = 0;
      for (int i = 0; i < threads; ++i) {
        now = backwards ? threads - 1 - i : i;
        if (fibres[now].done) continue;
        threadIdx.x = (unsigned)now;
        resume(fibres[now]);
        left += !fibres[now].done;
      }
    }
  }
}

}  // namespace emulation

template <class T> T atomicAdd(T* at, T v) {
  const T before = *at;
  return *at = before + v, before;
}

inline void __syncthreads() { emulation::meet(&emulation::Fibre::barriers, 0, (int)blockDim.x); }
inline void __syncwarp() {
  const int first = emulation::now / 32 * 32;
  emulation::meet(&emulation::Fibre::warps, first, first + 32 < (int)blockDim.x ? first + 32 : (int)blockDim.x);
}
namespace emulation {

inline char offered[1024][64];
// What every thread of the warp offers.
template <class T> void exchange(const T& mine, T (&all)[32]) {
  static_assert(sizeof(T) <= 64, "larger than its place");
  memcpy(offered[now], &mine, sizeof(T));
  __syncwarp();
  for (int i = 0; i < 32; ++i) memcpy(&all[i], offered[now / 32 * 32 + i], sizeof(T));
  __syncwarp();
}

}  // namespace emulation

template <class T> T __shfl_up_sync(unsigned, T value, int offset) {
  const int self = emulation::now;
  emulation::lanes[self] = value;
  __syncwarp();
  const T got = self % 32 >= offset ? (T)emulation::lanes[self - offset] : value;
  __syncwarp();
  return got;
}
template <class T> T __shfl_down_sync(unsigned, T value, int offset) {
  const int self = emulation::now;
  emulation::lanes[self] = value;
  __syncwarp();
  const T got = self % 32 + offset < 32 ? (T)emulation::lanes[self + offset] : value;
  __syncwarp();
  return got;
}
template <class T> T __shfl_xor_sync(unsigned, T value, int offset) {
  const int self = emulation::now;
  emulation::lanes[self] = value;
  __syncwarp();
  const T got = (T)emulation::lanes[self ^ offset];
  __syncwarp();
  return got;
}
