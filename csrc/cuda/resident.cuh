// Rows against a basis that stays in shared memory, for project and ingest on wide rows.
//
// A block keeps the basis of a slice of features and takes group after group of R rows, whose values stay in
// registers: x is read once, and the basis once per block. Two teams of 256 threads share the basis and work on
// separate groups in turn, so that one computes while the other waits for memory or for its own barrier; there is one
// block per multiprocessor. A thread holds the same features of every row, kChunks times four of them. Ahead: a team's
// next group is loaded to shared memory while it computes, if there is room beside the basis.
//
// Rows too wide for one slice take three launches: the products of every slice, their sums, and the removal.
#pragma once

#include "rows.cuh"

namespace ulfast {
namespace cuda {

constexpr int kTeams = 2, kTeam = 256, kBlock = kTeams * kTeam, kTeamWarps = kTeam / 32;
constexpr int kChunks = 3;                   // of four values per row in a thread
constexpr int kSlice = 4 * kChunks * kTeam;  // features of a slice, at most
constexpr int64_t kRowsAtOnce = 4096;        // for three launches; bounds their scratch

enum class Part { all, products, rest };  // the part of a kernel: everything, or one of two launches

// How the work is divided: `splits` slices of `features`, each for `blocks` blocks. No splits: it cannot be divided.
struct Slices {
  int features, splits, blocks;
  int64_t shared;  // bytes
};

// A barrier for the threads of one team.
__device__ __forceinline__ void meet(int team) {
#ifdef ULFAST_EMULATE
  emulation::meet(&emulation::Fibre::barriers, team * kTeam, (team + 1) * kTeam);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kTeam) : "memory");
#endif
}

// Shared memory in floats: the basis, then of each team the coefficients (k, R) and the warps' products (warps, k, R).
struct Room {
  float *basis, *coef, *parts, *rest;
};
inline __host__ __device__ int room_floats(int64_t rows_of_basis, int64_t k, int R, int features) {
  return (int)(rows_of_basis * features + kTeams * (1 + kTeamWarps) * ((k * R + 3) / 4 * 4));
}
__device__ __forceinline__ Room room(int rows_of_basis, int k, int R, int features, int team) {
  Room a;
  const int some = (k * R + 3) / 4 * 4;
  a.basis = dynamic_shared<float>();
  a.coef = a.basis + (int64_t)rows_of_basis * features + team * (1 + kTeamWarps) * some;
  a.parts = a.coef + some;
  a.rest = a.basis + room_floats(rows_of_basis, k, R, features);
  return a;
}

// The features [from, from + d) of the basis rows into shared memory, `pitch` apart; all threads of the block.
__device__ __forceinline__ void keep_basis(const float* basis, int rows, int64_t whole, int64_t from, int d, int pitch,
                                           float* to) {
  for (int j = 0; j < rows; ++j)
    for (int i = threadIdx.x * 4; i < d; i += kBlock * 4)
      fetch<16>(to + j * pitch + i, basis + j * whole + from + i, true);
}

// The first of the four features of a thread's chunk: runs of CH chunks lie side by side, so that a thread can hold
// whole pixels of CH channels.
template <int CH> __device__ __forceinline__ int feature(int c) {
  return (((int)(threadIdx.x % kTeam) + c / CH * kTeam) * CH + c % CH) * 4;
}

// For a group of rows: their labels, and a bit for each whose index or label is out of range.
template <int R> struct Group {
  int label[R];
  unsigned bad;
};

// Rows from `first` on, before `end`: their values, zeros where there are none; into `raw`, or, ahead, on their way to
// the thread's own places in `stage`.
template <class T, int R, int CH, bool Own, bool Whole, bool Ahead>
__device__ __forceinline__ Group<R> hold(const Rows& a, int64_t first, int64_t end, int64_t from, int d,
                                         Four<T> (&raw)[R][kChunks], Four<T>* stage) {
  Group<R> g;
  g.bad = 0;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    g.label[r] = 0;
    int64_t row = first + r;
    bool there = row < end;
    if (Own && there) {
      const int64_t label = a.labels[row];
      if (label < 0 || label >= a.classes)
        there = false, g.bad |= 1u << r;
      else
        g.label[r] = (int)label;
    }
    if (a.index && there) {
      row = a.index[row];
      if (row < 0 || row >= a.sources) there = false, g.bad |= 1u << r;
    }
    const T* values = static_cast<const T*>(a.x) + (there ? row : 0) * a.stride + from;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int f = feature<CH>(c);
      const bool mine = there && (Whole || f < d);
      if (Ahead) {
        fetch<sizeof(Four<T>)>(stage + (r * kChunks + c) * kTeam, values + (mine ? f : 0), mine);
      } else if (mine) {
        raw[r][c] = *reinterpret_cast<const Four<T>*>(values + f);
      } else {
#pragma unroll
        for (int u = 0; u < 4; ++u) raw[r][c].v[u] = T{};
      }
    }
  }
  return g;
}
template <class T, int R>
__device__ __forceinline__ void widen(const Four<T> (&raw)[R][kChunks], float (&x)[R][kChunks][4]) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int u = 0; u < 4; ++u) x[r][c][u] = wide(raw[r][c].v[u]);
}

