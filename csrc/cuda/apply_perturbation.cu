// apply_perturbation on CUDA: clamp(images + 255 * delta[index]) to uint8.
//
// Bytes: n d (1 + 4 + 1), bound by memory. Four pixels an access: 4 and 16 bytes. Compiled with --fmad=false, so that
// it rounds as the CPU does.
#include "pixels.cuh"
#include "types.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kQuads = 4;  // of four pixels, that a thread asks for before it uses the first
constexpr int64_t kPiece = kQuads * kThreads;

template <bool Truncate> __global__ void four(ApplyPerturbation a) {
  const int64_t quads = a.d / 4, pieces = (quads + kPiece - 1) / kPiece;
  for (int64_t w = blockIdx.x; w < a.n * pieces; w += gridDim.x) {
    const int64_t row = w / pieces, first = (w - row * pieces) * kPiece;  // the same for the whole block
    const int count = (int)(quads - first < kPiece ? quads - first : kPiece);
    const int64_t from = a.index ? a.index[row] : row;
    const bool there = from >= 0 && from < a.m;  // otherwise the image stays as it is, and nothing is read
    const uint32_t* images = reinterpret_cast<const uint32_t*>(a.images + row * a.d) + first;
    const float4* delta = reinterpret_cast<const float4*>(a.delta + (there ? from : 0) * a.d) + first;
    uint32_t* out = reinterpret_cast<uint32_t*>(a.out + row * a.d) + first;
    uint32_t x[kQuads];
    float4 e[kQuads];
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = (int)threadIdx.x + i * kThreads;
      if (at < count) {
        x[i] = images[at];
        if (there) e[i] = delta[at];
      }
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = (int)threadIdx.x + i * kThreads;
      if (at < count) {
        if (there) {
          const float levels[4] = {255.0f * e[i].x, 255.0f * e[i].y, 255.0f * e[i].z, 255.0f * e[i].w};
          x[i] = levels4(x[i], levels, Truncate);
        }
        out[at] = x[i];
      }
    }
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

}  // namespace

const char* apply_perturbation(const ApplyPerturbation& a, void* stream) {
  if (a.n == 0 || a.d == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool wide = a.d % 4 == 0 && aligned(a.images, 4) && aligned(a.out, 4) && aligned(a.delta, 16);
  const auto kernel = wide ? (a.truncate ? four<true> : four<false>) : (a.truncate ? one<true> : one<false>);
  const int64_t pieces = a.n * ((a.d / 4 + kPiece - 1) / kPiece), most = 65535;
  return launch(kernel, wide ? (pieces < most ? pieces : most) : blocks(a.n * a.d), kThreads, 0, s, a);
}

}  // namespace cuda
}  // namespace ulfast
