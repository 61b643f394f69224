// softmax_regression_step on CUDA: forward, loss, gradient and update of a linear classifier without bias.
//
// Four kernels, none of which makes a float copy of x: products (x read, n c sums written), softmax minus one-hot in
// their place, gradient (x read again, c d sums per part), update. Bytes: 2 n d of uint8 rows, the second time from L2
// where the batch fits there (1,024 rows of 32 px are 3 MB), plus 8 c d for each of the parts into which the gradient's
// rows are cut so that every multiprocessor has work. Flops: 4 n d c. Bound: at ten classes the multiply-adds (40 a
// byte); in small batches the four launches. Sums are always taken in the same order, so equal calls give equal bits.
// An index or a label out of range makes the loss and the weight NaN.
#include "rows.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTall = 16;       // classes whose gradients a thread holds
constexpr int kStrip = 32 * 4;  // features a block takes: four a lane, the same for all of its warps
constexpr int kBatch = 64;      // rows whose residuals are staged at a time

// The logits of a row in pieces (splits, n, c) become softmax minus one-hot, times `unit`, in the first piece;
// loss[row] and loss[n + row] are its cross-entropy and whether it is right. A warp a row.
__global__ void residuals(SoftmaxRegressionStep a, int64_t splits, float unit) {
  const int lane = threadIdx.x % 32;
  const int64_t step = (int64_t)gridDim.x * kWarps;
  double* loss = a.result + 2;
  for (int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.x / 32; row < a.n; row += step) {
    float* p = a.coef + row * a.c;
    const int64_t from = a.index ? a.index[row] : row;
    const int64_t label = from >= 0 && from < a.rows ? a.labels[from] : -1;
    float top = -INFINITY;
    int best = 0x7fffffff;
    for (int j = lane; j < a.c; j += 32) {
      float v = p[j];
      for (int64_t s = 1; s < splits; ++s) v += p[s * a.n * a.c + j];
      p[j] = v;
      if (v > top || best == 0x7fffffff) top = v, best = j;
    }
    for (int offset = 16; offset; offset /= 2) {  // the first of the largest
      const float other = __shfl_xor_sync(0xffffffffu, top, offset);
      const int its = __shfl_xor_sync(0xffffffffu, best, offset);
      if (other > top || (other == top && its < best)) top = other, best = its;
    }
    double total = 0;
    for (int j = lane; j < a.c; j += 32) total += exp((double)p[j] - (double)top);
    for (int offset = 16; offset; offset /= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
    const bool good = label >= 0 && label < a.c;
    __syncwarp();  // every lane's logits are written
    if (lane == 0) {
      loss[row] = good ? log(total) + (double)top - (double)p[label] : (double)NAN;
      loss[a.n + row] = good && best == label;
    }
    __syncwarp();  // the chosen logit has been read
    for (int j = lane; j < a.c; j += 32) {
      const double share = exp((double)p[j] - (double)top) / total - (j == label ? 1.0 : 0.0);
      p[j] = good ? (float)(share * (double)unit) : NAN;
    }
  }
}

// Classes [first, first + K) of one part: grad[j, i] = the sum over the part's rows of p[row, j] x[row, i]. Every warp
// takes its own rows of the part; what they found is added through shared memory.
template <class T, int K> __device__ void part_gradient(const SoftmaxRegressionStep& a, int64_t strip, int64_t begin,
                                                        int64_t end, int64_t first, float* staged, float* grad) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, classes = (int)(a.c - first < K ? a.c - first : K);
  const int64_t i = strip * kStrip + lane * 4;
  const T* x = static_cast<const T*>(a.x);
  const bool four = a.d % 4 == 0 && reinterpret_cast<uintptr_t>(x) % alignof(Four<T>) == 0;
  float acc[K][4];
  for (int j = 0; j < K; ++j)
    for (int u = 0; u < 4; ++u) acc[j][u] = 0.0f;
  for (int64_t row = begin; row < end; row += kBatch) {
    const int rows = (int)(end - row < kBatch ? end - row : kBatch);
    __syncthreads();  // the previous residuals have been used
    for (int t = threadIdx.x; t < rows * K; t += kThreads) {
      const int r = t / K, j = t - r * K;
      staged[t] = j < classes ? a.coef[(row + r) * a.c + first + j] : 0.0f;
    }
    __syncthreads();
    for (int r = warp; r < rows && i < a.d; r += kWarps) {
      const int64_t from = a.index ? a.index[row + r] : row + r;
      Four<T> v{};
      if (from >= 0 && from < a.rows) {
        if (four)
          v = *reinterpret_cast<const Four<T>*>(x + from * a.d + i);
        else
          for (int u = 0; u < 4; ++u)
            if (i + u < a.d) v.v[u] = x[from * a.d + i + u];
      }
#pragma unroll
      for (int j = 0; j < K; j += 4) {
        const Four<float> p = *reinterpret_cast<const Four<float>*>(staged + r * K + j);
#pragma unroll
        for (int q = 0; q < 4; ++q)
#pragma unroll
          for (int u = 0; u < 4; ++u) acc[j + q][u] = fma_(p.v[q], (float)wide(v.v[u]), acc[j + q][u]);
      }
    }
  }
  float* sums = staged + kBatch * kTall;  // (kWarps, kStrip)
#pragma unroll
  for (int j = 0; j < K; ++j) {
    if (j >= classes) break;
    __syncthreads();  // the previous class has been added
    for (int u = 0; u < 4; ++u) sums[warp * kStrip + lane * 4 + u] = acc[j][u];
    __syncthreads();
    const int64_t to = strip * kStrip + threadIdx.x;
    if (threadIdx.x < kStrip && to < a.d) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[w * kStrip + threadIdx.x];
      grad[(first + j) * a.d + to] = sum;
    }
  }
}

