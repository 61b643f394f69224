// project on CUDA, on the tensor cores: one basis of up to 128 rows, many rows.
//
// x of half precision and bytes enter the products unchanged, the basis and the coefficients as the sum of two halves
// (f16 for bytes, integers up to 255; scaled by powers of two, as for f16), with errors of about 2^-22 of a product,
// and 2^-16 for bf16, whose results round by 2^-9. For float32 all three are the sum of two TF32 numbers, without small
// times small: 2^-22. Additions of the tensor cores truncate, and a long chain of them errs to one side; for float32
// results a sum is extracted after four to six and added as float32. A row with an infinity becomes NaN.
//
// What bounds it, for n x d values of s bytes that become o bytes, on an H200 (4.27 TB/s, L2 5.5 TB/s, 132
// multiprocessors, mma.sync at some 60 % of the peak: 138 matrix instructions a ns; computed, not measured):
//   memory: one launch n d (s + o); three launches n d (2 s + o), of which L2 may have the second s
//   matrix instructions for 256 values: halves k / 4 + 3 k / 8, float32 3 k / 4 + 3 k / 4, in whole sixteens of k
//   instructions in all: some five (halves) and eight (float32) a matrix instruction, 900 a ns
//   shared memory: k / 4 bytes a value and product, 28 TB/s in all
//   L2: the basis, 4 k d bytes a block of each slice and launch; sums, 8 k bytes a row and slice
// In microseconds at 4096 x 3072 (memory, matrix instructions, all instructions):
//   k            10          32          64          100         128
//   bf16, f16    12, 4, 6    18, 7, 9    18, 14, 16  18, 25, 27  18, 28, 30
//   bytes        15, 4, 7    18, 7, 10   18, 14, 17  18, 25, 28  18, 28, 32
//   float32      -           35, 17, 21  35, 34, 40  35, 60, 62  35, 68, 71
// and, of three launches, about 15 for the basis, the sums and the launches. Two products of float32 take 4 n d k flops
// at 50 TFLOP/s (64 at k = 64, 100 at 100, 129 at 128) beside 35 for their traffic, after bytes and halves have been
// widened. Streaming the basis instead, past tiles of R rows that are read once, takes 8 k / R bytes a value through
// L2: 37 at k = 64 and R = 32, which are too few tiles to fill the GPU; so the basis stays and the rows are read twice.
// One launch where a slice holds all features: k to 16 at d = 3072.
//
// A warp takes 16 rows and a part of the slice's features, independently of the others; only with one launch are the
// warps' products summed in shared memory. Features are permuted so that those of a thread are neighbours.
#include "mma.cuh"
#include "resident.cuh"

