// ingest on CUDA for wide images: the basis stays in shared memory (resident.cuh).
//
// Bytes: n d (1 + size of the result) where a slice holds an image (one launch), n d more otherwise (three launches,
// slices of whole image rows). The basis is read once per block. Flops: 4 n d k + 2 n d. Bound: the multiply-adds from
// about k = 4: 2 k per value, plus some ten instructions for its place and its rounding.
//
// A thread holds four pixels of an image row, so that a shift and a flip are three numbers per image. It writes the
// normalised values to their place in the row in shared memory; the team then copies whole rows to the result.
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

// The shift and the flip of an image; the shift is limited to what makes the image black.
struct Move {
  int dy, dx;
  bool flip;
};
__device__ __forceinline__ int within(int v, int most) { return v < -most ? -most : v > most ? most : v; }
__device__ __forceinline__ Move move_of(const Augment& f, int64_t image) {
  Move m{0, 0, false};
  if (f.shift) m.dy = within(f.shift[2 * image], f.h), m.dx = within(f.shift[2 * image + 1], f.w);
  m.flip = f.flip && f.flip[image];
  return m;
}

template <class O, int R, int CH, Part part, bool Own, bool Whole, bool Ahead>
__global__ void __launch_bounds__(kBlock, 1) resident_ingest_kernel(Rows a, Augment f, Task task, O* result) {
  const int t = threadIdx.x % kTeam, w = f.w, wc = w * CH;
  const int quad = t * 4 / w, x0 = t * 4 - quad * w;  // the image row of the thread's pixels, and the first of them
  float scale[CH], bias[CH];
#pragma unroll
  for (int c = 0; c < CH; ++c) scale[c] = 1.0f / f.std[c], bias[c] = -f.mean[c] * scale[c];
  for_each_group<uint8_t, R, CH, part, Own, Whole, Ahead>(
      a, task,
      [&](const float (&x)[R][kChunks][4], const Group<R>& g, int64_t first, const Room& at, int64_t from, int d, int,
          int team) {
        const int pitch = task.slices.features, lines = d / wc, y0 = (int)(from / wc);
        O* rows = reinterpret_cast<O*>(at.rest) + team * R * pitch;
        int dx[R];
        unsigned flip = 0;  // a bit an image
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const Move m = move_of(f, first + r < task.end ? first + r : first);
          dx[r] = m.dx, flip |= (unsigned)m.flip << r;
        }
        removed<uint8_t, R, CH, Own, Whole>(
            x, g, at.basis, pitch, d, (int)a.k, at.coef, [&](int r, int c, int, const float (&v)[4]) {
              const int left = x0 - dx[r], way = flip >> r & 1 ? -CH : CH;
              O* to = rows + r * pitch + quad * wc + (flip >> r & 1 ? w - 1 - left : left) * CH;
#pragma unroll
              for (int u = 0; u < 4; ++u) {
                const int e = c * 4 + u, pixel = e / CH, channel = e % CH;
                if ((unsigned)(left + pixel) < (unsigned)w)
                  narrow(fmaf(v[u], scale[channel], bias[channel]), to + pixel * way + channel);
              }
            });
#pragma unroll
        for (int r = 0; r < R; ++r) {  // the pixels of these rows that no pixel of the image reaches
          const int missing = dx[r] < 0 ? -dx[r] : dx[r];
          for (int i = t; i < lines * missing; i += kTeam) {
            const int line = i / missing, some = i - line * missing, pixel = dx[r] < 0 ? some : w - 1 - some;
            O* to = rows + r * pitch + line * wc + (flip >> r & 1 ? w - 1 - pixel : pixel) * CH;
#pragma unroll
            for (int c = 0; c < CH; ++c) narrow(bias[c], to + c);
          }
        }
        meet(team);
#pragma unroll 1
        for (int r = 0; r < R; ++r) {
          if (first + r >= task.end) break;
          O* out = result + (first + r) * a.d;
          const Move m = move_of(f, first + r);
          if (g.bad >> r & 1) {
            Four<O> nan;
#pragma unroll
            for (int u = 0; u < 4; ++u) narrow(NAN, &nan.v[u]);
            for (int i = t * 4; i < d; i += kTeam * 4) stream_out(out + from + i, nan);
            continue;
          }
          // Row y of the image becomes row y - dy; those of the result that none becomes are black.
          const int low = m.dy > y0 ? m.dy - y0 : 0, high = f.h + m.dy - y0 < lines ? f.h + m.dy - y0 : lines;
          const O* here = rows + r * pitch;
          O* there = out + (int64_t)(y0 - m.dy) * wc;
          for (int i = low * wc + t * 4; i < high * wc; i += kTeam * 4)
            stream_out(there + i, *reinterpret_cast<const Four<O>*>(here + i));
          if (m.dy) {
            const int end = y0 + lines, begin = m.dy < 0 ? y0 : (f.h - m.dy > y0 ? f.h - m.dy : y0);
            const int stop = m.dy < 0 ? (-m.dy < end ? -m.dy : end) : end;
            for (int i = begin * wc + t * 4; i < stop * wc; i += kTeam * 4) {
              Four<O> black;
#pragma unroll
              for (int u = 0; u < 4; ++u) {
                const int channel = (i + u) % CH;
                narrow(CH == 1        ? bias[0]
                       : channel == 0 ? bias[0]
                       : channel == 1 ? bias[CH > 1 ? 1 : 0]
                                      : bias[CH - 1],
                       &black.v[u]);
              }
              stream_out(out + i, black);
            }
          }
        }
      });
}

