// flags: -ffp-contract=fast
//
// ingest: NHWC, uint8 or floats -> [0, 1] -> project -> shift -> flip -> normalise -> float32, bfloat16 or float16.
//
// Bytes: n d (size of a pixel's value + of the result's). Flops: 4 n d k + 2 n d. A few image rows at a time are
// projected into a tile that stays in the first-level cache, and leave it normalised, converted, shifted and mirrored;
// the image is read from memory once.
#include <type_traits>

#include "table.h"
#include "tiles.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int64_t kTile = 768;   // floats per image in the tile
constexpr int64_t kPacked = 16;  // most basis rows that are packed
constexpr int64_t kApart = kTile + 16;
constexpr int64_t kGroup = 32;  // images that share a pass over the basis
constexpr int64_t kWide = ingest_width;

template <class O> struct Line {  // per position in an image row: value = x * scale + bias, and the value of black
  alignas(64) float scale[kWide], bias[kWide];
  alignas(64) O black[kWide];
};

// A cropped row is rarely a whole number of vectors: the last one overlaps the one before it.
template <class O> ULFAST_INLINE void normalise(const float* x, const Line<O>& line, int64_t at, int64_t d, O* out) {
  constexpr int n = Vec<float>::size;
  if (d < n) {
    for (int64_t i = 0; i < d; ++i) out[i] = from_float<O>(x[i] * line.scale[at + i] + line.bias[at + i]);
    return;
  }
  const auto value = [&](int64_t i) __attribute__((always_inline)) {
    return load(x + i) * load(line.scale + at + i) + load(line.bias + at + i);
  };
  int64_t i = 0;
  for (; i + 2 * n <= d; i += 2 * n) store_two(out + i, value(i), value(i + n));
  for (; i < d; i += n) {
    const int64_t j = i + n <= d ? i : d - n;
    store_as(out + j, value(j));
  }
}

template <class O> ULFAST_INLINE void pad(O* out, const Line<O>& line, int64_t from, int64_t to) {
  __builtin_memcpy(out + from, line.black + from, (to - from) * sizeof(O));
}

// Source of each value when the pixels of a three-channel vector are reversed: ten pixels of 2 bytes, five of 4.
template <class O> struct Reversed {
  static constexpr int64_t values = 64 / (int64_t)sizeof(O), pixels = values / 3;
  using Index = std::conditional_t<sizeof(O) == 2, uint16_t, uint32_t>;
  alignas(64) Index from[values];
  constexpr Reversed() : from() {
    for (int64_t i = 0; i < values; ++i)
      from[i] = (Index)(i < 3 * pixels ? 3 * (pixels - 1 - i / 3) + i % 3 : i);  // the rest is overwritten
  }
};

// out[p] = in[w - 1 - p] by pixels. Three channels move as four values: the stray one is overwritten by the next pixel.
// `in` has room for four values behind its last.
template <class O> ULFAST_INLINE void mirror(const O* in, O* out, int64_t w, int64_t c) {
  if (c == 3) {
    int64_t p = 0;
#if defined(__AVX512BW__)
    static constexpr Reversed<O> reversed;
    constexpr int64_t n = Reversed<O>::pixels;
    const __m512i from = _mm512_load_si512(reversed.from);
    for (; p + n < w; p += n) {
      const __m512i x = _mm512_loadu_si512(in + 3 * (w - n - p));
      _mm512_storeu_si512(out + 3 * p,
                          sizeof(O) == 2 ? _mm512_permutexvar_epi16(from, x) : _mm512_permutexvar_epi32(from, x));
    }
#endif
    for (; p + 1 < w; ++p) __builtin_memcpy(out + 3 * p, in + 3 * (w - 1 - p), 4 * sizeof(O));
    __builtin_memcpy(out + 3 * (w - 1), in, 3 * sizeof(O));
  } else {
    for (int64_t p = 0; p < w; ++p)
      for (int64_t j = 0; j < c; ++j) out[p * c + j] = in[(w - 1 - p) * c + j];
  }
}

// Writes one projected image row to its place in the result: out[y, x] = in[y + dy, x + dx], mirrored after that.
template <class O> ULFAST_INLINE void place(const float* row, const Line<O>& line, int64_t w, int64_t c, int64_t dx,
                                            bool flip, O* out, O* spare) {
  O* dst = flip ? spare : out;
  const int64_t skip = dx > 0 ? dx : 0, lead = dx < 0 ? -dx : 0;  // left of the source, of the result
  const int64_t count = w - skip - lead;
  if (count <= 0) {
    pad(dst, line, 0, w * c);
  } else {
    pad(dst, line, 0, lead * c);
    normalise(row + skip * c, line, lead * c, count * c, dst + lead * c);
    pad(dst, line, (lead + count) * c, w * c);
  }
  if (flip) mirror(spare, out, w, c);
}