namespace ulfast {
namespace cuda {

namespace {

constexpr int kTile = 16, kUnit = 32;  // rows; features that slices are multiples of
constexpr int kMostRank = 128;
// Warps per block, for up to 8 NT basis rows: as many as the registers allow.
constexpr __host__ __device__ int warps_of(int NT) { return NT > 8 ? 12 : 16; }
constexpr int64_t kAtOnce = 8192;           // rows of three launches, at most,
constexpr int64_t kMostScratch = 32 << 20;  // and floats of their scratch

// Features that a warp takes at a time, and the words of a row that a thread has of them.
template <class T> constexpr int kStep = sizeof(T) == 4 ? 16 : 32;
template <class T> constexpr int kWords = sizeof(T) == 1 ? 2 : 4;
// What the products are taken in.
template <class T> struct Factor {
  using type = T;
};
template <> struct Factor<uint8_t> {
  using type = f16;
};

// A block's shared memory: the basis, as floats or as two halves, `pitch` apart, so that neither product has conflicts;
// what the rows were divided by; with one launch the coefficients (kTile, 8 NT) and the warps' products.
struct Kept {
  float* basis;
  uint16_t *high, *low;
  float *inverse, *sums, *parts;
  int pitch, k, rows;
};
inline __host__ __device__ int pitch_of(int features) { return features + 8; }
inline __host__ __device__ int basis_floats(int64_t k, int features) { return (int)k * pitch_of(features); }
// Basis rows, and zeros up to a multiple of 16.
inline __host__ __device__ int rows_of(int64_t k) { return (int)((k + 15) / 16 * 16); }
template <int NT> constexpr int kPartPitch = 8 * NT + 8;
inline int64_t shared_of(int64_t rows, int features, int NT) {  // NT: 0 without what one launch needs
  const int whole = NT ? kTile * 8 * NT + warps_of(NT) * kTile * (8 * NT + 8) : 0;
  return 4 * ((int64_t)basis_floats(rows, features) + kMostRank + whole);
}
template <class T, int NT> __device__ __forceinline__ Kept kept(int k, int features) {
  Kept a;
  a.k = k, a.rows = rows_of(k), a.pitch = pitch_of(features);
  a.basis = dynamic_shared<float>();
  a.high = reinterpret_cast<uint16_t*>(a.basis), a.low = a.high + a.rows * a.pitch;
  a.inverse = a.basis + basis_floats(a.rows, features);
  a.sums = a.inverse + kMostRank;
  a.parts = a.sums + kTile * 8 * NT;
  return a;
}

// 2^e that brings a number to [2^13, 2^14), where halves have bits to spare on either side.
__device__ __forceinline__ int towards_halves(float top) {
  const int e = 13 - ((int)(bits_of_f32(top) >> 23 & 255) - 127);
  return e < 126 ? e : 126;
}
__device__ __forceinline__ float two_to(int e) { return f32_of_bits((uint32_t)(127 + e) << 23); }

// Where a half's feature lies within its 32: of 8 t + 4 s + 2 h + e (bytes: 16 s + 4 t + 2 h + e) at 16 s + 8 h + 2 t
// + e.
template <class T> __device__ __forceinline__ int position(int f) {
  const int s = sizeof(T) == 1 ? f / 16 : f / 4 % 2, t = sizeof(T) == 1 ? f / 4 % 4 : f / 8;
  return 16 * s + f / 2 % 2 * 8 + 2 * t + f % 2;
}

// The features [from, from + d) of the basis, and zeros up to a multiple of kUnit.
template <class T, int NT>
__device__ __forceinline__ void keep(const Kept& at, const float* basis, int64_t whole, int d) {
  using H = typename Factor<T>::type;
  const int fours = (d + kUnit - 1) / kUnit * (kUnit / 4);
  if constexpr (sizeof(T) == 4) {
    for (int c = threadIdx.x; c < at.rows * fours; c += 32 * warps_of(NT)) {
      const int j = c / fours, f = c % fours * 4;
      fetch<16>(at.basis + j * at.pitch + f, basis + (j < at.k && f < d ? j * whole + f : 0), j < at.k && f < d);
    }
    arrived();
  } else {
    constexpr bool scaled = std::is_same<H, f16>::value;
    const int lane = threadIdx.x % 32;
    for (int j = threadIdx.x / 32; j < at.rows; j += warps_of(NT)) {
      const float* row = basis + (j < at.k ? j * whole : 0);
      const int there = j < at.k ? d : 0;
      float scale = 1.0f;
      if (scaled) {
        float top = 0.0f;
#pragma unroll 8
        for (int c = lane; c < fours; c += 32)
          if (c * 4 < there) {
            const Four<float> b = *reinterpret_cast<const Four<float>*>(row + c * 4);
#pragma unroll
            for (int u = 0; u < 4; ++u) top = fmaxf(top, fabsf(b.v[u]));
          }
        for (int offset = 16; offset; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
        const int e = towards_halves(top);
        scale = two_to(e);
        if (lane == 0) at.inverse[j] = two_to(-e);
      }
#pragma unroll 4
      for (int c = lane; c < fours; c += 32) {
        const int f = c * 4, to = j * at.pitch + f / 32 * 32 + position<T>(f % 32);
        Four<float> b{{0.0f, 0.0f, 0.0f, 0.0f}};
        if (f < there) b = *reinterpret_cast<const Four<float>*>(row + f);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          H many[2], few[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) in_two(b.v[2 * h + e] * scale, &many[e], &few[e]);
          *reinterpret_cast<uint32_t*>(at.high + to + 8 * h) = many[0].bits | (uint32_t)many[1].bits << 16;
          *reinterpret_cast<uint32_t*>(at.low + to + 8 * h) = few[0].bits | (uint32_t)few[1].bits << 16;
        }
      }
    }
  }
}

// The thread's values of rows g and g + 8, from feature f on, zeros from d on. Turned: as the second product's result
// lies, which differs for float32 only.
template <class T> using Held = uint32_t[2][kWords<T>];
template <class T, bool Turned>
__device__ __forceinline__ void load(const T* const (&rows)[2], int f, int d, Held<T>& v) {
  const int t = threadIdx.x % 4;
  struct alignas(8) Two {
    uint32_t v[2];
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (sizeof(T) == 1 || (sizeof(T) == 4 && !Turned)) {
      using Piece = typename std::conditional<sizeof(T) == 1, uint32_t, Two>::type;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int at = f + (sizeof(T) == 1 ? 16 * s + 4 * t : 8 * s + 2 * t);
        Piece piece{};
        if (at < d) piece = *reinterpret_cast<const Piece*>(rows[r] + at);
        if constexpr (sizeof(T) == 1)
          v[r][s] = piece;
        else
          v[r][2 * s] = piece.v[0], v[r][2 * s + 1] = piece.v[1];
      }
    } else {
      const int at = f + 16 / (int)sizeof(T) * t;
      Four<uint32_t> piece{{0, 0, 0, 0}};
      if (at < d) piece = *reinterpret_cast<const Four<uint32_t>*>(rows[r] + at);
#pragma unroll
      for (int c = 0; c < 4; ++c) v[r][c] = piece.v[c];
    }
  }
}

// Calls body(step, values) for steps [begin, end), with the next ones in flight.
template <class T, bool Turned, int Deep, class Body>
__device__ __forceinline__ void for_each_step(const T* const (&rows)[2], int begin, int end, int d, const Body& body) {
  Held<T> next[Deep ? Deep : 1];
#pragma unroll
  for (int i = 0; i < Deep; ++i) load<T, Turned>(rows, (begin + i) * kStep<T>, begin + i < end ? d : 0, next[i]);
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    Held<T> now;
    if constexpr (Deep == 0) {
      load<T, Turned>(rows, step * kStep<T>, d, now);
      body(step, now);
      continue;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < kWords<T>; ++c) {
        now[r][c] = next[0][r][c];
#pragma unroll
        for (int i = 0; i + 1 < Deep; ++i) next[i][r][c] = next[i + 1][r][c];
      }
    load<T, Turned>(rows, (step + Deep) * kStep<T>, step + Deep < end ? d : 0, next[Deep ? Deep - 1 : 0]);
    body(step, now);
  }
}

// Keeps the compiler from computing all addresses before the loop: there are no registers for them.
__device__ __forceinline__ int here(int at) {
#ifndef ULFAST_EMULATE
  asm volatile("" : "+r"(at));
#endif
  return at;
}

// The same number in a separate register (`zero` is not a constant). The two rows of an operand are loaded to four
// registers each, and without this the compiler rearranges them before every matrix instruction.
__device__ __forceinline__ uint32_t alone(uint32_t v, uint32_t zero) {
#ifndef ULFAST_EMULATE
  asm volatile("or.b32 %0, %1, %2;" : "=r"(v) : "r"(v), "r"(zero));
#endif
  return v;
}

// sum[n]: products of the rows with basis rows 8 n to 8 n + 7, over a step of the features.
template <class T, int NT>
__device__ __forceinline__ void add_products(const Kept& at, int step, const Held<T>& v, float (&sum)[NT][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (sizeof(T) == 4) {
    struct alignas(8) Two {
      float v[2];
    };
    uint32_t big[2][4], small[2][4];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int c = 0; c < 4; ++c) in_two_tf32(f32_of_bits(v[c % 2][2 * s + c / 2]), &big[s][c], &small[s][c]);
    int from = here(g * at.pitch + step * 16 + 2 * t);
#pragma unroll
    for (int n = 0; n < NT; n += 2, from = here(from + 16 * at.pitch))
      if (n < 1 || n * 8 < at.k) {
        uint32_t b[2][2][2], rest[2][2][2];
        float part[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const Two two = *reinterpret_cast<const Two*>(at.basis + from + 8 * i * at.pitch + 8 * s);
#pragma unroll
            for (int e = 0; e < 2; ++e) in_two_tf32(two.v[e], &b[s][i][e], &rest[s][i][e]);
          }
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int i = 0; i < 2; ++i) multiply_tf32(part[i], small[s], b[s][i][0], b[s][i][1]);
#pragma unroll
          for (int i = 0; i < 2; ++i) multiply_tf32(part[i], big[s], rest[s][i][0], rest[s][i][1]);
        }
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
          for (int i = 0; i < 2; ++i) multiply_tf32(part[i], big[s], b[s][i][0], b[s][i][1]);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[n + i][c] += part[i][c];
      }
  } else {
    using H = typename Factor<T>::type;
    uint32_t x[2][4];
    const uint32_t zero = (uint32_t)at.k >> 16;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (sizeof(T) == 1)
          x[s][r] = halves<false>(v[r][s]), x[s][r + 2] = halves<true>(v[r][s]);
        else
          x[s][r] = alone(v[r][2 * s], zero), x[s][r + 2] = alone(v[r][2 * s + 1], zero);
      }
    int from = here(lane % 8 * at.pitch + step * 32 + lane / 8 * 8);
