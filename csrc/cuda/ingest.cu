// ingest on CUDA: uint8 NHWC -> [0, 1] -> project -> shift -> flip -> normalise -> float32, bfloat16 or float16.
//
// These are the kernels for images of any shape and address. Many RGB images whose width is a multiple of 32 are
// handled in ingest_mma.cu, other wide ones in ingest_resident.cu.
//
// Bytes: n d (1 + size of the result) where a group of images fits in shared memory (one kernel, 32 px); otherwise two
// kernels, coefficients and the rest, over pieces of the batch small enough for the second to find them in L2: the same
// at best, n d more at worst. Flops: 4 n d k + 2 n d. In addition the basis is read twice per group of R images: 8 k /
// R bytes per value, through L2, which exceeds the 3 bytes of a value in bfloat16 from k = 4 at R = 8. Bound: memory up
// to about k = 4, then the second-level cache, the multiply-adds from about k = 32. A few image rows at a time are
// written to shared memory as floats, and from there to their place in the result, normalised, four values per access
// if an image row is a multiple of four values. An index or a label out of range makes its image NaN.
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int64_t kPiece = 4 * kThreads;  // fewest values of an image written together, if possible
constexpr int64_t kWhole = 64 << 10;      // shared memory of a group that is staged whole, at most: blocks side by side

struct Frame {
  const float *mean, *std;
  const int32_t* shift;
  const uint8_t* flip;
  int64_t h, w, c;
  int64_t lines;  // image rows written together
  int64_t pitch;  // floats from one image of the group to the next in the buffer
};

// Values [from, to) of one image of the result: value(e, v, count) gives `count` of them from e on, four where they lie
// in one image row and are aligned, otherwise one.
template <class O, class Value>
__device__ __forceinline__ void write(O* out, int64_t from, int64_t to, bool fours, const Value& value) {
  if (fours) {
    for (int64_t e = from + threadIdx.x * 4; e < to; e += kThreads * 4) {
      float v[4];
      value(e, v, 4);
      Four<O> y;
#pragma unroll
      for (int u = 0; u < 4; ++u) narrow(v[u], &y.v[u]);
      *reinterpret_cast<Four<O>*>(out + e) = y;
    }
  } else {
    for (int64_t e = from + threadIdx.x; e < to; e += kThreads) {
      float v[4];
      value(e, v, 1);
      narrow(v[0], out + e);
    }
  }
}

// Image rows [y0, y1) of one image, as they lie in `buffer`, to their places.
template <class O> __device__ void emit(const Frame& f, const float* scale, const float* bias, const float* buffer,
                                        int64_t y0, int64_t y1, int64_t number, bool fours, O* out) {
  const int64_t dy = f.shift ? f.shift[2 * number] : 0, dx = f.shift ? f.shift[2 * number + 1] : 0;
  const bool flip = f.flip && f.flip[number];
  const int64_t low = y0 - dy > 0 ? y0 - dy : 0, high = y1 - dy < f.h ? y1 - dy : f.h;
  const int wc = (int)(f.w * f.c), c = (int)f.c;
  write(out, low * wc, high * wc, fours, [&](int64_t e, float (&v)[4], int count) {
    const int y = (int)e / wc, p = (int)e - y * wc;
    const float* row = buffer + (y + dy - y0) * wc;
    int pixel = p / c, channel = p - pixel * c;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (u >= count) break;
      const int64_t x = (flip ? f.w - 1 - pixel : pixel) + dx;
      v[u] = x >= 0 && x < f.w ? fma_(row[x * c + channel], scale[channel], bias[channel]) : bias[channel];
      if (++channel == c) channel = 0, ++pixel;
    }
  });
}

// The rows [y0, y1) of the result that no row of the image reaches: black, normalised.
template <class O>
__device__ void blacken(const Frame& f, const float* bias, int64_t y0, int64_t y1, int64_t number, bool fours, O* out) {
  const int64_t dy = f.shift ? f.shift[2 * number] : 0;
  const int wc = (int)(f.w * f.c), c = (int)f.c;
  const auto black = [&](int64_t e, float (&v)[4], int count) {
    int channel = (int)e % wc % c;
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (u >= count) break;
      v[u] = bias[channel];
      if (++channel == c) channel = 0;
    }
  };
  const int64_t above = y1 < -dy ? y1 : -dy, below = y0 > f.h - dy ? y0 : f.h - dy;
  if (dy < 0) write(out, y0 * wc, above * wc, fours, black);
  if (dy > 0) write(out, below * wc, y1 * wc, fours, black);
}

