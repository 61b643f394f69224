// perturb_ar on CUDA: autoregressive noise, scaled and added directly to the stored image.
//
// A value needs the two before it and three of each of the two rows above, so a warp sweeps rows as a wave: a lane is
// one column behind the lane whose rows are above its own, and gets their values by shuffles. Every value is the sum of
// the same eight uncontracted products in the same order as on the CPU.
//
// A small image is a warp's: a lane has kTall rows of a channel, the channels lie side by side, and the unscaled image
// stays in shared memory until its size is known. Larger ones: a block an image, a warp a channel, a row a lane in
// strips of up to 32 rows, swept twice, because the size must be known before the first pixel is written.
//
// Bytes: 2 d an image. Flops: 16 (h + 2)(w + 2) channels, 55,500 at 32 px, and 420 normals. Bound: the instructions of
// a small image (16 a value, and half as many again to shift, store, add up and write it); the latency of 2 (h + 2) /
// 32 strips of w + 34 steps, two dependent operations each, over the blocks that a multiprocessor holds, of a larger
// one. The square of the norm is added in another order than on the CPU: the scale may differ by its last bit. A label
// out of range leaves its image unchanged; a perturbation becomes NaN.
#include "../random/philox.h"

#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kBorder = 4;             // rows and columns from which the sweep starts, and which are cropped
constexpr int kWarps = 3;              // channels side by side; more take turns
constexpr int kTeams = 2;              // small images of a block, a warp each
constexpr int64_t kSmall = 112 << 10;  // bytes of them: two and more blocks share a multiprocessor
constexpr int kTall = 4, kTaller = 8;  // rows of a lane

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
        __syncwarp();  // the last two lanes write `kept`, which lane 0 reads
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
    __syncthreads();  // the strip is complete
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
    __syncthreads();  // the previous image's border has been used
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

// Scaled values onto the stored pixels, by a warp.
template <bool Truncate> __device__ __forceinline__ void small_onto(const uint8_t* images, const float* tile,
                                                                    float scale, int quads, uint8_t* out) {
  const auto* stored = reinterpret_cast<const uint32_t*>(images);
  auto* to = reinterpret_cast<uint32_t*>(out);
  constexpr int kAhead = 8;  // words that a lane loads before it uses the first
  int i = threadIdx.x % 32;
  const auto moved = [&](uint32_t x, int at) {
    const float4 v = reinterpret_cast<const float4*>(tile)[at];
    const float levels[4] = {255.0f * (v.x * scale), 255.0f * (v.y * scale), 255.0f * (v.z * scale),
                             255.0f * (v.w * scale)};
    return levels4(x, levels, Truncate);
  };
  for (; i + (kAhead - 1) * 32 < quads; i += kAhead * 32) {
    uint32_t x[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) x[k] = stored[i + k * 32];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) to[i + k * 32] = moved(x[k], i + k * 32);
  }
  for (; i < quads; i += 32) to[i] = moved(stored[i], i);
}