#pragma unroll
    for (int n = 0; n < NT; n += 2, from = here(from + 16 * at.pitch))
      if (n < 1 || n * 8 < at.k) {
        float part[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          uint32_t b[2][4];
#pragma unroll
          for (int i = 0; i < 2; ++i) load_matrices<false>(b[i], (which ? at.high : at.low) + from + 8 * i * at.pitch);
#pragma unroll
          for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int i = 0; i < 2; ++i) multiply<H>(part[i], x[s], b[i][2 * s], b[i][2 * s + 1]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[n + i][c] += part[i][c];
      }
  }
}

// The coefficients of rows g and g + 8 as the second product takes them.
template <class T, int NT> struct Coefficients {
  uint32_t many[NT / 2][4], few[NT / 2][4];
  float times[2];  // their divisors
};
template <int NT> struct Coefficients<float, NT> {
  float v[NT][4];
};
template <class T, int NT>
__device__ __forceinline__ void take(const Kept& at, const float* const (&sums)[2], Coefficients<T, NT>* out) {
  const int t = threadIdx.x % 4;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int q = 0; q < NT; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int j = q * 8 + c / 2 * 4 + t;
        out->v[q][c] = j < at.k ? sums[c % 2][j] : 0.0f;
      }
  } else {
    using H = typename Factor<T>::type;
    constexpr bool scaled = std::is_same<H, f16>::value;
    float v[NT / 2][4][2], top[2] = {0.0f, 0.0f}, scale[2] = {1.0f, 1.0f};
#pragma unroll
    for (int q = 0; q < NT / 2; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = q * 16 + c / 2 * 8 + 2 * t + e;
          v[q][c][e] = j < at.k ? scaled ? sums[c % 2][j] * at.inverse[j] : sums[c % 2][j] : 0.0f;
          top[c % 2] = fmaxf(top[c % 2], fabsf(v[q][c][e]));
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      out->times[r] = 1.0f;
      if (scaled) {
        for (int offset = 2; offset; offset /= 2) top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], offset));
        const int e = towards_halves(top[r]);
        scale[r] = two_to(e), out->times[r] = two_to(-e);
      }
    }