// The addresses of R images, and the basis that they share.
template <int R> struct Images {
  int64_t first;  // of the result
  DType dtype;
  const void* x[R];
  Images(const Ingest& a, int64_t first) : first(first), dtype(a.in_dtype) {
    const int64_t bytes = a.h * a.w * a.c * size_of(dtype);
    for (int r = 0; r < R; ++r)
      x[r] = static_cast<const char*>(a.images) + (a.index ? a.index[first + r] : first + r) * bytes;
  }
};

// Features [i, i + m) of an image as floats; those `next` after them will be read soon.
template <class T> ULFAST_INLINE void read(const void* image, int64_t i, int64_t m, int64_t next, float* out) {
  const T* x = static_cast<const T*>(image) + i;
  for (int64_t t = 0; t < next; t += 64 / (int64_t)sizeof(T)) __builtin_prefetch(x + m + t);
  widen(x, m, out);
}

// The formats are dispatched here, once per tile, so that the kernel is not compiled for each of them.
ULFAST_INLINE void read_as(DType dtype, const void* image, int64_t i, int64_t m, int64_t next, float* out) {
  switch (dtype) {
    case DType::u8:
      return read<uint8_t>(image, i, m, next, out);
    case DType::f16:
      return read<f16>(image, i, m, next, out);
    case DType::bf16:
      return read<bf16>(image, i, m, next, out);
    case DType::f64:
      return read<double>(image, i, m, next, out);
    default:
      return read<float>(image, i, m, next, out);
  }
}

// A compact block of basis rows: rows for a large image are multiples of 4 KB apart, and the first-level cache cannot
// hold more than eight of those.
struct Block {
  alignas(64) float values[kPacked * kApart];
  const float* rows;
  int64_t apart;
  Block(const Ingest& a, const float* basis, int64_t i, int64_t m, int64_t images)
      : rows(basis ? basis + i : nullptr), apart(a.h * a.w * a.c) {
    if (a.k == 0 || a.k > kPacked || images < 8) return;  // not worth the copy
    for (int64_t j = 0; j < a.k; ++j) __builtin_memcpy(values + j * kApart, rows + j * apart, m * sizeof(float));
    rows = values, apart = kApart;
  }
};

template <int R> struct Tile {
  alignas(64) float values[R * kTile];
  // Features [i, i + m) as floats. The group returns to each image one tile later, too rarely for the hardware
  // prefetcher, so the values that will be read then are prefetched now.
  void fill(const Images<R>& s, int64_t i, int64_t m) {
    for (int r = 0; r < R; ++r) read_as(s.dtype, s.x[r], i, m, m, values + r * kTile);
  }
};

// Features [i, i + m): their products with the basis, added to the images' coefficients.
template <int R>
ULFAST_INLINE void measure(const Ingest& a, const Images<R>& s, const Block& basis, int64_t i, int64_t m) {
  Tile<R> tile;
  tile.fill(s, i, m);
  dots_all(strided<R>((const float*)tile.values, kTile), basis.rows, basis.apart, m, a.k, a.coef + s.first * a.k, a.k);
}

// Writes image rows [y, y + some), projected, to their places in the result.
template <class O, int R, bool Bytes> ULFAST_INLINE void write(const Ingest& a, const Line<O>& line, const Images<R>& s,
                                                               const Block& basis, int64_t y, int64_t some) {
  const int64_t wc = a.w * a.c, d = a.h * wc, i = y * wc, m = some * wc;
  Tile<R> tile;
  alignas(64) float wide[kWide];
  alignas(64) O spare[kWide + 4];
  const float* coef = a.coef + s.first * a.k;
  if (wc <= kTile) {
    tile.fill(s, i, m);
    if (a.k)
      subtract<float, float, R, Bytes, false>(strided<R>((const float*)tile.values, kTile), basis.rows, basis.apart, m,
                                              a.k, coef, a.k, strided<R>((float*)tile.values, kTile));
  }
  for (int r = 0; r < R; ++r) {
    const int64_t at = s.first + r, dy = a.shift ? a.shift[2 * at] : 0, dx = a.shift ? a.shift[2 * at + 1] : 0;
    const bool flip = a.flip && a.flip[at];
    const float* rows = tile.values + r * kTile;
    if (wc > kTile) {  // one image row, wider than the tile: image by image
      read_as(s.dtype, s.x[r], i, m, 0, wide);
      if (a.k)
        subtract<float, float, 1, Bytes, false>(strided<1>((const float*)wide, m), basis.rows, basis.apart, m, a.k,
                                                coef + r * a.k, a.k, strided<1>((float*)wide, m));
      rows = wide;
    }
    O* out = static_cast<O*>(a.out) + at * d;
    for (int64_t t = 0; t < some; ++t) {
      const int64_t to = y + t - dy;
      if (to >= 0 && to < a.h) place(rows + t * wc, line, a.w, a.c, dx, flip, out + to * wc, spare);
    }
  }
}

