// apply_perturbation on CUDA: clamp(images + 255 * delta[index]) to uint8.
//
// Bytes: n d (1 + 4 + 1), bound by memory. Four pixels a thread: 4-byte and 16-byte accesses. Compiled with
// --fmad=false, so that it rounds as the CPU does. Not yet run on a GPU.
#include "pixels.cuh"

namespace ulfast {
namespace cuda {

namespace {

template <bool Truncate> __global__ void four(ApplyPerturbation a) {
  const int64_t quads = a.d / 4, total = a.n * quads, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const int64_t row = t / quads, i = (t - row * quads) * 4;
    const int64_t from = a.index ? a.index[row] : row;
    const uchar4 x = *reinterpret_cast<const uchar4*>(a.images + row * a.d + i);
    uchar4 y = x;
    if (from >= 0 && from < a.m) {  // a row that does not exist leaves the image as it is, and reads nothing
      const float4 e = *reinterpret_cast<const float4*>(a.delta + from * a.d + i);
      y = make_uchar4(pixel(x.x, e.x, Truncate), pixel(x.y, e.y, Truncate), pixel(x.z, e.z, Truncate),
                      pixel(x.w, e.w, Truncate));
    }
    *reinterpret_cast<uchar4*>(a.out + row * a.d + i) = y;
  }
}

template <bool Truncate> __global__ void one(ApplyPerturbation a) {
  const int64_t total = a.n * a.d, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total; t += step) {
    const int64_t row = t / a.d, from = a.index ? a.index[row] : row;
    const bool there = from >= 0 && from < a.m;
    a.out[t] = there ? pixel(a.images[t], a.delta[from * a.d + t - row * a.d], Truncate) : a.images[t];
  }
}

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

const char* apply_perturbation(const ApplyPerturbation& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool wide = a.d % 4 == 0 && aligned(a.images, 4) && aligned(a.out, 4) && aligned(a.delta, 16);
  const auto kernel = wide ? (a.truncate ? four<true> : four<false>) : (a.truncate ? one<true> : one<false>);
  return launch(kernel, blocks(wide ? a.n * (a.d / 4) : a.n * a.d), kThreads, 0, s, a);
}

}  // namespace cuda
}  // namespace ulfast