#pragma unroll
    for (int q = 0; q < NT / 2; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        H many[2], few[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) in_two(v[q][c][e] * scale[c % 2], &many[e], &few[e]);
        out->many[q][c] = many[0].bits | (uint32_t)many[1].bits << 16;
        out->few[q][c] = few[0].bits | (uint32_t)few[1].bits << 16;
      }
  }
}

// A step's results, to `to`, of which a row may not be there.
template <class T, class O, int NT>
__device__ __forceinline__ void remove(const Kept& at, const Coefficients<T, NT>& coef, int step, const Held<T>& x,
                                       int d, O* const (&to)[2], const bool (&there)[2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (sizeof(T) == 4) {
    struct alignas(8) Two {
      float v[2];
    };
    float all[2][4], rest[2][4], some[2][4];  // some: of four matrix instructions, added to `all` before more cut it
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int c = 0; c < 4; ++c) all[m][c] = rest[m][c] = some[m][c] = 0.0f;
    int from = here(t * at.pitch + step * 16 + 2 * g);
#pragma unroll
    for (int q = 0; q < NT; ++q, from = here(from + 8 * at.pitch))
      if (q < 1 || q * 8 < at.k) {
        uint32_t big[4], small[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) in_two_tf32(coef.v[q][c], &big[c], &small[c]);
        Two b[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) b[h] = *reinterpret_cast<const Two*>(at.basis + from + 4 * h * at.pitch);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t many[2], few[2];
#pragma unroll
          for (int h = 0; h < 2; ++h) in_two_tf32(b[h].v[m], &many[h], &few[h]);
          multiply_tf32(rest[m], small, many[0], many[1]);
          multiply_tf32(rest[m], big, few[0], few[1]);
          multiply_tf32(some[m], big, many[0], many[1]);
          if (q % 4 == 3)
#pragma unroll
            for (int c = 0; c < 4; ++c) all[m][c] += some[m][c], some[m][c] = 0.0f;
        }
      }
    const int f = step * 16 + 4 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Four<O> y;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int m = c % 2, of = 2 * r + c / 2;
        narrow(f32_of_bits(x[r][c]) - (all[m][of] + (some[m][of] + rest[m][of])), &y.v[c]);
      }
      if (there[r] && f < d) stream_out(to[r] + f, y);
    }
  } else {
    using H = typename Factor<T>::type;
    uint32_t pairs[2][4];  // of halves, to be stored together
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      float rest[2][4], some[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int c = 0; c < 4; ++c) rest[h][c] = some[h][c] = 0.0f;
      int from = here(lane % 16 * at.pitch + step * 32 + 16 * s);
#pragma unroll
      for (int q = 0; q < NT / 2; ++q, from = here(from + 16 * at.pitch))
        if (q < 1 || q * 16 < at.k) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            uint32_t b[4];
            load_matrices<true>(b, (lane / 16 ? at.low : at.high) + from + 8 * h);
            multiply<H>(rest[h], coef.few[q], b[0], b[1]);
            multiply<H>(rest[h], coef.many[q], b[2], b[3]);
            multiply<H>(some[h], coef.many[q], b[0], b[1]);
          }
        }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Four<O> y;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int h = c / 2, e = c % 2;
          const float removed = (some[h][2 * r + e] + rest[h][2 * r + e]) * coef.times[r];
          if constexpr (sizeof(T) == 1) {  // v / 255, rounded once together with the subtraction
            const float v = (float)(x[r][s] >> 8 * c & 255u);
            y.v[c] = fmaf(v, 1.0f / 255.0f, fmaf(v, (float)(1.0 / 255.0 - (double)(1.0f / 255.0f)), -removed));
          } else {
            const T v{(uint16_t)(x[r][2 * s + h] >> 16 * e)};
            narrow(wide(v) - removed, &y.v[c]);
          }
        }
        const int f = step * 32 + 16 * s + 4 * t;
        if constexpr (sizeof(T) == 1) {
          if (there[r] && f < d) stream_out(to[r] + f, y);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) pairs[r][2 * s + h] = y.v[2 * h].bits | (uint32_t)y.v[2 * h + 1].bits << 16;
        }
      }
    }
    if constexpr (sizeof(T) == 2) {
      const int f = step * 32 + 8 * t;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (there[r] && f < d)
          stream_out(reinterpret_cast<uint32_t*>(to[r] + f),
                     Four<uint32_t>{{pairs[r][0], pairs[r][1], pairs[r][2], pairs[r][3]}});
    }
  }
}