// One warp per image; `lanes` lanes of Tall rows each form a channel. Each has `room` floats of shared memory.
template <int Tall> __global__ void __launch_bounds__(32 * kTeams, 1)
    small_ar_kernel(PerturbAr a, int lanes, int room) {
  const int h = (int)a.h, c = (int)a.channels, H = h + kBorder, W = (int)a.w + kBorder, line = (int)a.w * c;
  const int each = 2 * W + 2 * (H - 2), normals = (c * each + 3) / 4, d = h * line, lane = threadIdx.x % 32;
  const int team = threadIdx.x / 32;
  float *border = dynamic_shared<float>() + team * room, *tile = border + normals * 4;
  const int channel = lane / lanes < c ? lane / lanes : 0, l = lane % lanes;
  const bool busy = lane < lanes * c, wide = d % 4 == 0 && reinterpret_cast<uintptr_t>(a.images) % 4 == 0 &&
                                             reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  const float* of = border + channel * each;
  const float* sides = of + 2 * W + 2 * Tall * l;  // the first two columns of the lane's rows
  for (int64_t n = (int64_t)blockIdx.x * kTeams + team; n < a.n; n += (int64_t)gridDim.x * kTeams) {
    const int64_t label = a.labels[n];
    const uint8_t* images = a.images ? a.images + n * d : nullptr;
    uint8_t* out = static_cast<uint8_t*>(a.out) + n * d;
    float* alone = static_cast<float*>(a.out) + n * d;
    if (label < 0 || label >= a.classes) {
      for (int i = lane; i < d; i += 32) {
        if (!images)
          alone[i] = NAN;
        else
          out[i] = images[i];
      }
      continue;
    }
    for (int i = lane * 128; images && i < d; i += 32 * 128) soon(images + i);
    float w[8];
#pragma unroll
    for (int t = 0; t < 8; ++t) w[t] = a.coefficients[(label * c + channel) * 9 + t];
    __syncwarp();  // the previous image has been used
    for (int b = lane; b < normals; b += 32) {
      uint32_t words[4];
      float4 v;
      philox::words((uint64_t)a.seed, philox::kStreamAr, (uint64_t)(a.first + n), (uint32_t)b, words);
      philox::normal2(words[0], words[1], &v.x, &v.y);
      philox::normal2(words[2], words[3], &v.z, &v.w);
      reinterpret_cast<float4*>(border)[b] = v;
    }
    __syncwarp();
    float before2[Tall] = {}, before1[Tall] = {};  // the last two values of each row
    float a0 = 0, a1 = 0, b0 = 0, b1 = 0;          // and of the two rows above
    float* to[Tall];
    bool kept[Tall];
#pragma unroll
    for (int r = 0; r < Tall; ++r) {
      const int y = Tall * l + r + 2 - kBorder;
      to[r] = tile + y * line + (2 - l - kBorder) * c + channel, kept[r] = y >= 0 && y < h;
    }
#pragma unroll 2
    for (int t = 2; t < W + lanes - 1; ++t) {
      const int x = t - l;
      float a2 = __shfl_up_sync(0xffffffffu, before1[Tall - 2], 1),
            b2 = __shfl_up_sync(0xffffffffu, before1[Tall - 1], 1);
      if (l == 0 && x < W) a2 = of[x], b2 = of[W + x];
      if (x == 2) {  // what has been made so far is nothing
        const float *far = l ? sides - 4 : of, *near = l ? sides - 2 : of + W;
        a0 = far[0], a1 = far[1], b0 = near[0], b1 = near[1];
#pragma unroll
        for (int r = 0; r < Tall; ++r) before2[r] = sides[2 * r], before1[r] = sides[2 * r + 1];
      }
      float now[Tall];
#pragma unroll
      for (int r = 0; r < Tall; ++r) {
        const float p0 = r > 1 ? before2[r - 2] : r ? b0 : a0, p1 = r > 1 ? before1[r - 2] : r ? b1 : a1;
        const float q0 = r ? before2[r - 1] : b0, q1 = r ? before1[r - 1] : b1;
        now[r] = ar_value(w, p0, p1,
                          r > 1 ? now[r - 2]
                          : r   ? b2
                                : a2,
                          q0, q1, r ? now[r - 1] : b2, before2[r], before1[r]);
      }
      const bool inside = busy && x >= kBorder && x < W;
#pragma unroll
      for (int r = 0; r < Tall; ++r) {
        if (inside && kept[r]) *to[r] = now[r];
        to[r] += c;
      }
      a0 = a1, a1 = a2, b0 = b1, b1 = b2;
#pragma unroll
      for (int r = 0; r < Tall; ++r) before2[r] = before1[r], before1[r] = now[r];
    }
    __syncwarp();
    float scale = 1;
    if (a.kind != Norm::none) {
      double size = 0;
      if (a.kind == Norm::l2) {
        double parts[4] = {};  // chains of additions
        for (int i = lane; i < d / 4; i += 32) {
          const float4 v = reinterpret_cast<const float4*>(tile)[i];
          const double values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int u = 0; u < 4; ++u) parts[u] = fma(values[u], values[u], parts[u]);
        }
        for (int i = d / 4 * 4 + lane; i < d; i += 32) parts[0] = fma((double)tile[i], (double)tile[i], parts[0]);
        size = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        for (int offset = 16; offset; offset /= 2) size += __shfl_xor_sync(0xffffffffu, size, offset);
        size = sqrt(size);
      } else {
        float top = 0;
        for (int i = lane; i < d; i += 32) top = fmaxf(top, fabsf(tile[i]));
        for (int offset = 16; offset; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        size = top;
      }
      scale = (float)(a.norm / (size > 1e-12 ? size : 1e-12));
    }
    if (wide && !images) {
      for (int i = lane; i < d / 4; i += 32) {
        const float4 v = reinterpret_cast<const float4*>(tile)[i];
        stream_out(alone + 4 * i, Four<float>{{v.x * scale, v.y * scale, v.z * scale, v.w * scale}});
      }
    } else if (wide) {
      if (a.truncate)
        small_onto<true>(images, tile, scale, d / 4, out);
      else
        small_onto<false>(images, tile, scale, d / 4, out);
    } else {
      for (int i = lane; i < d; i += 32) {
        const float v = tile[i] * scale;
        if (images)
          out[i] = pixel(images[i], v, a.truncate);
        else
          alone[i] = v;
      }
    }
  }
}

