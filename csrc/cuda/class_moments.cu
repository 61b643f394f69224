// class_moments on CUDA: sums and sums of squares of every value over the images of each class, exact whole numbers.
//
// Bytes: n d read once, 16 c d written; flops 3 n d in integers: bound by memory. A block takes 256 features of a run
// of rows in the order of their labels; a class's sums stay in registers until the label changes, then join the result
// by 64-bit atomic additions, whose order does not matter because they are whole numbers. A row whose label is out of
// range counts nowhere. Not yet run on a GPU.
#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int64_t kRun = 1024;  // rows a block; 1024 * 255^2 < 2^32

__global__ void class_moments_kernel(ClassMoments a) {
  const int64_t pieces = (a.d + kThreads - 1) / kThreads, runs = (a.n + kRun - 1) / kRun;
  for (int64_t w = blockIdx.x; w < pieces * runs; w += gridDim.x) {
    const int64_t run = w / pieces, i = (w - run * pieces) * kThreads + threadIdx.x;
    if (i >= a.d) continue;
    const int64_t stop = (run + 1) * kRun < a.n ? (run + 1) * kRun : a.n;
    for (int64_t at = run * kRun; at < stop;) {
      const int64_t label = a.labels[a.order[at]];
      uint32_t sum = 0, square = 0;
      for (; at < stop && a.labels[a.order[at]] == label; ++at) {
        const uint32_t v = a.images[a.order[at] * a.d + i];
        sum += v;
        square += v * v;
      }
      if (label < 0 || label >= a.classes) continue;
      atomicAdd(reinterpret_cast<unsigned long long*>(a.sums + label * a.d + i), (unsigned long long)sum);
      atomicAdd(reinterpret_cast<unsigned long long*>(a.squares + label * a.d + i), (unsigned long long)square);
    }
  }
}

}  // namespace

// `order` holds the rows sorted by label, `sums` and `squares` zeros.
const char* class_moments(const ClassMoments& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const int64_t work = (a.d + kThreads - 1) / kThreads * ((a.n + kRun - 1) / kRun);
  return launch(class_moments_kernel, work < 65535 ? work : (int64_t)65535, kThreads, 0,
                static_cast<cudaStream_t>(stream), a);
}

}  // namespace cuda
}  // namespace ulfast
