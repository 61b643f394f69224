// class_moments on CUDA: sums and sums of squares of every value over the images of each class, exact, in integers.
//
// Bytes: n d read once, 16 c d written; flops 3 n d in integers, with as many to unpack the bytes: bound by memory.
// With few classes, a block takes 128 features of a run of rows, which it sorts by label; a warp's sums for a class
// stay in registers until the label changes, are then added to the block's in shared memory, and those to the result by
// 64-bit atomic additions, whose order does not matter because they are integers. The runs are as long as two blocks on
// every multiprocessor allow, since each run adds 2 c d numbers. With many classes, the rows come sorted, and a block
// takes 1,024 features of a run of them. A row whose label is out of range is ignored.
#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kRun = 1024;  // most rows per block; 1024 * 255^2 < 2^32
constexpr int kEach = 4;    // features a thread

constexpr int kClasses = 32;        // at most, without sorted rows
constexpr int kLong = 4096;         // rows a block then takes, at most; 4096 * 255^2 < 2^32
constexpr int kShort = 256;         // and at least, if there are that many
constexpr int kSlice = 32 * kEach;  // features
constexpr int kAhead = 16;          // rows that a warp loads before it uses the first

struct Piece {
  int64_t features;  // of a block
  int rows;
};

// Fours: every row starts at a multiple of four bytes.
template <bool Fours> __global__ void __launch_bounds__(kThreads) class_moments_kernel(ClassMoments a, Piece piece) {
  __shared__ int64_t rows[kRun], labels[kRun];
  const int64_t pieces = (a.d + piece.features - 1) / piece.features, runs = (a.n + piece.rows - 1) / piece.rows;
  for (int64_t w = blockIdx.x; w < pieces * runs; w += gridDim.x) {
    const int64_t run = w / pieces, first = run * piece.rows;
    const int64_t i = (w - run * pieces) * piece.features + (int64_t)threadIdx.x * (Fours ? kEach : 1);
    const int count = (int)(a.n - first < piece.rows ? a.n - first : piece.rows);
    __syncthreads();  // the previous rows have been used
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

// Adds a warp's sums for a class to the block's, and resets them.
__device__ __forceinline__ void flush(uint32_t* sums, int label, uint32_t (&sum)[kEach], uint32_t (&square)[kEach]) {
  uint32_t* to = sums + label * 2 * kSlice + threadIdx.x % 32;
#pragma unroll
  for (int u = 0; u < kEach; ++u) {
    atomicAdd(to + u * 32, sum[u]);
    atomicAdd(to + kSlice + u * 32, square[u]);
    sum[u] = square[u] = 0;
  }
}

template <bool Fours> __global__ void __launch_bounds__(kThreads, 1) few_classes_kernel(ClassMoments a, Piece piece) {
  uint32_t* sums = dynamic_shared<uint32_t>();  // (classes, 2, kEach, 32)
  const int classes = (int)a.classes, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* const counts = reinterpret_cast<int*>(sums + classes * 2 * kSlice);
  int* const places = counts + kClasses;
  uint32_t* list = sums + classes * 2 * kSlice + 2 * kClasses;  // the run's rows by label: label * kLong + row
  const int64_t slices = (a.d + kSlice - 1) / kSlice, runs = (a.n + piece.rows - 1) / piece.rows;
  for (int64_t w = blockIdx.x; w < slices * runs; w += gridDim.x) {
    const int64_t run = w / slices, first = run * piece.rows, from = (w - run * slices) * kSlice,
                  i = from + lane * kEach;
    const int count = (int)(a.n - first < piece.rows ? a.n - first : piece.rows);
    __syncthreads();  // the previous run's sums have been written
    for (int t = threadIdx.x; t < classes * 2 * kSlice; t += kThreads) sums[t] = 0;
    if (threadIdx.x < kClasses) counts[threadIdx.x] = 0;
    __syncthreads();
    for (int at = threadIdx.x; at < count; at += kThreads) {
      const int64_t label = a.labels[first + at];
      if (label >= 0 && label < classes) atomicAdd(counts + label, 1);
    }
    __syncthreads();
    int total = 0;
    for (int c = 0; c < classes; ++c) {
      if (threadIdx.x == c) places[c] = total;
      total += counts[c];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < count; at += kThreads) {
      const int64_t label = a.labels[first + at];
      if (label >= 0 && label < classes) list[atomicAdd(places + label, 1)] = (uint32_t)(label * kLong + at);
    }
    __syncthreads();
    const int share = (total + kThreads / 32 - 1) / (kThreads / 32), begin = warp * share;
    const int end = begin + share < total ? begin + share : total;
    const uint8_t* images = a.images + first * a.d + i;
    const uint32_t pitch = (uint32_t)a.d;  // 32 bits by 32 are one instruction
    uint32_t sum[kEach] = {}, square[kEach] = {};
    int current = begin < end ? (int)(list[begin] / kLong) : 0;
    for (int at = begin; at < end; at += kAhead) {
      uint32_t x[kAhead];
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        x[r] = 0;
        if (at + r < end && i < a.d) {
          const uint8_t* row = images + (uint64_t)(list[at + r] % kLong) * pitch;
          if (Fours)
            x[r] = *reinterpret_cast<const uint32_t*>(row);
          else
            for (int u = 0; u < kEach && i + u < a.d; ++u) x[r] |= (uint32_t)row[u] << 8 * u;
        }
      }
#pragma unroll
      for (int r = 0; r < kAhead; ++r) {
        const int label = at + r < end ? (int)(list[at + r] / kLong) : current;
        if (label != current) flush(sums, current, sum, square), current = label;  // the same for the whole warp
#pragma unroll
        for (int u = 0; u < kEach; ++u) {
          const uint32_t v = x[r] >> 8 * u & 255;
          sum[u] += v;
          square[u] += v * v;
        }
      }
    }
    if (begin < end) flush(sums, current, sum, square);
    __syncthreads();  // the sums are complete
    for (int t = threadIdx.x; t < classes * 2 * kSlice; t += kThreads) {
      const int c = t / (2 * kSlice), k = t % (2 * kSlice), f = k % kSlice;
      const int64_t feature = from + f;
      if (feature >= a.d || !counts[c]) continue;
      auto* to = reinterpret_cast<unsigned long long*>((k < kSlice ? a.sums : a.squares) + c * a.d + feature);
      atomicAdd(to, (unsigned long long)sums[t / kSlice * kSlice + f % kEach * 32 + f / kEach]);
    }
  }
}

const char* few_classes(const ClassMoments& a, bool fours, cudaStream_t stream) {
  const int64_t slices = (a.d + kSlice - 1) / kSlice;
  const int64_t wanted = (2 * (int64_t)attribute(cudaDevAttrMultiProcessorCount) + slices - 1) / slices;  // runs
  const int64_t even = (a.n + wanted - 1) / wanted, rows = even < kShort  ? kShort
                                                           : even < kLong ? even
                                                                          : (int64_t)kLong;
  const int64_t work = slices * ((a.n + rows - 1) / rows), held = a.n < rows ? a.n : rows;
  const size_t bytes = (size_t)(a.classes * 2 * kSlice + 2 * kClasses + held) * sizeof(uint32_t);
  return launch(fours ? few_classes_kernel<true> : few_classes_kernel<false>, work < 65535 ? work : (int64_t)65535,
                kThreads, bytes, stream, a, Piece{kSlice, (int)rows});
}

}  // namespace

int64_t class_moments_sorts(const ClassMoments& a) { return a.classes > kClasses || a.d >> 32; }

// `order` holds the rows sorted by label, if class_moments_sorts wants them; `sums` and `squares` zeros.
const char* class_moments(const ClassMoments& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const bool fours = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0;
  if (!a.order) return few_classes(a, fours, static_cast<cudaStream_t>(stream));
  const int64_t features = kThreads * (fours ? kEach : 1), pieces = (a.d + features - 1) / features;
  const int64_t wanted = a.n * pieces / (8 * (int64_t)attribute(cudaDevAttrMultiProcessorCount));
  const int64_t rows = wanted < 16 ? 16 : wanted < kRun ? wanted : (int64_t)kRun;
  const int64_t work = pieces * ((a.n + rows - 1) / rows);
  return launch(fours ? class_moments_kernel<true> : class_moments_kernel<false>, work < 65535 ? work : (int64_t)65535,
                kThreads, 0, static_cast<cudaStream_t>(stream), a, Piece{features, (int)rows});
}

}  // namespace cuda
}  // namespace ulfast
