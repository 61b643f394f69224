// perturb_linear on CUDA: all sign steps on the noise of a few images in one block, against a linear classifier.
//
// Bytes: 2 d an image to and from memory; the weights (4 c d) come from L2 twice per step for each group of kGroup
// images, which bounds it: 0.06 MB per image and step at d = 3072 and ten classes. Flops: 4 d c per image and step. The
// noise stays in shared memory for all steps, which limits d; larger images run the twin. Sums are taken in another
// order than on the CPU, so the sign of a gradient that is zero up to rounding may differ. A label out of range leaves
// its image unchanged.
#include <math.h>

#include "launch.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kGroup = 4;    // images of a block
constexpr int kClasses = 8;  // whose products a thread sums at a time
constexpr int kWarps = kThreads / 32;

// own (c, kGroup) = the products of the weights with v, kGroup rows in shared memory, d apart. parts: kWarps sums each.
__device__ void products(const PerturbLinear& a, const float* v, float* parts, float* own) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t first = 0; first < a.c; first += kClasses) {
    const int count = a.c - first < kClasses ? (int)(a.c - first) : kClasses;
    float sum[kClasses][kGroup] = {};
    for (int64_t i = threadIdx.x; i < a.d; i += kThreads) {
      float at[kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) at[g] = v[g * a.d + i];
#pragma unroll
      for (int j = 0; j < kClasses; ++j)
        if (j < count) {
          const float w = a.weight[(first + j) * a.d + i];
#pragma unroll
          for (int g = 0; g < kGroup; ++g) sum[j][g] = fmaf(w, at[g], sum[j][g]);
        }
    }
    __syncthreads();  // the previous parts have been added
#pragma unroll
    for (int j = 0; j < kClasses; ++j)
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        float s = sum[j][g];
        for (int offset = 16; offset; offset /= 2) s += __shfl_xor_sync(0xffffffffu, s, offset);
        if (lane == 0) parts[(j * kGroup + g) * kWarps + warp] = s;
      }
    __syncthreads();
    for (int t = threadIdx.x; t < count * kGroup; t += kThreads) {
      float s = 0;
      for (int w = 0; w < kWarps; ++w) s += parts[t * kWarps + w];
      own[first * kGroup + t] = s;
    }
  }
  __syncthreads();
}

// p (c, kGroup): the loss's gradient with respect to the logits of the noise. One warp per image.
__device__ void residuals(const PerturbLinear& a, const float* image, const float* own, int64_t first, float* p) {
  const int lane = threadIdx.x % 32, g = threadIdx.x / 32;
  if (g < kGroup) {
    const int64_t label = first + g < a.n ? a.labels[first + g] : 0;
    float top = -INFINITY, other = -INFINITY;
    for (int64_t j = lane; j < a.c; j += 32) {
      const float o = own[j * kGroup + g];
      top = fmaxf(top, o), other = fmaxf(other, image[j * kGroup + g] - o);
    }
    for (int offset = 16; offset; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
      other = fmaxf(other, __shfl_xor_sync(0xffffffffu, other, offset));
    }
    float total = 0, rest = 0;
    for (int64_t j = lane; j < a.c; j += 32) {
      const float o = own[j * kGroup + g];
      total += expf(o - top), rest += expf(image[j * kGroup + g] - o - other);
    }
    for (int offset = 16; offset; offset /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, offset);
      rest += __shfl_xor_sync(0xffffffffu, rest, offset);
    }
    for (int64_t j = lane; j < a.c; j += 32) {
      const float o = own[j * kGroup + g];
      float v = a.share * (expf(o - top) / total - (j == label ? 1.0f : 0.0f));
      v -= (1 - a.share) * (expf(image[j * kGroup + g] - o - other) / rest - 1.0f / (float)a.c);
      p[j * kGroup + g] = v;
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) perturb_linear_kernel(PerturbLinear a) {
  float* noise = dynamic_shared<float>();  // (kGroup, d), then (c, kGroup) thrice, then the parts of sums
  float *image = noise + kGroup * a.d, *own = image + a.c * kGroup, *p = own + a.c * kGroup, *parts = p + a.c * kGroup;
  for (int64_t first = (int64_t)blockIdx.x * kGroup; first < a.n; first += (int64_t)gridDim.x * kGroup) {
    __syncthreads();  // the previous images have been written
    for (int g = 0; g < kGroup; ++g)
      for (int64_t i = threadIdx.x; i < a.d; i += kThreads)
        noise[g * a.d + i] = first + g < a.n ? (float)a.images[(first + g) * a.d + i] / 255.0f : 0.0f;
    __syncthreads();
    products(a, noise, parts, image);
    for (int64_t i = threadIdx.x; i < kGroup * a.d; i += kThreads) noise[i] = 0;
    for (int64_t i = threadIdx.x; i < a.c * kGroup; i += kThreads) own[i] = 0;
    __syncthreads();
    for (int64_t t = 0; t < a.steps; ++t) {
      residuals(a, image, own, first, p);
      for (int64_t i = threadIdx.x; i < a.d; i += kThreads) {
        float slope[kGroup] = {};
        for (int64_t j = 0; j < a.c; ++j) {
          const float w = a.weight[j * a.d + i];
#pragma unroll
          for (int g = 0; g < kGroup; ++g) slope[g] = fmaf(p[j * kGroup + g], w, slope[g]);
        }
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
          const float v = noise[g * a.d + i] - (slope[g] > 0 ? a.alpha : slope[g] < 0 ? -a.alpha : 0.0f);
          noise[g * a.d + i] = fminf(fmaxf(v, -a.eps), a.eps);
        }
      }
      __syncthreads();
      if (t + 1 < a.steps) products(a, noise, parts, own);
    }
    for (int g = 0; g < kGroup && first + g < a.n; ++g) {
      const int64_t label = a.labels[first + g];
      const bool there = label >= 0 && label < a.c;
      for (int64_t i = threadIdx.x; i < a.d; i += kThreads) {
        const float level = fminf(fmaxf(rintf(noise[g * a.d + i] * 255.0f), -a.levels), a.levels);
        const uint8_t x = a.images[(first + g) * a.d + i];
        a.out[(first + g) * a.d + i] = there ? (uint8_t)(int)fminf(fmaxf((float)x - level, 0.0f), 255.0f) : x;
      }
    }
  }
}

size_t shared_bytes(int64_t d, int64_t c) {
  return (size_t)(kGroup * d + 3 * c * kGroup + kClasses * kGroup * kWarps) * sizeof(float);
}

}  // namespace

int64_t perturb_linear_fits(const PerturbLinear& a) {
  return shared_bytes(a.d, a.c) <= (size_t)attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

const char* perturb_linear(const PerturbLinear& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const int64_t groups = (a.n + kGroup - 1) / kGroup;
  return launch(perturb_linear_kernel, groups < 65535 ? groups : (int64_t)65535, kThreads, shared_bytes(a.d, a.c),
                static_cast<cudaStream_t>(stream), a);
}

}  // namespace cuda
}  // namespace ulfast
