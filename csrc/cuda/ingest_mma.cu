// ingest on CUDA, on the tensor cores: many images whose rows are a multiple of 32 RGB pixels, a basis of up to 16
// rows.
//
// Pixels are integers up to 255, which half precision holds exactly; the basis and the coefficients are the sum of two
// halves each, scaled by powers of two, so that a product errs by about 2^-22 of it, as float32 does. Both products use
// tiles of 16 images: 10 to 12 matrix instructions for 512 values, a hundredth of the multiply-adds' time.
//
// Bytes: n d (1 + size of the result) where a slice holds an image, n d more otherwise (three launches, as resident.cuh
// has them). Flops: 4 n d k useful, 10 n d 16 done. Bound: memory, then some ten instructions per value for its place
// and its rounding.
//
// A warp takes units of 32 pixels of an image row of the 16 images, whose bytes stay in its registers; its results are
// written, shifted and flipped, to their place in the row in the warp's shared memory, and from there to the result.
// Only the products of the whole slice are summed by the block: two barriers per group.
#include "mma.cuh"
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kImages = 16, kWarpsOf = 16, kUnit = 96, kHeldUnits = 2;  // a warp's units
constexpr int kBlocks = kUnit / 32;                                     // of 32 values
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kAhead = false;  // registers are fewer there
#else
constexpr bool kAhead = true;  // the next images are loaded early
#endif
constexpr int kRank = 16;  // most basis rows

struct Move {
  int dy, dx;
  int state;  // 1: flipped, 2: its index is out of range, 4: there is no such image
};

// A block's shared memory besides the basis and the warps' places.
struct Small {
  float products[kWarpsOf];  // of a float32 basis row with itself, to scale it
  float bias[4];
  float times[kImages];                                        // the divisor of the coefficients of an image
  uint16_t high[kImages][kRank + 8], low[kImages][kRank + 8];  // the coefficients
  Move moves[2][kImages];  // of this group and, while some warps are behind, the last
};

__host__ __device__ constexpr int pitch_of(int units) { return units * kUnit + 8; }  // of a basis row, in halves
template <class O> __host__ __device__ constexpr int place_bytes() {
  return kImages * kUnit * (int)sizeof(O);  // more than the products, of which there are kRank + 2 an image
}

// Where a value lies within its 32, so that both products read the basis without conflicts and find a thread's own
// pixels: value 8 t + 4 s + 2 h + e at 16 s + 8 h + 2 t + e.
__device__ __forceinline__ int position(int value) {
  return (value / 4 % 2) * 16 + (value / 2 % 2) * 8 + value / 8 * 2 + value % 2;
}

// Basis rows as two halves each, scaled by a power of two to a length of about 1; up[j]: what the products with row j
// are multiples of, for pixels up to 255. A warp a row.
__device__ void split_basis(const float* basis, int k, int64_t whole, int d, int pitch, uint16_t* high, uint16_t* low,
                            float* up) {
  const int lane = threadIdx.x % 32, j = threadIdx.x / 32;
  if (j >= k) return;
  const float* row = basis + j * whole;
  float square = 0.0f;
#pragma unroll 8
  for (int i = lane * 4; i < d; i += 128) {
    const Four<float> b = *reinterpret_cast<const Four<float>*>(row + i);
#pragma unroll
    for (int u = 0; u < 4; ++u) square = fmaf(b.v[u], b.v[u], square);
  }
  for (int offset = 16; offset; offset /= 2) square += __shfl_xor_sync(0xffffffffu, square, offset);
  // 2^-e for a length in [2^e, 2^(e + 1)), by the bits of the square; a row of zeros stays one.
  const int exponent = (int)(bits_of_f32(square) >> 23 & 255) - 127;
  const int e = square > 0.0f && exponent < 128 ? (exponent - (exponent & 1)) / 2 : 0;
  const float scale = f32_of_bits((uint32_t)(127 - e) << 23);
  if (lane == 0) up[j] = 255.0f * scale;
#pragma unroll 4
  for (int i = lane * 4; i < d; i += 128) {
    const Four<float> b = *reinterpret_cast<const Four<float>*>(row + i);
    const int to = j * pitch + i / 32 * 32 + position(i % 32);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint16_t a[2], c[2];
      in_two(b.v[2 * h] * scale, &a[0], &c[0]);
      in_two(b.v[2 * h + 1] * scale, &a[1], &c[1]);
      *reinterpret_cast<uint32_t*>(high + to + 8 * h) = a[0] | (uint32_t)a[1] << 16;
      *reinterpret_cast<uint32_t*>(low + to + 8 * h) = c[0] | (uint32_t)c[1] << 16;
    }
  }
}