// Images [begin, end) with coefficients already in `given` (splits, end - begin, k), or, where `given` is null, from
// the tile, which then holds whole images. A block takes (group, piece) after (group, piece), as in `coefficients`.
template <class O, int R> __global__ void __launch_bounds__(kThreads, 1)
    ingest_kernel(Rows a, Frame f, Plan plan, O* result, const float* given, int64_t splits, int64_t begin,
                  int64_t end) {
  float* coef = dynamic_shared<float>();  // (k, R), then the parts of a tile of products, scale, bias, buffer, tile
  float* parts = coef + (a.k * R + 3) / 4 * 4;
  float *scale = parts + kWarps * kCols * R, *bias = scale + f.c;
  float* buffer = scale + (2 * f.c + 3) / 4 * 4;
  uint8_t* tile = reinterpret_cast<uint8_t*>(buffer + R * f.pitch);
  for (int64_t i = threadIdx.x; i < f.c; i += kThreads) scale[i] = 1.0f / f.std[i], bias[i] = -f.mean[i] * scale[i];
  const int64_t wc = f.w * f.c;
  const bool fours = wc % 4 == 0 && reinterpret_cast<uintptr_t>(result) % alignof(Four<O>) == 0;
  for_each_run<R>(a, plan, begin, end, [&](const Run& run) {
    const int64_t from = run.from, d = run.d, at = run.at, y0 = from / wc, y1 = y0 + d / wc;
    if (run.label >= 0) {
      const float* basis = static_cast<const float*>(a.basis) + run.label * a.k * a.d + from;
      __syncthreads();  // the previous images have been used
      stage<uint8_t, R>(a, plan, tile, at, run.count, from, d);
      if (given) gather<float, R>(given, splits, end - begin, a.k, at - begin, run.count, coef);
      __syncthreads();
      if (!given) dots_all<uint8_t, float, R>(a, plan, tile, basis, d, parts, coef);
      for (int64_t y = y0; y < y1; y += f.lines) {
        const int64_t z = y + f.lines < y1 ? y + f.lines : y1, first = (y - y0) * wc;
        __syncthreads();  // the previous rows have been written
        remove<uint8_t, float, R>(a, plan.pitch, tile + first, basis + first, run.count, (z - y) * wc, coef,
                                  [&](int r, int64_t i, const float (&v)[4]) {
                                    Four<float> four;
#pragma unroll
                                    for (int u = 0; u < 4; ++u) four.v[u] = v[u];
                                    *reinterpret_cast<Four<float>*>(buffer + r * f.pitch + i) = four;
                                  });
        __syncthreads();
        for (int r = 0; r < run.count; ++r)
          if (source(a, at + r) >= 0) {
            const int64_t to = number(a, at + r);
            emit(f, scale, bias, buffer + r * f.pitch, y, z, to, fours, result + to * a.d);
          }
      }
    }
    for (int r = 0; r < run.count; ++r) {
      const int64_t to = number(a, at + r);
      O* out = result + to * a.d;
      if (run.label >= 0 && source(a, at + r) >= 0)
        blacken(f, bias, y0, y1, to, fours, out);
      else
        for (int64_t i = from + threadIdx.x; i < from + d; i += kThreads) narrow(NAN, out + i);
    }
  });
}

struct Cut {
  int rows;         // images per group
  Plan dots, rest;  // pieces of the two kernels; rest.splits is 1 where one kernel does all
  bool whole;
  int64_t lines, pitch, shared;  // of the rest
};

int64_t up4(int64_t v) { return (v + 3) / 4 * 4; }