// Slices of whole image rows, at most a thread's four pixels each. `rows` images a group, the next on its way unless
// their labels take the registers.
Slices slices_of(const Ingest& a, int rows) {
  const int64_t wc = a.w * a.c, most = kTeam * 4 * a.c < kSlice ? kTeam * 4 * a.c : kSlice;
  const int64_t basis = a.classes > 0 ? a.classes * a.k : a.k;
  return cut_slices(a.n, a.h * wc, basis, a.k, rows, wc, most, a.classes > 0 ? 0 : ahead_bytes(rows, 1),
                    kTeams * rows * size_of(a.out_dtype));
}
// Four images a group, two where their results would not find room, or registers their labels.
int rows_of(const Ingest& a) {
  if (a.classes > 0) return 2;
  const Slices four = slices_of(a, 4);
  if (four.splits == 1) return 4;
  return slices_of(a, 2).splits == 1 ? 2 : 4;
}

Slices product_slices(const Ingest& a) {
  return cut_slices(a.n, a.h * a.w * a.c, a.k, a.k, 4, 4, kSlice, ahead_bytes(4, 1), 0);
}

template <class O, int CH> const char* run(const Ingest& a, cudaStream_t stream) {
  const int64_t d = a.h * a.w * a.c;
  const int group = rows_of(a);
  const Slices s = slices_of(a, group);
  const Rows rows{a.images, a.basis, a.index, a.labels, nullptr, d, d, a.k, a.classes, a.images_n};
  const Augment frame{a.mean, a.std, a.shift, a.flip, (int)a.h, (int)a.w};
  O* out = static_cast<O*>(a.out);
  const int64_t grid = (int64_t)s.splits * s.blocks;
  const size_t shared = (size_t)s.shared;
  const Task all{s, 0, a.n, nullptr};
  if (s.splits == 1 || a.k == 0) {
    if (a.labels)
      return launch(resident_ingest_kernel<O, 2, CH, Part::all, true, false, false>, grid, kBlock, shared, stream, rows,
                    frame, all, out);
    const auto four = CH == 3 && d == kSlice ? resident_ingest_kernel<O, 4, CH, Part::all, false, CH == 3, true>
                                             : resident_ingest_kernel<O, 4, CH, Part::all, false, false, true>;
    return launch(group == 2 ? resident_ingest_kernel<O, 2, CH, Part::all, false, false, true> : four, grid, kBlock,
                  shared, stream, rows, frame, all, out);
  }
  const Slices p = product_slices(a);
  for (int64_t i = 0; i < a.n; i += kRowsAtOnce) {
    const int64_t end = i + kRowsAtOnce < a.n ? i + kRowsAtOnce : a.n;
    const char* bad = slice_products(rows, p, i, end, a.coef, stream);
    const Task rest{s, i, end, a.coef + p.splits * (end - i) * a.k};
    if (!bad)
      bad = launch(resident_ingest_kernel<O, 4, CH, Part::rest, false, false, true>, grid, kBlock, shared, stream, rows,
                   frame, rest, out);
    if (bad) return bad;
  }
  return nullptr;
}

template <class O> const char* run(const Ingest& a, cudaStream_t stream) {
  return a.c == 1 ? run<O, 1>(a, stream) : run<O, 3>(a, stream);
}

}  // namespace

bool resident_fits(const Ingest& a) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 8) return false;
  if ((a.c != 1 && a.c != 3) || a.w % 4 || a.in_dtype != DType::u8 || a.h * a.w < kTeam) return false;
  const Slices s = slices_of(a, rows_of(a));
  if (!s.splits || (a.classes > 0 && s.splits > 1)) return false;
  return s.splits == 1 || a.k == 0 || product_slices(a).splits > 0;
}

int64_t resident_scratch(const Ingest& a) {
  const int64_t splits = slices_of(a, rows_of(a)).splits;
  if (splits == 1 || a.k == 0) return 0;
  return (product_slices(a).splits + 1) * (a.n < kRowsAtOnce ? a.n : kRowsAtOnce) * a.k;
}

const char* resident_ingest(const Ingest& a, cudaStream_t stream) {
  switch (a.out_dtype) {
    case DType::f16:
      return run<f16>(a, stream);
    case DType::bf16:
      return run<bf16>(a, stream);
    case DType::f32:
      return run<float>(a, stream);
    default:
      return "unknown dtype";
  }
}

}  // namespace cuda
}  // namespace ulfast
