// perturb_ar on CUDA: autoregressive noise, scaled and put straight onto the stored image.
//
// A block an image, a warp a channel. A value needs the two before it and three of each of the two rows above, so a
// warp sweeps a strip of up to 32 rows as a wave: lane l makes column t - l of row l at step t, and hands it down by
// shuffles. Every value is the same eight uncontracted products in the same order as on the CPU. The size of the whole
// image must be known before its first pixel is written, so the image is swept twice; strips are staged in shared
// memory and leave it as contiguous bytes.
//
// Bytes: 2 d an image. Flops: 2 * 16 (h + 2)(w + 2) channels, 55,500 at 32 px, and 420 normals. Bound: neither, but the
// latency of 2 (h + 2) / 32 strips of w + 34 steps, two dependent operations each, over the blocks that a
// multiprocessor holds. The square of the norm is added in another order than on the CPU: the scale may differ by its
// last bit. A label out of range leaves its image as it is; a perturbation becomes NaN. Not yet run on a GPU.
#include "../random/philox.h"

#include "pixels.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kBorder = 4;  // rows and columns that the sweep starts from, and that are cut off
constexpr int kWarps = 3;   // channels side by side; more take turns

struct Layout {
  int64_t rows;  // a strip
};

// Strip by strip. Write: each strip is scaled and leaves. Else: returns this lane's squares (L2) or largest size.
template <bool Write> __device__ double sweep(const PerturbAr& a, const Layout& plan, const float* border, float* carry,
                                              float* tile, int64_t n, const float* windows, float scale) {
  const int64_t H = a.h + kBorder, W = a.w + kBorder, each = 2 * W + 2 * (H - 2), line = a.w * a.channels;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double size = 0;
  for (int64_t first = 2; first < H; first += plan.rows) {
    const int64_t count = H - first < plan.rows ? H - first : plan.rows, y = first + lane;
    for (int64_t c = warp; c < a.channels; c += kWarps) {
      const float* of = border + c * each;
      float* kept = carry + c * 2 * W;
      float w[8], a0 = 0, a1 = 0, b0 = 0, b1 = 0, b2 = 0, before2 = 0, before1 = 0;
      for (int t = 0; t < 8; ++t) w[t] = windows[c * 9 + t];
      for (int64_t t = 0; t < W + count - 1; ++t) {
        // Column t - lane: the row above was there one step ago, and knew the row above itself.
        const float above = __shfl_up_sync(0xffffffffu, before1, 1), higher = __shfl_up_sync(0xffffffffu, b2, 1);
        __syncwarp();  // `kept`, which lane 0 reads, is written by the last two lanes
        const int64_t x = t - lane;
        const bool mine = lane < count && x >= 0 && x < W;
        float a2 = higher, now = before1;
        float next = above;
        if (lane == 0 && mine) {
          a2 = first == 2 ? of[x] : kept[x];
          next = first == 2 ? of[W + x] : kept[W + x];
        }
        if (mine) {
          b2 = next;
          if (x < 2) {
            now = of[2 * W + 2 * (y - 2) + x];
          } else {
            now = ar_value(w, a0, a1, a2, b0, b1, b2, before2, before1);
          }
          a0 = a1, a1 = a2, b0 = b1, b1 = b2, before2 = before1, before1 = now;
          if (lane >= count - 2) kept[(lane - (count - 2)) * W + x] = now;
          if (x >= kBorder && y >= kBorder) {
            if (Write)
              tile[lane * line + (x - kBorder) * a.channels + c] = now;
            else if (a.kind == Norm::l2)
              size += (double)now * now;
            else
              size = fabs((double)now) > size ? fabs((double)now) : size;
          }
        }
      }
      __syncwarp();
    }
    if (!Write) continue;
    __syncthreads();  // the strip is whole
    const int64_t skip = first < kBorder ? kBorder - first : 0, at = n * a.h * line + (first + skip - kBorder) * line;
    for (int64_t i = threadIdx.x; i < (count - skip) * line; i += kWarps * 32) {
      const float v = tile[skip * line + i] * scale;
      if (!a.images)
        static_cast<float*>(a.out)[at + i] = v;
      else
        static_cast<uint8_t*>(a.out)[at + i] = pixel(a.images[at + i], v, a.truncate);
    }
    __syncthreads();  // and may be overwritten
  }
  return size;
}