// NT: eights of basis rows, at most. Subs: parts of the slice's features, each of which is a warp's.
template <class T, class O, int NT, Part part> __global__ void __launch_bounds__(32 * warps_of(NT), 1)
    mma_project_kernel(Rows a, Task task, int subs, O* result) {
  // Steps on their way; the second product needs a step's values after its work only.
  constexpr int block_warps = warps_of(NT);
  constexpr int deep = NT > 8 ? 1 : sizeof(T) == 1 ? 3 : 2, deep_rest = NT > 8 ? 0 : sizeof(T) == 1 ? 2 : 1;
  const int splits = task.slices.splits, split = blockIdx.x % splits, block = blockIdx.x / splits;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, k = (int)a.k;
  const int64_t from = (int64_t)split * task.slices.features, rows = task.end - task.begin;
  const int d = a.d - from < task.slices.features ? (int)(a.d - from) : task.slices.features;
  const int steps = (d + kStep<T> - 1) / kStep<T>;
  const int64_t tiles = (rows + kTile - 1) / kTile;
  const Kept at = kept<T, NT>(k, task.slices.features);
  constexpr bool scaled = std::is_same<typename Factor<T>::type, f16>::value;

  keep<T, NT>(at, static_cast<const float*>(a.basis) + from, a.d, d);
  __syncthreads();

  // The rows of the thread; of rows too many the last.
  const auto rows_at = [&](int64_t tile, const T*(&values)[2], bool (&there)[2], int64_t (&row)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = tile * kTile + g + 8 * r;
      there[r] = row[r] < rows;
      if (!there[r]) row[r] = rows - 1;
      values[r] = static_cast<const T*>(a.x) + (task.begin + row[r]) * a.stride + from;
    }
  };
  const auto products = [&](const T* const(&values)[2], int begin, int end, float (&sum)[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[n][c] = 0.0f;
    for_each_step<T, false, deep>(values, begin, end, d,
                                  [&](int step, const Held<T>& v) { add_products<T, NT>(at, step, v, sum); });
  };
  const auto rest = [&](const T* const(&values)[2], const bool (&there)[2], const int64_t (&row)[2],
                        const float* const(&sums)[2], int begin, int end) {
    Coefficients<T, NT> coef;
    take<T, NT>(at, sums, &coef);
    O* const to[2] = {result + (task.begin + row[0]) * a.d + from, result + (task.begin + row[1]) * a.d + from};
    for_each_step<T, true, deep_rest>(
        values, begin, end, d, [&](int step, const Held<T>& v) { remove<T, O, NT>(at, coef, step, v, d, to, there); });
  };
  // Products of scaled rows become those of the rows themselves, bytes become pixels.
  const auto unscaled = [&](float sum, int j) {
    const float v = scaled ? sum * at.inverse[j] : sum;
    return sizeof(T) == 1 ? v * (1.0f / 255.0f) : v;
  };

  const T* values[2];
  bool there[2];
  int64_t row[2];
  if constexpr (part == Part::all) {
    const int begin = steps * warp / block_warps, end = steps * (warp + 1) / block_warps;
#pragma unroll 1
    for (int64_t tile = block; tile < tiles; tile += task.slices.blocks) {
      rows_at(tile, values, there, row);
      {
        float sum[NT][4];
        products(values, begin, end, sum);
        float* mine = at.parts + warp * kTile * kPartPitch<NT>;
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) mine[(g + c / 2 * 8) * kPartPitch<NT> + n * 8 + 2 * t + c % 2] = sum[n][c];
      }
      {  // the next rows to L2, while these are finished
        const int64_t first = (tile + task.slices.blocks) * kTile, line = 128 / (int64_t)sizeof(T);
        const int lines = (int)((d + line - 1) / line);
        for (int c = threadIdx.x; c < kTile * lines; c += 32 * block_warps)
          if (first + c / lines < rows)
            soon(static_cast<const T*>(a.x) + (task.begin + first + c / lines) * a.stride + c % lines * line);
      }
      __syncthreads();
      if (threadIdx.x < kTile * 8 * NT) {
        const int r = threadIdx.x / (8 * NT), j = threadIdx.x % (8 * NT);
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < block_warps; ++w) sum += at.parts[(w * kTile + r) * kPartPitch<NT> + j];
        at.sums[threadIdx.x] = j < k ? unscaled(sum, j) : 0.0f;
      }
      __syncthreads();
      const float* const sums[2] = {at.sums + g * 8 * NT, at.sums + (g + 8) * 8 * NT};
      rest(values, there, row, sums, begin, end);
    }
  } else {
    for (int64_t work = (int64_t)block * block_warps + warp; work < tiles * subs;
         work += (int64_t)task.slices.blocks * block_warps) {
      const int sub = (int)(work % subs), begin = steps * sub / subs, end = steps * (sub + 1) / subs;
      rows_at(work / subs, values, there, row);
      if constexpr (part == Part::products) {
        float sum[NT][4];
        products(values, begin, end, sum);
        float* out = task.sums + ((int64_t)split * subs + sub) * rows * k;
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int j = n * 8 + 2 * t + c % 2;
            if (there[c / 2] && j < k) out[row[c / 2] * k + j] = unscaled(sum[n][c], j);
          }
      } else {
        const float* const sums[2] = {task.sums + row[0] * k, task.sums + row[1] * k};
        rest(values, there, row, sums, begin, end);
      }
    }
  }
}