// The warp's sums of N values, N a power of two, to `parts`.
template <int N> __device__ __forceinline__ void put_sums(float (&v)[N], float* parts) {
  const float sum = sum_rows<N>(v);
  const int lane = threadIdx.x % 32;
  if (lane % (32 / N) == 0) parts[lane / (32 / N)] = sum;
}

// The warp's products of the rows with basis rows j to j + K - 1, K at most five. Whole: d is kSlice.
template <int R, int CH, int K, bool Own, bool Whole>
__device__ __forceinline__ void products(const float (&x)[R][kChunks][4], const Group<R>& g, const float* basis,
                                         int pitch, int d, int j, int k, float* parts) {
  constexpr int most = K >= 4 ? 4 : K >= 2 ? 2 : 1;  // whose sums go together
  float acc[most * R], rest[R];
#pragma unroll
  for (int i = 0; i < most * R; ++i) acc[i] = 0.0f;
#pragma unroll
  for (int r = 0; r < R; ++r) rest[r] = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int f = feature<CH>(c);
    if (Whole || f < d) {
#pragma unroll
      for (int q = 0; q < K; ++q) {
        Four<float> b;
        if (!Own) b = *reinterpret_cast<const Four<float>*>(basis + (j + q) * pitch + f);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (Own) b = *reinterpret_cast<const Four<float>*>(basis + (g.label[r] * k + j + q) * pitch + f);
          float& sum = q < most ? acc[q < most ? q * R + r : 0] : rest[r];
#pragma unroll
          for (int u = 0; u < 4; ++u) sum = fmaf(x[r][c][u], b.v[u], sum);
        }
      }
    }
  }
  float* to = parts + (threadIdx.x % kTeam / 32 * k + j) * R;
  put_sums(acc, to);
  if (most < K) put_sums(rest, to + most * R);
}
template <int R, int CH, bool Own, bool Whole>
__device__ __forceinline__ void all_products(const float (&x)[R][kChunks][4], const Group<R>& g, const float* basis,
                                             int pitch, int d, int k, float* parts) {
  if (Own) {
    for (int j = 0; j < k; ++j) products<R, CH, 1, Own, Whole>(x, g, basis, pitch, d, j, k, parts);
    return;
  }
  const int tiles = (k + 4) / 5, now = (k + tiles - 1) / tiles;  // of about the same size
  for (int j = 0; j < k; j += now) {
    const int there = k - j < now ? k - j : now;
    if (there == 5)
      products<R, CH, 5, false, Whole>(x, g, basis, pitch, d, j, k, parts);
    else if (there == 4)
      products<R, CH, 4, false, Whole>(x, g, basis, pitch, d, j, k, parts);
    else if (there == 3)
      products<R, CH, 3, false, Whole>(x, g, basis, pitch, d, j, k, parts);
    else if (there == 2)
      products<R, CH, 2, false, Whole>(x, g, basis, pitch, d, j, k, parts);
    else
      products<R, CH, 1, false, Whole>(x, g, basis, pitch, d, j, k, parts);
  }
}

// put(i, sum): sum i of (k, R) over the team's warps.
template <class T, int R, class Put> __device__ __forceinline__ void sums(const float* parts, int k, const Put& put) {
  for (int i = threadIdx.x % kTeam; i < k * R; i += kTeam) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kTeamWarps; ++w) sum += parts[w * k * R + i];
    put(i, sizeof(T) == 1 ? sum * (1.0f / 255.0f) : sum);
  }
}