// How the images are cut for groups of `rows`; lines is 0 if not even one image row a piece fits.
Cut cut_of(const Ingest& a, int rows) {
  const int64_t wc = a.w * a.c, d = a.h * wc, limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t fixed = fixed_bytes(a.k, rows, 4) + up4(2 * a.c) * 4;
  Cut c{rows, cut(d, 1, rows, limit - fixed), {d, (d + 15) / 16 * 16, 1}, true, 0, 0, 0};
  const int64_t even = wc % 4 == 0 ? 1 : wc % 2 == 0 ? 2 : 4;  // lines of a multiple of four values
  int64_t lines = kPiece / wc / even * even;
  c.lines = lines < even ? even : lines;
  if (c.lines > a.h) c.lines = a.h;
  c.pitch = up4(c.lines * wc);
  c.shared = fixed + rows * (c.pitch * 4 + c.rest.pitch);
  if (c.shared <= (limit < kWhole ? limit : kWhole)) return c;
  // In pieces of whole image rows, two blocks a multiprocessor if that leaves one row.
  c.whole = false;
  lines = (limit / 2 - fixed) / (rows * (wc * 5 + 28));
  c.lines = lines < 1 ? 1 : lines < a.h ? lines : a.h;
  c.pitch = up4(c.lines * wc);
  c.rest = {c.lines * wc, (c.lines * wc + 15) / 16 * 16, (a.h + c.lines - 1) / c.lines};
  c.shared = fixed + rows * (c.pitch * 4 + c.rest.pitch);
  if (c.shared > limit || !c.dots.splits) c.lines = 0;
  return c;
}
Cut cut_of(const Ingest& a) {
  const Cut eight = cut_of(a, 8);
  const bool enough = (a.n + 7) / 8 * eight.rest.splits >= attribute(cudaDevAttrMultiProcessorCount);
  return eight.lines && enough ? eight : cut_of(a, 2);
}

template <class O, int R> const char* run(const Ingest& a, const Cut& c, cudaStream_t s) {
  const int64_t d = a.h * a.w * a.c;
  const Rows rows{a.images, a.basis, a.index, a.labels, a.order, d, d, a.k, a.classes, a.images_n};
  const Frame frame{a.mean, a.std, a.shift, a.flip, a.h, a.w, a.c, c.lines, c.pitch};
  O* out = static_cast<O*>(a.out);
  if (c.whole)
    return launch(ingest_kernel<O, R>, grid_of(a.n, R, 1), kThreads, (size_t)c.shared, s, rows, frame, c.rest, out,
                  (const float*)nullptr, (int64_t)0, (int64_t)0, a.n);
  const size_t shared = (size_t)(fixed_bytes(a.k, R, 4) + R * c.dots.pitch);
  const int64_t chunk = chunk_of(d, 1, R);
  for (int64_t i = 0; i < a.n; i += chunk) {
    const int64_t end = i + chunk < a.n ? i + chunk : a.n;
    const char* bad = nullptr;
    if (a.k)
      bad = launch(coefficients<uint8_t, R>, grid_of(end - i, R, c.dots.splits), kThreads, shared, s, rows, c.dots,
                   a.coef, i, end);
    if (!bad)
      bad = launch(ingest_kernel<O, R>, grid_of(end - i, R, c.rest.splits), kThreads, (size_t)c.shared, s, rows, frame,
                   c.rest, out, (const float*)a.coef, c.dots.splits, i, end);
    if (bad) return bad;
  }
  return nullptr;
}

template <class O> const char* run(const Ingest& a, cudaStream_t s) {
  const Cut c = cut_of(a);
  if (!c.lines) return "an image row does not fit in shared memory";
  return c.rows == 8 ? run<O, 8>(a, c, s) : run<O, 2>(a, c, s);
}

}  // namespace

int64_t ingest_scratch(const Ingest& a) {
  const int64_t resident = mma_fits(a) ? mma_scratch(a) : resident_fits(a) ? resident_scratch(a) : 0;
  const Cut c = cut_of(a);
  const int64_t chunk = chunk_of(a.h * a.w * a.c, 1, c.rows);
  const int64_t pieces = c.whole ? 0 : c.dots.splits * (chunk < a.n ? chunk : a.n) * a.k + 1;  // an address if k = 0
  return resident > pieces ? resident : pieces;  // which of the two runs depends on the addresses
}

int64_t ingest_sorts(const Ingest& a) { return a.classes > 0 && !resident_fits(a); }

const char* ingest(const Ingest& a, void* stream) {
  if (a.n == 0 || a.h * a.w * a.c == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  if (mma_fits(a) && aligned(a.images, 8) && aligned(a.out, 16) && aligned(a.basis, 16)) return mma_ingest(a, s);
  if (resident_fits(a) && aligned(a.images, 4) && aligned(a.out, 16) && aligned(a.basis, 16))
    return resident_ingest(a, s);
  switch (a.out_dtype) {
    case DType::f16:
      return run<f16>(a, s);
    case DType::bf16:
      return run<bf16>(a, s);
    case DType::f32:
      return run<float>(a, s);
    default:
      return "unknown dtype";
  }
}

}  // namespace cuda
}  // namespace ulfast