// Lanes of `tall` rows each that make a channel of a small image; 0 if the channels do not fit in a warp.
int64_t lanes_of(const PerturbAr& a, int64_t tall) {
  const int64_t lanes = (a.h + 2 + tall - 1) / tall;
  return lanes * a.channels <= 32 ? lanes : 0;
}

// Bytes of shared memory of a small image: the border, its values, and what a lane reads past the last row.
int64_t small_bytes(const PerturbAr& a, int64_t tall) {
  const int64_t each = 2 * (a.h + a.w + 6);
  return ((a.channels * each + 3) / 4 * 4 + (a.h * a.w * a.channels + 2 * tall + 3) / 4 * 4) * 4;
}

bool small(const PerturbAr& a, int64_t tall) {
  const int64_t most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), limit = most < kSmall ? most : kSmall;
  return a.h * a.w && lanes_of(a, tall) && kTeams * small_bytes(a, tall) <= limit;
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

int64_t perturb_ar_fits(const PerturbAr& a) { return small(a, kTall) || small(a, kTaller) || rows_of(a) >= 2; }

const char* perturb_ar(const PerturbAr& a, void* stream) {
  if (a.n == 0) return nullptr;
  for (const int tall : {kTall, kTaller})
    if (small(a, tall)) {
      const int64_t need = (a.n + kTeams - 1) / kTeams, bytes = small_bytes(a, tall);
      return launch(tall == kTall ? small_ar_kernel<kTall> : small_ar_kernel<kTaller>,
                    need < 65535 ? need : (int64_t)65535, 32 * kTeams, (size_t)(kTeams * bytes),
                    static_cast<cudaStream_t>(stream), a, (int)lanes_of(a, tall), (int)(bytes / 4));
    }
  const Layout plan{rows_of(a)};
  if (plan.rows < 2) return "the image's rows do not fit in shared memory";
  const size_t shared = (size_t)(fixed_bytes(a) + plan.rows * a.w * a.channels * 4);
  return launch(perturb_ar_kernel, a.n < 65535 ? a.n : (int64_t)65535, kWarps * 32, shared,
                static_cast<cudaStream_t>(stream), a, plan);
}

}  // namespace cuda
}  // namespace ulfast