// How the work is divided: one launch, or slices whose features are further divided among warps.
struct Layout {
  Slices slices;
  int subs;
  bool whole;
};
Layout layout_of(const Project& a) {
  const int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  const int64_t units = (a.d + kUnit - 1) / kUnit, k = a.k;
  const int64_t tiles_of_all = (a.n + kTile - 1) / kTile;
  const int NT = k > 16 ? 4 : 2, basis_rows = rows_of(k);
  if (k <= 32 && 2 * tiles_of_all >= multiprocessors && shared_of(basis_rows, (int)units * kUnit, NT) <= limit) {
    const int64_t blocks = tiles_of_all < multiprocessors ? tiles_of_all : multiprocessors;
    return {{(int)units * kUnit, 1, (int)blocks, shared_of(basis_rows, (int)units * kUnit, NT)}, 1, true};
  }
  const int64_t rows = a.n < kAtOnce ? a.n : kAtOnce, tiles = (rows + kTile - 1) / kTile;
  const int64_t fits = (limit - shared_of(basis_rows, 0, 0)) / (4 * kUnit * basis_rows);
  if (fits < 1) return {{0, 0, 0, 0}, 0, false};
  const int block_warps = warps_of(k > 64 ? 16 : 8);
  // The least of: what the busiest warp does, the sums' traffic, and the basis, all as bytes of memory.
  Layout best{{0, 0, 0, 0}, 0, false};
  double least = 0.0;
  const int64_t fewest = (units + fits - 1) / fits, most = fewest > multiprocessors ? fewest * 2 : multiprocessors;
  for (int64_t s = fewest; s <= units && s <= most; s += 1 + s / 8) {
    const int64_t each = (units + s - 1) / s, splits = (units + each - 1) / each;
    const int64_t blocks = splits < multiprocessors ? multiprocessors / splits : 1;
    const int64_t waves = (splits * blocks + multiprocessors - 1) / multiprocessors;
    for (int64_t subs = 1; subs <= 16 && subs <= each; subs += 1 + subs / 3) {
      const int64_t warps = blocks * block_warps, turns = (tiles * subs + warps - 1) / warps;
      const double longest = (double)(waves * turns * ((each + subs - 1) / subs) * kUnit * kTile * block_warps);
      const double cost = longest * (double)multiprocessors * (8.0 + 0.25 * (double)k) +
                          (double)(splits * subs * rows * k) * 8.0 +
                          (double)(waves * multiprocessors * each * kUnit * k) * 8.0;
      if (best.subs && cost >= least) continue;
      least = cost;
      const int features = (int)each * kUnit;
      best = {{features, (int)splits, (int)blocks, shared_of(basis_rows, features, 0)}, (int)subs, false};
    }
  }
  return best;
}