// Images [first, last) with one basis. A block of the basis serves all of them before the next is fetched: at 224 px
// the basis exceeds the second-level cache, and with only four images its traffic, not the arithmetic, would be the
// bound.
template <class O, bool Bytes> void group(const Ingest& a, const Line<O>& line, int64_t first, int64_t last) {
  const int64_t wc = a.w * a.c, d = a.h * wc, full = first + (last - first) / kRows * kRows;
  const float* basis = a.basis + (a.labels ? a.labels[first] * a.k * d : 0);
  float* coef = a.coef + first * a.k;
  const int64_t count = (last - first) * a.k;
  if (a.k) {
    for (int64_t i = 0; i < count; ++i) coef[i] = 0;
    for (int64_t i = 0; i < d; i += kTile) {
      const int64_t m = d - i < kTile ? d - i : kTile;
      const Block block(a, basis, i, m, last - first);
      for (int64_t at = first; at < full; at += kRows) measure(a, Images<kRows>(a, at), block, i, m);
      for (int64_t at = full; at < last; ++at) measure(a, Images<1>(a, at), block, i, m);
    }
    for (int64_t i = 0; Bytes && i < count; ++i) coef[i] *= kUnit;
  }
  // A tile holds whole image rows; a row wider than the tile is processed alone.
  const int64_t lines = wc <= kTile ? kTile / wc : 1;
  for (int64_t y = 0; y < a.h; y += lines) {
    const int64_t some = a.h - y < lines ? a.h - y : lines;
    const Block block(a, basis, y * wc, some * wc, wc <= kTile ? last - first : 0);
    for (int64_t at = first; at < full; at += kRows)
      write<O, kRows, Bytes>(a, line, Images<kRows>(a, at), block, y, some);
    for (int64_t at = full; at < last; ++at) write<O, 1, Bytes>(a, line, Images<1>(a, at), block, y, some);
  }
  for (int64_t at = first; at < last && a.shift; ++at) {  // rows of the result that no row of the image reached
    const int64_t dy = a.shift[2 * at];
    O* out = static_cast<O*>(a.out) + at * d;
    for (int64_t y = 0; y < a.h; ++y)
      if (y + dy < 0 || y + dy >= a.h) pad(out + y * wc, line, 0, wc);
  }
}

template <class O, bool Bytes> void run(const Ingest& a, int64_t begin, int64_t end) {
  Line<O> line;
  for (int64_t i = 0; i < a.w * a.c; ++i) {
    const double s = 1.0 / a.std[i % a.c];
    line.scale[i] = (float)(a.k || !Bytes ? s : s / 255);  // a projected tile is already in [0, 1], one of bytes is not
    line.bias[i] = (float)(-a.mean[i % a.c] * s);
    line.black[i] = from_float<O>(line.bias[i]);
  }
  const int64_t some = a.labels ? 1 : kGroup;  // images of a group share their basis, so class-wise ones go singly
  for (int64_t i = begin; i < end; i += some) group<O, Bytes>(a, line, i, i + some < end ? i + some : end);
}

template <class O> void run(const Ingest& a, int64_t begin, int64_t end) {
  a.in_dtype == DType::u8 ? run<O, true>(a, begin, end) : run<O, false>(a, begin, end);
}

}  // namespace

void ingest(const Ingest& a, int64_t begin, int64_t end) {
  switch (a.out_dtype) {
    case DType::f32:
      return run<float>(a, begin, end);
    case DType::bf16:
      return run<bf16>(a, begin, end);
    case DType::f16:
      return run<f16>(a, begin, end);
    default:
      return;  // refused by the caller
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