struct alignas(8) Words {
  uint32_t v[2];
};

// The words of the thread: units, blocks of 32 values, images g and g + 8.
using Held = Words[kHeldUnits][kBlocks][2];

// NT: eights of basis rows. Wide: image rows of several units.
template <class O, int NT, Part part, bool Wide> __global__ void __launch_bounds__(kBlock, 1)
    mma_ingest_kernel(Rows a, Augment f, Task task, O* result) {
  const int pitch = pitch_of(task.slices.features / kUnit), splits = task.slices.splits, k = (int)a.k;
  const int split = blockIdx.x % splits, lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t from = (int64_t)split * task.slices.features;
  const int d = a.d - from < task.slices.features ? (int)(a.d - from) : task.slices.features, units = d / kUnit;
  const int64_t groups = (task.end - task.begin + kImages - 1) / kImages, step = task.slices.blocks;
  uint16_t *high = dynamic_shared<uint16_t>(), *low = high + k * pitch;
  char* places = reinterpret_cast<char*>(low + k * pitch);
  O* place = reinterpret_cast<O*>(places + warp * place_bytes<O>());  // of the warp: images of a unit; or its products
  Small& small = *reinterpret_cast<Small*>(places + kWarpsOf * place_bytes<O>());
  const int wc = 3 * f.w;

  const auto ask = [&](int64_t i, Held& words) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int64_t row = task.begin + i * kImages + g + 8 * r;
      bool there = i < groups && row < task.end;
      if (there && a.index) row = a.index[row], there = row >= 0 && row < a.sources;
      const uint8_t* image = static_cast<const uint8_t*>(a.x) + (there ? row : 0) * a.stride + from + 8 * t;
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u)
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const int unit = warp + kWarpsOf * u;
          words[u][b][r] =
              there && unit < units ? *reinterpret_cast<const Words*>(image + unit * kUnit + 32 * b) : Words{{0, 0}};
        }
    }
  };

  Held next;
  int64_t i = blockIdx.x / splits;
  ask(i, next);  // in flight while the basis is read
  split_basis(static_cast<const float*>(a.basis) + from, k, a.d, d, pitch, high, low, small.products);
  if (threadIdx.x < 3) small.bias[threadIdx.x] = -f.mean[threadIdx.x] / f.std[threadIdx.x];
  // By the channel of the values 8 t + c, c = 0, 1, 2: what it is, and how a value becomes a result.
  float scale[3], bias[3];
  int channel[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    channel[c] = (2 * t + c) % 3;
    const float over = 1.0f / f.std[channel[c]];
    scale[c] = over * (1.0f / 255.0f), bias[c] = -f.mean[channel[c]] * over;
  }
  const uint32_t one = g == 2 * t ? 0x3C00u : g == 2 * t + 1 ? 0x3C000000u : 0u;  // of the identity matrix
  __syncthreads();

  for (int turn = 0; i < groups; i += step, turn ^= 1) {
    const int64_t first = task.begin + i * kImages;
    Held words;
#pragma unroll
    for (int u = 0; u < kHeldUnits; ++u)
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int r = 0; r < 2; ++r) words[u][b][r] = next[u][b][r];
    if (kAhead) ask(i + step, next);
    if (part != Part::products && threadIdx.x < kImages) {
      const int64_t image = first + threadIdx.x;
      Move m{0, 0, image < task.end ? 0 : 4};
      if (image < task.end) {
        if (f.shift) {
          const int dy = f.shift[2 * image], dx = f.shift[2 * image + 1];
          m.dy = dy < -f.h ? -f.h : dy > f.h ? f.h : dy, m.dx = dx < -f.w ? -f.w : dx > f.w ? f.w : dx;
        }
        if (f.flip && f.flip[image]) m.state |= 1;
        if (a.index && (a.index[image] < 0 || a.index[image] >= a.sources)) m.state |= 2;
      }
      small.moves[turn][threadIdx.x] = m;
    }

    if (part != Part::rest) {
      float sum[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[n][c] = 0.0f;
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        const int unit = warp + kWarpsOf * u;
        if (unit >= units) break;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          uint32_t x[2][4];
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            x[s][0] = halves<false>(words[u][b][0].v[s]), x[s][1] = halves<false>(words[u][b][1].v[s]);
            x[s][2] = halves<true>(words[u][b][0].v[s]), x[s][3] = halves<true>(words[u][b][1].v[s]);
          }
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            const int j = n * 8 + lane % 8, row = j < k ? j : k - 1;  // the result of an excess row is not used
            const int at = row * pitch + unit * kUnit + 32 * b + lane / 8 * 8;
            uint32_t v[4];
            load_matrices<false>(v, high + at);
            multiply(sum[n], x[0], v[0], v[1]);
            multiply(sum[n], x[1], v[2], v[3]);
            load_matrices<false>(v, low + at);
            multiply(sum[n], x[0], v[0], v[1]);
            multiply(sum[n], x[1], v[2], v[3]);
          }
        }
      }
      float* mine = reinterpret_cast<float*>(place);  // (images, kRank + 2)
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) mine[(g + c / 2 * 8) * (kRank + 2) + n * 8 + 2 * t + c % 2] = sum[n][c];
    }
    __syncthreads();
    if (threadIdx.x < kImages * kRank) {
      const int row = threadIdx.x / kRank, j = threadIdx.x % kRank;
      const bool there = j < k && first + row < task.end;
      float sum = 0.0f;
      if (there && part == Part::rest) {
        sum = task.sums[(first + row - task.begin) * k + j] * small.products[j];
      } else if (j < NT * 8) {
#pragma unroll
        for (int w = 0; w < kWarpsOf; ++w)
          sum += reinterpret_cast<const float*>(places + w * place_bytes<O>())[row * (kRank + 2) + j];
      }
      if (part == Part::products) {
        if (there)
          task.sums[(split * (task.end - task.begin) + first + row - task.begin) * k + j] = sum / small.products[j];
      } else {
        // The coefficients of the scaled rows, divided by a power of two, so that halves hold the largest.
        const float up = j < k ? small.products[j] * (1.0f / 255.0f) : 1.0f;
        const float q = there ? sum / (up * up) : 0.0f;
        float top = fabsf(q);
        for (int offset = kRank / 2; offset; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        const int exponent = (int)(bits_of_f32(top) >> 23) - 127 - 14;
        const int e = exponent > 0 ? (exponent < 100 ? exponent : 100) : 0;
        in_two(q * f32_of_bits((uint32_t)(127 - e) << 23), &small.high[row][j], &small.low[row][j]);
        if (j == 0) small.times[row] = f32_of_bits((uint32_t)(127 + e) << 23);
      }
    }
    __syncthreads();
    if constexpr (part != Part::products) {
      uint32_t many[4], few[4];  // the coefficients of images g and g + 8
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        many[c] = *reinterpret_cast<const uint32_t*>(&small.high[g + c % 2 * 8][2 * t + c / 2 * 8]);
        few[c] = *reinterpret_cast<const uint32_t*>(&small.low[g + c % 2 * 8][2 * t + c / 2 * 8]);
      }
      const float times[2] = {-small.times[g], -small.times[g + 8]};
#pragma unroll 1
      for (int u = 0; u < kHeldUnits; ++u) {
        const int unit = warp + kWarpsOf * u;
        if (unit >= units) break;
        const int64_t value = from + unit * kUnit;
        const int y = (int)(value / wc), segment = (int)(value - (int64_t)y * wc);  // the image row, and where in it
        // A value's place: itself or its mirror image, in the row or, of a part of a row, in what the part becomes.
        int off[2];
        bool flip[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Move mine = small.moves[turn][g + 8 * r];
          flip[r] = mine.state & 1;
          off[r] = Wide ? (flip[r] ? 93 : 0) : flip[r] ? 93 + 3 * mine.dx : -3 * mine.dx;
        }
        __syncwarp();  // the previous images have been written
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            const int s = m / 2, h = m % 2;
            const int j = lane / 8 % 2 * 8 + lane % 8, row = j < k ? j : k - 1;  // its coefficient is zero
            uint32_t v[4], x[4];
            load_matrices<true>(v, (lane / 16 ? low : high) + row * pitch + unit * kUnit + 32 * b + 8 * m);
            const Words upper = u ? words[1][b][0] : words[0][b][0], lower = u ? words[1][b][1] : words[0][b][1];
            x[0] = halves<false>(upper.v[s]), x[1] = halves<false>(lower.v[s]);
            x[2] = halves<true>(upper.v[s]), x[3] = halves<true>(lower.v[s]);
            float removed[4] = {0, 0, 0, 0}, pixels[4] = {0, 0, 0, 0};
            multiply(removed, few, v[0], v[1]);
            multiply(removed, many, v[2], v[3]);
            multiply(removed, many, v[0], v[1]);
            multiply(pixels, x, h ? 0u : one, h ? one : 0u);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              const int r = c / 2, e = c % 2, of = (2 * b + s + 2 * h + e) % 3;
              const int at = 32 * b + 8 * t + 2 * m + e, to = (flip[r] ? 2 * channel[of] - at : at) + off[r];
              const float left = fmaf(times[r], removed[c], pixels[c]);
              if (Wide || (unsigned)to < (unsigned)kUnit)
                narrow(fmaf(left, scale[of], bias[of]), place + (g + 8 * r) * kUnit + to);
            }
          }
        }
        if (!Wide)  // the pixels of the row that none of the image reaches
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int dx = small.moves[turn][g + 8 * r].dx;
            for (int p = t; p < (dx < 0 ? -dx : dx); p += 4) {
              const int pixel = dx < 0 ? p : f.w - 1 - p;
              O* to = place + (g + 8 * r) * kUnit + 3 * (flip[r] ? f.w - 1 - pixel : pixel);
              for (int c = 0; c < 3; ++c) narrow(small.bias[c], to + c);
            }
          }
        __syncwarp();
        if (!Wide) {
          constexpr int fours = kUnit / 4;
#pragma unroll 2
          for (int c = 0; c < kImages * fours / 32; ++c) {
            const int image = (lane + 32 * c) / fours, e = (lane + 32 * c) % fours * 4;
            const Move m = small.moves[turn][image];
            O* out = result + (first + image) * a.d + e;
            if (m.state & 4) continue;
            Four<O> v = *reinterpret_cast<const Four<O>*>(place + image * kUnit + e);
            if (m.state & 2) {
#pragma unroll
              for (int q = 0; q < 4; ++q) narrow(NAN, &v.v[q]);
              stream_out(out + y * kUnit, v);
              continue;
            }
            if (y - m.dy >= 0 && y - m.dy < f.h) stream_out(out + (y - m.dy) * kUnit, v);
            if (y < -m.dy || y >= f.h - m.dy) {  // and its own row in the result, if none comes there
#pragma unroll
              for (int q = 0; q < 4; ++q) narrow(small.bias[(e + q) % 3], &v.v[q]);
              stream_out(out + y * kUnit, v);
            }
          }
        } else {
#pragma unroll 1
          for (int image = 0; image < kImages; ++image) {
            const Move m = small.moves[turn][image];
            if (m.state & 4) continue;
            O* out = result + (first + image) * a.d;
            const int begin = m.state & 1 ? 3 * (f.w - 1 + m.dx) - segment - 93 : segment - 3 * m.dx;
            const bool seen = y - m.dy >= 0 && y - m.dy < f.h, black = y < -m.dy || y >= f.h - m.dy;
#pragma unroll
            for (int c = 0; c < kUnit / 32; ++c) {
              const int e = lane + 32 * c, to = begin + e;
              if (m.state & 2)
                narrow(NAN, out + (int64_t)y * wc + segment + e);
              else if (seen && to >= 0 && to < wc)
                out[(int64_t)(y - m.dy) * wc + to] = place[image * kUnit + e];
              if (black && !(m.state & 2)) narrow(small.bias[e % 3], out + (int64_t)y * wc + segment + e);
            }
            if (seen && segment == 0 && !(m.state & 2))
              for (int p = lane; p < (m.dx < 0 ? -m.dx : m.dx); p += 32) {
                const int pixel = m.dx < 0 ? p : f.w - 1 - p;
                O* to = out + (int64_t)(y - m.dy) * wc + 3 * (m.state & 1 ? f.w - 1 - pixel : pixel);
                for (int c = 0; c < 3; ++c) narrow(small.bias[c], to + c);
              }
          }
        }
      }
    }
    if (!kAhead) ask(i + step, next);
  }
}