int64_t sums_of(const Layout& layout) { return (int64_t)layout.slices.splits * layout.subs; }
// Rows of three launches.
int64_t at_once(const Project& a, const Layout& layout) {
  const int64_t some = kMostScratch / ((sums_of(layout) + 1) * a.k) / kTile * kTile;
  const int64_t rows = some < kTile ? kTile : some < kAtOnce ? some : kAtOnce;
  return a.n < rows ? a.n : rows;
}

template <class T, class O, int NT> const char* run(const Project& a, cudaStream_t stream) {
  const Layout layout = layout_of(a);
  const Slices s = layout.slices;
  const Rows rows{a.x, a.basis, nullptr, nullptr, nullptr, a.x_stride, a.d, a.k, 0, 0};
  O* out = static_cast<O*>(a.out);
  const int64_t grid = (int64_t)s.splits * s.blocks;
  const size_t shared = (size_t)s.shared;
  if constexpr (NT <= 4)
    if (layout.whole)
      return launch(mma_project_kernel<T, O, NT, Part::all>, grid, 32 * warps_of(NT), shared, stream, rows,
                    Task{s, 0, a.n, nullptr}, layout.subs, out);
  float* scratch = static_cast<float*>(a.coef);
  const int parts = (int)sums_of(layout);
  for (int64_t i = 0, some = at_once(a, layout); i < a.n; i += some) {
    const int64_t end = i + some < a.n ? i + some : a.n, count = (end - i) * a.k;
    const char* bad = launch(mma_project_kernel<T, O, NT, Part::products>, grid, 32 * warps_of(NT), shared, stream,
                             rows, Task{s, i, end, scratch}, layout.subs, out);
    if (!bad && parts > 1)
      bad = launch(add_slices, blocks(count), kThreads, 0, stream, (const float*)scratch, scratch + parts * count,
                   count, parts);
    if (!bad)
      bad = launch(mma_project_kernel<T, O, NT, Part::rest>, grid, 32 * warps_of(NT), shared, stream, rows,
                   Task{s, i, end, parts > 1 ? scratch + parts * count : scratch}, layout.subs, out);
    if (bad) return bad;
  }
  return nullptr;
}
template <class T, class O> const char* run(const Project& a, cudaStream_t stream) {
  if constexpr (sizeof(T) < 4)  // float32 of so few rows goes elsewhere (mma_fits)
    if (a.k <= 16) return run<T, O, 2>(a, stream);
  if (a.k <= 32) return run<T, O, 4>(a, stream);
  return a.k <= 64 ? run<T, O, 8>(a, stream) : run<T, O, 16>(a, stream);
}

}  // namespace

bool mma_fits(const Project& a) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 8) return false;
  // The resident kernel takes float32 at up to 16 basis rows: the border is from the bounds of both, not measured.
  if (a.dtype == DType::f64 || a.classes > 0 || a.k < (a.dtype == DType::f32 ? 17 : 1) || a.k > kMostRank) return false;
  const int64_t together = a.dtype == DType::u8 || a.dtype == DType::f32 ? 4 : 8;  // values that are loaded at once
  if (a.d % 8 || a.x_stride % together || a.d < 512 || a.n < kTile) return false;
  // Enough for every warp of the device to have some steps.
  if (a.n * a.d < (int64_t)attribute(cudaDevAttrMultiProcessorCount) * 16 * kTile * kUnit) return false;
  return layout_of(a).slices.splits > 0;
}

int64_t mma_scratch(const Project& a) {
  const Layout layout = layout_of(a);
  return layout.whole ? 0 : (sums_of(layout) + 1) * at_once(a, layout) * a.k;
}

const char* mma_project(const Project& a, cudaStream_t stream) {
  return by_dtype(a.dtype, [&](auto x, auto result) { return run<decltype(x), decltype(result)>(a, stream); });
}

}  // namespace cuda
}  // namespace ulfast