// put(r, c, f, y): y is x - sum_j coef[j] basis[j] at features f to f + 3 of row r, chunk c.
template <class T, int R, int CH, bool Own, bool Whole, class Put>
__device__ __forceinline__ void removed(const float (&x)[R][kChunks][4], const Group<R>& g, const float* basis,
                                        int pitch, int d, int k, const float* coef, const Put& put) {
  struct alignas(4 * R) Few {
    float v[R];
  };
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int f = feature<CH>(c);
    if (Whole || f < d) {
      float acc[R][4];
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int u = 0; u < 4; ++u) acc[r][u] = 0.0f;
#pragma unroll(Own ? 1 : Whole || sizeof(T) > 1 ? 4 : 2)
      for (int j = 0; j < k; ++j) {
        const Few few = *reinterpret_cast<const Few*>(coef + j * R);
        Four<float> b;
        if (!Own) b = *reinterpret_cast<const Four<float>*>(basis + j * pitch + f);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (Own) b = *reinterpret_cast<const Four<float>*>(basis + (g.label[r] * k + j) * pitch + f);
#pragma unroll
          for (int u = 0; u < 4; ++u) acc[r][u] = fmaf(few.v[r], b.v[u], acc[r][u]);
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float y[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const float v = x[r][c][u];
          if (sizeof(T) == 1)  // v / 255, rounded once together with the subtraction
            y[u] = fmaf(v, 1.0f / 255.0f, fmaf(v, (float)(1.0 / 255.0 - (double)(1.0f / 255.0f)), -acc[r][u]));
          else
            y[u] = v - acc[r][u];
        }
        put(r, c, f, y);
      }
    }
  }
}

// A kernel's arguments besides the rows.
struct Task {
  Slices slices;
  int64_t begin, end;  // rows
  float* sums;         // products: (splits, end - begin, k); rest: (end - begin, k)
};

// The groups of a team, one after another. make(x, group, first row) is called with the coefficients in a.coef, or,
// for the products, never. Sums go to task.sums.
template <class T, int R, int CH, Part part, bool Own, bool Whole, bool Ahead, class Make>
__device__ __forceinline__ void for_each_group(const Rows& a, const Task& task, const Make& make) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // never launched before, where shared memory is too small
  const int pitch = task.slices.features, splits = task.slices.splits;
  const int split = blockIdx.x % splits, team = threadIdx.x / kTeam, k = (int)a.k;
  const int64_t from = (int64_t)split * pitch, step = (int64_t)task.slices.blocks * kTeams;
  const int d = Whole ? kSlice : a.d - from < pitch ? (int)(a.d - from) : pitch;
  const int64_t groups = (task.end - task.begin + R - 1) / R;
  const int rows_of_basis = Own ? (int)(a.classes * a.k) : k;
  const Room at = room(rows_of_basis, k, R, pitch, team);
  // The last of the shared memory: a place for each value that the thread holds.
  Four<T>* stage = reinterpret_cast<Four<T>*>(dynamic_shared<char>() + task.slices.shared) -
                   (kTeams - team) * R * kChunks * kTeam + threadIdx.x % kTeam;

  int64_t i = (int64_t)(blockIdx.x / splits) * kTeams + team;
  Four<T> raw[R][kChunks];  // on their way while the basis is read
  Group<R> group =
      hold<T, R, CH, Own, Whole, Ahead>(a, task.begin + i * R, i < groups ? task.end : 0, from, d, raw, stage);
  keep_basis(static_cast<const float*>(a.basis), rows_of_basis, a.d, from, d, pitch, at.basis);
  arrived();
  __syncthreads();
  for (; i < groups; i += step) {
    const int64_t first = task.begin + i * R, next = i + step, stop = next < groups ? task.end : 0;
    float x[R][kChunks][4];
    if (Ahead) {
      arrived();
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < kChunks; ++c) raw[r][c] = stage[(r * kChunks + c) * kTeam];
    }
    widen<T, R>(raw, x);
    const Group<R> now = group;
    if (part == Part::rest) {
      meet(team);  // the previous coefficients have been used
      for (int c = threadIdx.x % kTeam; c < k * R; c += kTeam) {
        const int64_t row = first + c % R;
        at.coef[c] = row < task.end ? task.sums[(row - task.begin) * k + c / R] : 0.0f;
      }
    } else if (k) {
      all_products<R, CH, Own, Whole>(x, now, at.basis, pitch, d, k, at.parts);
      meet(team);
      sums<T, R>(at.parts, k, [&](int c, float sum) {
        if (part == Part::all) {
          at.coef[c] = sum;
        } else if (first + c % R < task.end) {
          task.sums[(split * (task.end - task.begin) + first - task.begin + c % R) * k + c / R] = sum;
        }
      });
    }
    meet(team);  // the values have been read from the stage, too
    if (Ahead) group = hold<T, R, CH, Own, Whole, Ahead>(a, task.begin + next * R, stop, from, d, raw, stage);
    if (part != Part::products) make(x, now, first, at, from, d, split, team);
    if (!Ahead) group = hold<T, R, CH, Own, Whole, Ahead>(a, task.begin + next * R, stop, from, d, raw, stage);
  }