// Bytes of shared memory per block.
template <class O> int64_t shared_of(int64_t k, int64_t units) {
  return 2 * k * pitch_of((int)units) * 2 + kWarpsOf * place_bytes<O>() + (int64_t)sizeof(Small);
}

// Enough slices of whole units to keep the multiprocessors busy, with at most two units per warp.
template <class O> Slices slices_of(const Ingest& a) {
  const int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), units = a.h * a.w / 32;
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  int64_t most = kHeldUnits * kWarpsOf;
  while (most && shared_of<O>(a.k, most) > limit) --most;
  if (!most) return {0, 0, 0, 0};
  const int64_t groups = (a.n + kImages - 1) / kImages;
  int64_t splits = (units + most - 1) / most, blocks = multiprocessors / splits;
  if (blocks < 1) blocks = 1;
  if (splits > 1) {
    const int64_t wide = (units * blocks + multiprocessors - 1) / multiprocessors;
    if (wide <= most) splits = (units + wide - 1) / wide;
  }
  if (blocks > groups) blocks = groups;
  const int64_t each = (units + splits - 1) / splits;
  return {(int)(each * kUnit), (int)((units + each - 1) / each), (int)blocks, shared_of<O>(a.k, each)};
}

template <class O, int NT, bool Wide> const char* run(const Ingest& a, cudaStream_t stream) {
  const int64_t d = a.h * a.w * a.c;
  const Slices s = slices_of<O>(a);
  const Rows rows{a.images, a.basis, a.index, nullptr, nullptr, d, d, a.k, 0, a.images_n};
  const Augment frame{a.mean, a.std, a.shift, a.flip, (int)a.h, (int)a.w};
  O* out = static_cast<O*>(a.out);
  const int64_t grid = (int64_t)s.splits * s.blocks;
  const size_t shared = (size_t)s.shared;
  if (s.splits == 1)
    return launch(mma_ingest_kernel<O, NT, Part::all, Wide>, grid, kBlock, shared, stream, rows, frame,
                  Task{s, 0, a.n, nullptr}, out);
  for (int64_t i = 0; i < a.n; i += kRowsAtOnce) {
    const int64_t end = i + kRowsAtOnce < a.n ? i + kRowsAtOnce : a.n, count = (end - i) * a.k;
    const char* bad = launch(mma_ingest_kernel<O, NT, Part::products, Wide>, grid, kBlock, shared, stream, rows, frame,
                             Task{s, i, end, a.coef}, out);
    if (!bad)
      bad = launch(add_slices, blocks(count), kThreads, 0, stream, (const float*)a.coef, a.coef + s.splits * count,
                   count, s.splits);
    if (!bad)
      bad = launch(mma_ingest_kernel<O, NT, Part::rest, Wide>, grid, kBlock, shared, stream, rows, frame,
                   Task{s, i, end, a.coef + s.splits * count}, out);
    if (bad) return bad;
  }
  return nullptr;
}
template <class O> const char* run(const Ingest& a, cudaStream_t stream) {
  if (a.w == 32) return a.k > 8 ? run<O, 2, false>(a, stream) : run<O, 1, false>(a, stream);
  return a.k > 8 ? run<O, 2, true>(a, stream) : run<O, 1, true>(a, stream);
}

}  // namespace

bool mma_fits(const Ingest& a) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 8) return false;
  if (a.c != 3 || a.w % 32 || a.in_dtype != DType::u8 || a.out_dtype == DType::f32) return false;
  if (a.k < 1 || a.k > kRank || a.classes > 0 || a.h * a.w / 32 < kWarpsOf) return false;
  const Slices s = slices_of<bf16>(a);
  const int64_t groups = (a.n + kImages - 1) / kImages;
  return s.splits > 0 && 2 * groups * s.splits >= attribute(cudaDevAttrMultiProcessorCount);
}

int64_t mma_scratch(const Ingest& a) {
  const int64_t splits = slices_of<bf16>(a).splits;
  return splits == 1 ? 0 : (splits + 1) * (a.n < kRowsAtOnce ? a.n : kRowsAtOnce) * a.k;
}

const char* mma_ingest(const Ingest& a, cudaStream_t stream) {
  return a.out_dtype == DType::f16 ? run<f16>(a, stream) : run<bf16>(a, stream);
}

}  // namespace cuda
}  // namespace ulfast