// One block per strip of features and part of the rows.
template <class T> __global__ void __launch_bounds__(kThreads, 1)
    gradient(SoftmaxRegressionStep a, int64_t parts, int64_t each) {
  float* staged = dynamic_shared<float>();
  const int64_t strips = (a.d + kStrip - 1) / kStrip, tiles = (a.c + kTall - 1) / kTall;
  const int now = (int)(((a.c + tiles - 1) / tiles + 3) / 4 * 4);
  for (int64_t w = blockIdx.x; w < strips * parts; w += gridDim.x) {
    const int64_t part = w / strips, strip = w - part * strips;
    const int64_t begin = part * each, end = begin + each < a.n ? begin + each : a.n;
    float* grad = a.grad + part * a.c * a.d;
    for (int64_t first = 0; first < a.c; first += now) {
      if (now == 4)
        part_gradient<T, 4>(a, strip, begin, end, first, staged, grad);
      else if (now == 8)
        part_gradient<T, 8>(a, strip, begin, end, first, staged, grad);
      else if (now == 12)
        part_gradient<T, 12>(a, strip, begin, end, first, staged, grad);
      else
        part_gradient<T, 16>(a, strip, begin, end, first, staged, grad);
    }
  }
}

// weight -= scale * the parts' gradients; the first block also adds up the rows' losses.
__global__ void update(SoftmaxRegressionStep a, int64_t parts, float scale) {
  if (blockIdx.x == 0) {
    double* sums = dynamic_shared<double>();  // (2, kThreads)
    for (int which = 0; which < 2; ++which) {
      double sum = 0;
      for (int64_t row = threadIdx.x; row < a.n; row += kThreads) sum += a.result[2 + which * a.n + row];
      sums[which * kThreads + threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 2) {
      double sum = 0;
      for (int t = 0; t < kThreads; ++t) sum += sums[threadIdx.x * kThreads + t];
      a.result[threadIdx.x] = threadIdx.x == 0 ? sum / (double)a.n : sum;
    }
  }
  const int64_t total = a.c * a.d, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < total && parts; t += step) {
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += a.grad[part * total + t];
    a.weight[t] = fma_(-scale, sum, a.weight[t]);
  }
}

int64_t size_of(const SoftmaxRegressionStep& a) { return a.dtype == DType::u8 ? 1 : 4; }
int rows_of(const SoftmaxRegressionStep& a) { return a.n < 8 * attribute(cudaDevAttrMultiProcessorCount) ? 2 : 8; }
Plan plan_of(const SoftmaxRegressionStep& a) {
  const int rows = rows_of(a);
  return cut(a.d, size_of(a), rows, attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - fixed_bytes(a.c, rows, 4));
}
// Rows a part: two blocks a multiprocessor, but enough rows for each that the parts' sums are the smaller traffic.
int64_t each_of(const SoftmaxRegressionStep& a) {
  const int64_t strips = (a.d + kStrip - 1) / kStrip, wanted = 2 * (int64_t)attribute(cudaDevAttrMultiProcessorCount);
  const int64_t parts = wanted / strips < 1 ? 1 : wanted / strips;
  const int64_t each = (a.n + parts - 1) / parts;
  return each < kBatch ? kBatch : each;
}
int64_t parts_of(const SoftmaxRegressionStep& a) { return (a.n + each_of(a) - 1) / each_of(a); }

template <class T, int R> const char* products(const SoftmaxRegressionStep& a, cudaStream_t s) {
  const Plan plan = plan_of(a);
  const Rows rows{a.x, a.weight, a.index, nullptr, nullptr, a.d, a.d, a.c, 0, a.rows};
  const size_t shared = (size_t)(fixed_bytes(a.c, R, 4) + R * plan.pitch * (int64_t)sizeof(T));
  return launch(coefficients<T, R>, grid_of(a.n, R, plan.splits), kThreads, shared, s, rows, plan, a.coef, (int64_t)0,
                a.n);
}

template <class T> const char* run(const SoftmaxRegressionStep& a, cudaStream_t s) {
  const char* bad = rows_of(a) == 8 ? products<T, 8>(a, s) : products<T, 2>(a, s);
  const int64_t rows = (a.n + kWarps - 1) / kWarps, parts = a.lr != 0.0f ? parts_of(a) : 0;
  if (!bad)
    bad = launch(residuals, rows < 4096 ? rows : 4096, kThreads, 0, s, a, plan_of(a).splits,
                 sizeof(T) == 1 ? 1.0f / 255.0f : 1.0f);
  if (!bad && parts) {
    const int64_t work = parts * ((a.d + kStrip - 1) / kStrip);
    bad = launch(gradient<T>, work < 65536 ? work : 65536, kThreads, (kBatch * kTall + kWarps * kStrip) * sizeof(float),
                 s, a, parts, each_of(a));
  }
  if (!bad)
    bad = launch(update, parts ? blocks(a.c * a.d) : (int64_t)1, kThreads, 2 * kThreads * sizeof(double), s, a, parts,
                 (float)(a.lr / (double)a.n));
  return bad;
}

}  // namespace

int64_t softmax_scratch(const SoftmaxRegressionStep& a) { return plan_of(a).splits * a.n * a.c; }
int64_t softmax_parts(const SoftmaxRegressionStep& a) { return a.lr != 0.0f && a.n ? parts_of(a) : 0; }

const char* softmax_regression_step(const SoftmaxRegressionStep& a, void* stream) {
  if (a.n == 0 || a.d == 0 || a.c == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.dtype == DType::u8) return run<uint8_t>(a, s);
  if (a.dtype == DType::f32) return run<float>(a, s);
  return "unknown dtype";
}

}  // namespace cuda
}  // namespace ulfast