__global__ void perturb_ar_kernel(PerturbAr a, Layout plan) {
  const int64_t H = a.h + kBorder, W = a.w + kBorder, each = 2 * W + 2 * (H - 2), line = a.w * a.channels;
  double* sizes = dynamic_shared<double>();  // a thread each, then the border, two rows a channel, the strip
  float* border = reinterpret_cast<float*>(sizes + kWarps * 32);
  float *carry = border + (a.channels * each + 3) / 4 * 4, *tile = carry + a.channels * 2 * W;
  for (int64_t n = blockIdx.x; n < a.n; n += gridDim.x) {
    const int64_t label = a.labels[n];
    if (label < 0 || label >= a.classes) {
      for (int64_t i = n * a.h * line + threadIdx.x; i < (n + 1) * a.h * line; i += kWarps * 32) {
        if (!a.images)
          static_cast<float*>(a.out)[i] = NAN;
        else
          static_cast<uint8_t*>(a.out)[i] = a.images[i];
      }
      continue;
    }
    __syncthreads();  // the last image's border has been used
    for (int64_t b = threadIdx.x; b < (a.channels * each + 3) / 4; b += kWarps * 32) {
      uint32_t w[4];
      philox::words((uint64_t)a.seed, philox::kStreamAr, (uint64_t)(a.first + n), (uint32_t)b, w);
      philox::normal2(w[0], w[1], border + 4 * b, border + 4 * b + 1);
      philox::normal2(w[2], w[3], border + 4 * b + 2, border + 4 * b + 3);
    }
    __syncthreads();
    const float* windows = a.coefficients + label * a.channels * 9;
    float scale = 1;
    if (a.kind != Norm::none) {
      sizes[threadIdx.x] = sweep<false>(a, plan, border, carry, tile, n, windows, scale);
      __syncthreads();
      double size = 0;
      for (int i = 0; i < kWarps * 32; ++i)  // always in the same order
        size = a.kind == Norm::l2 ? size + sizes[i] : sizes[i] > size ? sizes[i] : size;
      if (a.kind == Norm::l2) size = sqrt(size);
      scale = (float)(a.norm / (size > 1e-12 ? size : 1e-12));
    }
    sweep<true>(a, plan, border, carry, tile, n, windows, scale);
  }
}

int64_t fixed_bytes(const PerturbAr& a) {
  const int64_t each = 2 * (a.h + a.w + 6);
  return kWarps * 32 * 8 + ((a.channels * each + 3) / 4 * 4 + a.channels * 2 * (a.w + kBorder)) * 4;
}

// Rows of a strip: 32, or what shared memory takes; two are needed.
int64_t rows_of(const PerturbAr& a) {
  const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), limit = most < 100 << 10 ? most : 100 << 10;
  const int64_t fits = (limit - fixed_bytes(a)) / (a.w * a.channels * 4);
  return fits < 32 ? fits : 32;
}

}  // namespace

int64_t perturb_ar_fits(const PerturbAr& a) { return rows_of(a) >= 2; }

const char* perturb_ar(const PerturbAr& a, void* stream) {
  if (a.n == 0) return nullptr;
  const Layout plan{rows_of(a)};
  if (plan.rows < 2) return "the image's rows do not fit in shared memory";
  const size_t shared = (size_t)(fixed_bytes(a) + plan.rows * a.w * a.channels * 4);
  return launch(perturb_ar_kernel, a.n < 65535 ? a.n : (int64_t)65535, kWarps * 32, shared,
                static_cast<cudaStream_t>(stream), a, plan);
}

}  // namespace cuda
}  // namespace ulfast
