// class_moments on CUDA: sums and sums of squares of every value over the images of each class, exact whole numbers.
//
// Bytes: n d read once, 16 c d written; flops 3 n d in integers: bound by memory. A block takes 1,024 features, four a
// thread, of a run of rows in the order of their labels; a class's sums stay in registers until the label changes, then
// join the result by 64-bit atomic additions, whose order does not matter because they are whole numbers. Short runs
// keep every multiprocessor busy, long ones add up more before they write. A row whose label is out of range counts
// nowhere.
#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kRun = 1024;  // rows a block, at most; 1024 * 255^2 < 2^32
constexpr int kEach = 4;    // features a thread

struct Piece {
  int64_t features;  // of a block
  int rows;
};

// Fours: every row begins at a multiple of four bytes.
template <bool Fours> __global__ void __launch_bounds__(kThreads) class_moments_kernel(ClassMoments a, Piece piece) {
  __shared__ int64_t rows[kRun], labels[kRun];
  const int64_t pieces = (a.d + piece.features - 1) / piece.features, runs = (a.n + piece.rows - 1) / piece.rows;
  for (int64_t w = blockIdx.x; w < pieces * runs; w += gridDim.x) {
    const int64_t run = w / pieces, first = run * piece.rows;
    const int64_t i = (w - run * pieces) * piece.features + (int64_t)threadIdx.x * (Fours ? kEach : 1);
    const int count = (int)(a.n - first < piece.rows ? a.n - first : piece.rows);
    __syncthreads();  // the last rows have been used
    for (int at = threadIdx.x; at < count; at += kThreads) {
      rows[at] = a.order[first + at];
      labels[at] = a.labels[rows[at]];
    }
    __syncthreads();
    if (i >= a.d) continue;
    for (int at = 0; at < count;) {
      const int64_t label = labels[at];
      uint32_t sum[kEach] = {}, square[kEach] = {};
#pragma unroll 4
      for (; at < count && labels[at] == label; ++at) {
        const uint8_t* x = a.images + rows[at] * a.d + i;
        const uint32_t four = Fours ? *reinterpret_cast<const uint32_t*>(x) : *x;
#pragma unroll
        for (int u = 0; u < (Fours ? kEach : 1); ++u) {
          const uint32_t v = four >> 8 * u & 255;
          sum[u] += v;
          square[u] += v * v;
        }
      }
      if (label < 0 || label >= a.classes) continue;
#pragma unroll
      for (int u = 0; u < (Fours ? kEach : 1); ++u) {
        auto* to = reinterpret_cast<unsigned long long*>(a.sums + label * a.d + i + u);
        auto* to2 = reinterpret_cast<unsigned long long*>(a.squares + label * a.d + i + u);
        atomicAdd(to, (unsigned long long)sum[u]);
        atomicAdd(to2, (unsigned long long)square[u]);
      }
    }
  }
}

}  // namespace

// `order` holds the rows sorted by label, `sums` and `squares` zeros.
const char* class_moments(const ClassMoments& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const bool fours = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0;
  const int64_t features = kThreads * (fours ? kEach : 1), pieces = (a.d + features - 1) / features;
  const int64_t wanted = a.n * pieces / (8 * (int64_t)attribute(cudaDevAttrMultiProcessorCount));
  const int64_t rows = wanted < 16 ? 16 : wanted < kRun ? wanted : (int64_t)kRun;
  const int64_t work = pieces * ((a.n + rows - 1) / rows);
  return launch(fours ? class_moments_kernel<true> : class_moments_kernel<false>,
                work < 65535 ? work : (int64_t)65535, kThreads, 0, static_cast<cudaStream_t>(stream), a,
                Piece{features, (int)rows});
}

}  // namespace cuda
}  // namespace ulfast
