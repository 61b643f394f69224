// The whole kernel API of ulfast: addresses, sizes, strides, dtypes and a thread count. No torch, no Python.
//
// Every function reads and writes memory of the caller and allocates nothing. Sizes are in elements unless a name
// says bytes. Shapes: n images (rows), d features, k basis rows, c classes. The PyTorch twin of each function, which
// says what it computes, has the same name in ulfast/ops/reference.py.
#pragma once

#include <stdint.h>

namespace ulfast {

enum class DType : int { u8 = 0, f16 = 1, bf16 = 2, f32 = 3, f64 = 4 };
constexpr int64_t size_of(DType t) { return t == DType::u8 ? 1 : t == DType::f32 ? 4 : t == DType::f64 ? 8 : 2; }

// Returned by the functions that read an index: the first position whose value is out of range, or kIndexOk.
constexpr int64_t kIndexOk = -1;

struct Project {
  const void* x;      // (n, d), rows `x_stride` apart
  const void* basis;  // (k, d) float32, or float64 where x is float64; (classes, k, d) with labels
  void* coef;         // (n, k) scratch in the basis's dtype
  void* out;          // (n, d); x's dtype, float32 for u8
  int64_t n, d, k, x_stride;
  DType dtype;            // of x
  const int64_t* labels;  // (n), or null: one basis for all rows
  int64_t* order;         // (n + classes) scratch with labels, else null
  int64_t classes;
  void* packed = nullptr;  // CPU: (k, d) scratch in the basis's dtype, or null; pays from some dozen rows on
};

struct Ingest {
  const void* images;    // (N, h, w, c)
  const float* basis;    // (k, h*w*c), or null with k = 0; (classes, k, h*w*c) with labels
  const float* mean;     // (c)
  const float* std;      // (c)
  const int64_t* index;  // (n) rows of images, or null
  const int32_t* shift;  // (n, 2) dy, dx, or null
  const uint8_t* flip;   // (n), or null
  float* coef;           // (n, k) scratch
  void* out;             // (n, h, w, c)
  int64_t images_n, n, h, w, c, k;
  DType out_dtype;        // f32, f16 or bf16
  const int64_t* labels;  // (n) of the results, or null: one basis for all
  int64_t classes;
  DType in_dtype;                  // of the images; u8 is read as x / 255
  const int64_t* order = nullptr;  // CUDA: (n) the order to take them in, by label; or null
};

struct SoftmaxRegressionStep {
  const void* x;          // (N, d) u8 or f32
  const int64_t* labels;  // (N)
  const int64_t* index;   // (n) rows of x, or null
  float* weight;          // (c, d), updated
  float* coef;            // (n, c) scratch
  float* grad;            // (threads, c, d) scratch
  double* result;         // (2): mean loss, correct rows
  int64_t rows, n, d, c;
  float lr;
  DType dtype;  // of x
};

struct ApplyPerturbation {
  const uint8_t* images;  // (n, d)
  const float* delta;     // (m, d) in units of [0, 1]
  const int64_t* index;   // (n), or null
  uint8_t* out;           // (n, d)
  int64_t n, d, m;
  bool truncate;
};

struct PgdStep {
  float* x;            // (n, d), stepped in place
  const float* grad;   // (n, d)
  const float* start;  // (n, d): the middle of the ball
  int64_t n, d;
  float alpha, eps;
  int norm;    // 1 is L2, 2 is L-infinity, as for perturb_ar
  bool clamp;  // keep the result in [0, 1]
};

struct Philox {
  float* out;  // (n, d)
  int64_t seed, stream, first, n, d;
};

struct PerturbLsp {
  const int64_t* labels;   // (n)
  const float* centroids;  // (c, m), m = ceil(h/patch) * ceil(w/patch) * channels
  const float* mixing;     // (c, m, m)
  float* scratch;          // (threads, 2*m + w*channels)
  const uint8_t* images;   // (n, h, w, channels): the result is the poisoned image; null: the perturbation itself
  void* out;               // (n, h, w, channels) uint8 or float
  int64_t seed, first, n, classes, h, w, channels, patch;
  float norm;
  bool truncate;
};

struct PerturbAr {
  const int64_t* labels;      // (n)
  const float* coefficients;  // (c, channels, 3, 3); the last of each window is not read
  float* scratch;             // (threads, perturb_ar_scratch)
  const uint8_t* images;      // (n, h, w, channels): the result is the poisoned image; null: the perturbation itself
  void* out;                  // (n, h, w, channels) uint8 or float
  int64_t seed, first, n, classes, h, w, channels;
  float norm;
  int kind;  // of the norm: 0 leaves the noise as it comes, 1 is L2, 2 is L-infinity
  bool truncate;
};

struct ClassMoments {
  const uint8_t* x;       // (n, d)
  const int64_t* labels;  // (n)
  int64_t* order;         // (n + classes) scratch
  float* scratch;         // (threads, 2 * class_moments_block)
  int64_t* sums;          // (classes, d)
  int64_t* squares;       // (classes, d)
  int64_t n, d, classes;
};
constexpr int64_t class_moments_block = 2048;  // features a thread sums at a time

struct PerturbConvolution {
  const uint8_t* images;  // (n, h, w, c)
  const int64_t* labels;  // (n)
  const float* kernels;   // (classes, side, side)
  float* scratch;         // (threads, perturb_convolution_scratch)
  uint8_t* out;           // (n, h, w, c)
  int64_t n, classes, h, w, c, side;
};

struct PatchFilter {
  const float* x;         // (n, h, w, c)
  const float* table;     // (ids, taps, taps, 2 reach + 1, patch_lanes): id of the block, kind of row, row, shift
  const int64_t* starts;  // (blocks) first value of each block of patch_lanes in an image row; they may overlap
  const int64_t* ids;     // (blocks) whose weights it takes
  float* scratch;         // (threads, patch_filter_scratch)
  float* out;             // (n, h, w, c), not x
  int64_t n, h, w, c, taps, blocks;
};
constexpr int64_t patch_lanes = 48;  // a multiple of 1, 2, 3 and 4 channels and of three vectors on every level
constexpr int64_t patch_reach(int64_t taps, int64_t c) { return taps / 2 * c + c - 1; }
constexpr int64_t patch_filter_scratch(int64_t h, int64_t w, int64_t c, int64_t taps) {
  return 4 * h * (w * c + 2 * patch_reach(taps, c));
}

struct PerturbLinear {
  const uint8_t* images;  // (n, d)
  const int64_t* labels;  // (n)
  const float* weight;    // (c, d)
  float* scratch;         // (threads, perturb_linear_scratch)
  uint8_t* out;           // (n, d)
  int64_t n, d, c, steps;
  float alpha, eps;
  float share;   // of the noise's own term; the image's has the rest
  float levels;  // largest change of a stored pixel
};

// Floats of scratch a thread needs for perturb_linear: four rows of noise, their logits, and the weights packed.
constexpr int64_t perturb_linear_scratch(int64_t d, int64_t c) { return 4 * d + 12 * c + c * d; }

// Floats of scratch a thread needs for perturb_convolution: the image with its border, and the result.
constexpr int64_t perturb_convolution_scratch(int64_t h, int64_t w, int64_t c, int64_t side) {
  return (h + side) * (w + side) * c + h * w * c + 64;
}

// Rows of pixels that perturb_ar writes of an image at a time: short ones alone would leave the caches' prefetching
// idle.
constexpr int64_t perturb_ar_rows(int64_t w, int64_t channels) {
  return 768 / (w * channels) < 1 ? 1 : 768 / (w * channels);
}

// Floats of scratch a thread needs for perturb_ar: for sixteen images the random border, three rows of each channel,
// weights and a few rows of pixels, and the numbers of one border.
constexpr int64_t perturb_ar_scratch(int64_t h, int64_t w, int64_t channels) {
  return channels * (16 * (2 * (h + w + 6) + 3 * (w + 4) + 8 + w * perturb_ar_rows(w, channels)) + 2 * (h + w + 6));
}

namespace cpu {

int64_t project(const Project& a, int threads);
int64_t ingest(const Ingest& a, int threads);
int64_t softmax_regression_step(const SoftmaxRegressionStep& a, int threads);
int64_t apply_perturbation(const ApplyPerturbation& a, int threads);
void pgd_step(const PgdStep& a, int threads);
void philox_uniform(const Philox& a, int threads);
void philox_normal(const Philox& a, int threads);
int64_t perturb_lsp(const PerturbLsp& a, int threads);
int64_t perturb_ar(const PerturbAr& a, int threads);
int64_t class_moments(const ClassMoments& a, int threads);
int64_t perturb_convolution(const PerturbConvolution& a, int threads);
void patch_filter(const PatchFilter& a, int threads);
int64_t perturb_linear(const PerturbLinear& a, int threads);

// Asks the system to back fresh memory with large pages, before it is first touched: a result of tens of megabytes
// otherwise spends more time in page faults than in the kernel. A hint: nothing happens where it is not known.
void advise_huge_pages(void* begin, int64_t bytes);

// The instruction levels this build holds, best last, and the one in use ("baseline", "v3", "v4").
int level_count();
const char* level_name(int i);
bool level_supported(int i);
const char* level();
bool set_level(const char* name);  // false: unknown, or this processor lacks it

}  // namespace cpu

// The same on a GPU, on the given cudaStream_t of the current device. They return null, or what the launch said.
namespace cuda {

// On CUDA `order` is given by the caller (the rows sorted by label) or null (as they come), and `coef` holds
// project_scratch(a) values.
const char* project(const Project& a, void* stream);
int64_t project_scratch(const Project& a);

// `coef` holds ingest_scratch(a) values, `order` is as for project.
const char* ingest(const Ingest& a, void* stream);
int64_t ingest_scratch(const Ingest& a);

// `coef` holds softmax_scratch(a) values, `grad` (softmax_parts(a), c, d), `result` 2 + 2 n: the two results, then the
// rows' losses and whether each is right.
const char* softmax_regression_step(const SoftmaxRegressionStep& a, void* stream);
int64_t softmax_scratch(const SoftmaxRegressionStep& a);
int64_t softmax_parts(const SoftmaxRegressionStep& a);

const char* apply_perturbation(const ApplyPerturbation& a, void* stream);
const char* pgd_step(const PgdStep& a, void* stream);
const char* philox_uniform(const Philox& a, void* stream);
const char* philox_normal(const Philox& a, void* stream);
// The generators: no `scratch` but that of perturb_convolution, and `order` as for project.
const char* perturb_lsp(const PerturbLsp& a, void* stream);
const char* perturb_ar(const PerturbAr& a, void* stream);
bool perturb_ar_fits(const PerturbAr& a);  // two rows of an image in shared memory
const char* class_moments(const ClassMoments& a, void* stream);
const char* perturb_convolution(const PerturbConvolution& a, void* stream);
const char* perturb_linear(const PerturbLinear& a, void* stream);
bool perturb_linear_fits(int64_t d, int64_t c);  // whether a block's shared memory holds the noise
int64_t perturb_convolution_scratch(const PerturbConvolution& a);

}  // namespace cuda
}  // namespace ulfast