#endif
}

// How images become a batch, for the kernels of ingest.
struct Augment {
  const float *mean, *std;
  const int32_t* shift;
  const uint8_t* flip;
  int h, w;
};

// (splits, rows, k) to (rows, k), always in the same order.
__global__ void add_slices(const float* parts, float* out, int64_t count, int splits);

// Every byte row's products with the basis, into the last (rows, k) floats of `scratch`: (splits + 1) times that.
const char* slice_products(const Rows& a, Slices slices, int64_t begin, int64_t end, float* scratch,
                           cudaStream_t stream);

// Whether the operators use these kernels (reads no address), the floats that they need, and the kernels themselves.
bool resident_fits(const Project& a);
bool resident_fits(const Ingest& a);
int64_t resident_scratch(const Project& a);
int64_t resident_scratch(const Ingest& a);
const char* resident_project(const Project& a, cudaStream_t stream);
const char* resident_ingest(const Ingest& a, cudaStream_t stream);

// The same on the tensor cores (project_mma.cu, ingest_mma.cu).
bool mma_fits(const Project& a);
bool mma_fits(const Ingest& a);
int64_t mma_scratch(const Project& a);
int64_t mma_scratch(const Ingest& a);
const char* mma_project(const Project& a, cudaStream_t stream);
const char* mma_ingest(const Ingest& a, cudaStream_t stream);

// run(x, result) with a value of the type of the rows and one of the result's, of all types but float64.
template <class Run> const char* by_dtype(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::u8:
      return run(uint8_t{}, float{});
    case DType::f16:
      return run(f16{}, f16{});
    case DType::bf16:
      return run(bf16{}, bf16{});
    case DType::f32:
      return run(float{}, float{});
    default:
      return "unknown dtype";
  }
}

// Bytes of the next groups of a block, for values of `size` bytes.
inline int64_t ahead_bytes(int R, int64_t size) { return (int64_t)kBlock * R * kChunks * 4 * size; }

// Slices for rows of d values whose basis has `rows_of_basis` rows, in multiples of `unit` features, at most `most`;
// the caller keeps `beside` bytes, and `beside_a_feature`.
inline Slices cut_slices(int64_t n, int64_t d, int64_t rows_of_basis, int64_t k, int R, int64_t unit, int64_t most,
                         int64_t beside, int64_t beside_a_feature) {
  const int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), units = (d + unit - 1) / unit;
  const int64_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  const int64_t fixed = 4 * (int64_t)room_floats(0, k, R, 0) + beside + 64;
  int64_t fits = limit > fixed ? (limit - fixed) / (4 * rows_of_basis + beside_a_feature + 1) / unit : 0;
  if (fits * unit > most) fits = most / unit;
  if (!fits) return {0, 0, 0, 0};
  int64_t splits = (units + fits - 1) / fits, blocks = 1;
  const int64_t teams = ((n + R - 1) / R + kTeams - 1) / kTeams;
  if (splits == 1) {
    blocks = teams < multiprocessors ? teams : multiprocessors;
  } else if (splits < multiprocessors) {  // as many slices as keep every multiprocessor busy
    blocks = multiprocessors / splits;
    const int64_t more = multiprocessors / blocks, wide = (units + more - 1) / more;
    splits = (units + wide - 1) / wide;
    if (blocks > teams) blocks = teams < 1 ? 1 : teams;
  }
  const int64_t features = splits == 1 ? (d + 3) / 4 * 4 : (units + splits - 1) / splits * unit;
  const int64_t kept = 4 * (int64_t)room_floats(rows_of_basis, k, R, (int)features) + features * beside_a_feature;
  return {(int)features, (int)((d + features - 1) / features), (int)blocks, (kept + 15) / 16 * 16 + beside};
}

}  // namespace cuda
}  // namespace ulfast
