// The whole kernel API of ulfast: addresses, sizes, strides, dtypes and a thread count. No torch, no Python.
//
// Every function reads and writes the caller's memory and allocates nothing. Sizes are in elements unless a name says
// bytes. Shapes: n images (rows), d features, k basis rows, c classes. The PyTorch twin of each function, which defines
// what it computes, has the same name in ulfast/ops/reference.py.
//
// An operator is defined here once: its arguments as a list of fields, how the CPU distributes its rows (`share_of`),
// and a line in ULFAST_ROW_OPERATORS, which generates its declarations, its place in every CPU level's table and its
// binding. ULFAST_CUDA_OPERATORS does the same for CUDA. `PatchFilter` is the one to copy.
#pragma once

#include <stdint.h>

#include "fields.h"

namespace ulfast {

#define ULFAST_DTYPES(F) F(u8) F(f16) F(bf16) F(f32) F(f64)
ULFAST_ENUM(DType, ULFAST_DTYPES)
constexpr int64_t size_of(DType t) { return t == DType::u8 ? 1 : t == DType::f32 ? 4 : t == DType::f64 ? 8 : 2; }

#define ULFAST_NORMS(F) F(none) F(l2) F(linf)
ULFAST_ENUM(Norm, ULFAST_NORMS)

// Returned by the functions that read an index: the first position whose value is out of range, or kIndexOk.
constexpr int64_t kIndexOk = -1;

// How the CPU distributes the rows of an operator to threads.
struct Share {
  int64_t rows = 0;
  int64_t work = 0;                // operations of a group
  int64_t group = 1;               // rows that are taken together
  int64_t scratch = 0;             // floats that a thread needs
  const int64_t* index = nullptr;  // (rows) whose values must lie in [0, limit), or null
  int64_t limit = 0;
};

// clang-format off: one field per line

#define ULFAST_FIELDS_PROJECT(F)                                                                                        \
  F(const void*, x)         /* (n, d), rows `x_stride` apart */                                                         \
  F(const void*, basis)     /* (k, d) float32, or float64 where x is float64; (classes, k, d) with labels */            \
  F(void*, coef)            /* (n, k) scratch in the basis's dtype */                                                   \
  F(void*, out)             /* (n, d); x's dtype, float32 for u8 */                                                     \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, k)                                                                                                         \
  F(int64_t, x_stride)                                                                                                  \
  F(DType, dtype)           /* of x */                                                                                  \
  F(const int64_t*, labels) /* (n), or null: one basis for all rows */                                                  \
  F(int64_t*, order)        /* (n + classes) scratch with labels, else null */                                          \
  F(int64_t, classes)                                                                                                   \
  F(void*, packed)          /* CPU: (k, d) scratch in the basis's dtype, or null; pays from some dozen rows on */
ULFAST_STRUCT(Project, ULFAST_FIELDS_PROJECT);

#define ULFAST_FIELDS_INGEST(F)                                                                                         \
  F(const void*, images)    /* (N, h, w, c) */                                                                          \
  F(const float*, basis)    /* (k, h*w*c), or null with k = 0; (classes, k, h*w*c) with labels */                       \
  F(const float*, mean)     /* (c) */                                                                                   \
  F(const float*, std)      /* (c) */                                                                                   \
  F(const int64_t*, index)  /* (n) rows of images, or null */                                                           \
  F(const int32_t*, shift)  /* (n, 2) dy, dx, or null */                                                                \
  F(const uint8_t*, flip)   /* (n), or null */                                                                          \
  F(float*, coef)           /* (n, k) scratch */                                                                        \
  F(void*, out)             /* (n, h, w, c) */                                                                          \
  F(int64_t, images_n)                                                                                                  \
  F(int64_t, n)                                                                                                         \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(int64_t, k)                                                                                                         \
  F(DType, out_dtype)       /* f32, f16 or bf16 */                                                                      \
  F(const int64_t*, labels) /* (n) of the results, or null: one basis for all */                                        \
  F(int64_t, classes)                                                                                                   \
  F(DType, in_dtype)        /* of the images; u8 is read as x / 255 */                                                  \
  F(const int64_t*, order)  /* CUDA: (n) the order to take them in, by label; or null */
ULFAST_STRUCT(Ingest, ULFAST_FIELDS_INGEST);
constexpr int64_t ingest_width = 8192;  // the widest image row (w * c) that the CPU's tables hold

#define ULFAST_FIELDS_SOFTMAX_REGRESSION_STEP(F)                                                                        \
  F(const void*, x)         /* (N, d) u8 or f32 */                                                                      \
  F(const int64_t*, labels) /* (N) */                                                                                   \
  F(const int64_t*, index)  /* (n) rows of x, or null */                                                                \
  F(float*, weight)         /* (c, d), updated */                                                                       \
  F(float*, coef)           /* (n, c) scratch */                                                                        \
  F(float*, grad)           /* (threads, c, d) scratch */                                                               \
  F(double*, result)        /* (2): mean loss, correct rows */                                                          \
  F(int64_t, rows)                                                                                                      \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(float, lr)                                                                                                          \
  F(DType, dtype)           /* of x */
ULFAST_STRUCT(SoftmaxRegressionStep, ULFAST_FIELDS_SOFTMAX_REGRESSION_STEP);

#define ULFAST_FIELDS_APPLY_PERTURBATION(F)                                                                             \
  F(const uint8_t*, images) /* (n, d) */                                                                                \
  F(const float*, delta)    /* (m, d) in units of [0, 1] */                                                             \
  F(const int64_t*, index)  /* (n), or null */                                                                          \
  F(uint8_t*, out)          /* (n, d) */                                                                                \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, m)                                                                                                         \
  F(bool, truncate)
ULFAST_STRUCT(ApplyPerturbation, ULFAST_FIELDS_APPLY_PERTURBATION);
static inline Share share_of(const ApplyPerturbation& a) {
  Share s;
  s.rows = a.n, s.work = a.d, s.index = a.index, s.limit = a.m;
  return s;
}

#define ULFAST_FIELDS_PGD_STEP(F)                                                                                       \
  F(float*, x)              /* (n, d), stepped in place */                                                              \
  F(const float*, grad)     /* (n, d) */                                                                                \
  F(const float*, start)    /* (n, d): the middle of the ball */                                                        \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(float, alpha)                                                                                                       \
  F(float, eps)                                                                                                         \
  F(Norm, norm)             /* l2 or linf */                                                                            \
  F(bool, clamp)            /* keep the result in [0, 1] */
ULFAST_STRUCT(PgdStep, ULFAST_FIELDS_PGD_STEP);
static inline Share share_of(const PgdStep& a) {
  Share s;
  s.rows = a.n, s.work = a.d;
  return s;
}

#define ULFAST_FIELDS_PHILOX(F)                                                                                         \
  F(float*, out)            /* (n, d) */                                                                                \
  F(int64_t, seed)                                                                                                      \
  F(int64_t, stream)                                                                                                    \
  F(int64_t, first)                                                                                                     \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)
ULFAST_STRUCT(Philox, ULFAST_FIELDS_PHILOX);
static inline Share share_of(const Philox& a) {
  Share s;
  s.rows = a.n, s.work = a.d * 8;
  return s;
}

#define ULFAST_FIELDS_PERTURB_LSP(F)                                                                                    \
  F(const int64_t*, labels)   /* (n) */                                                                                 \
  F(const float*, centroids)  /* (c, m), m = ceil(h/patch) * ceil(w/patch) * channels */                                \
  F(const float*, mixing)     /* (c, m, m) */                                                                           \
  F(float*, scratch)          /* CPU: a thread's share each */                                                          \
  F(const uint8_t*, images)   /* (n, h, w, channels): the result is the poisoned image; null: the perturbation itself */\
  F(void*, out)               /* (n, h, w, channels) uint8 or float */                                                  \
  F(int64_t, seed)                                                                                                      \
  F(int64_t, first)                                                                                                     \
  F(int64_t, n)                                                                                                         \
  F(int64_t, classes)                                                                                                   \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, channels)                                                                                                  \
  F(int64_t, patch)                                                                                                     \
  F(float, norm)                                                                                                        \
  F(bool, truncate)
ULFAST_STRUCT(PerturbLsp, ULFAST_FIELDS_PERTURB_LSP);
static inline Share share_of(const PerturbLsp& a) {
  const int64_t m = (a.h + a.patch - 1) / a.patch * ((a.w + a.patch - 1) / a.patch) * a.channels;
  Share s;
  s.rows = a.n, s.work = a.h * a.w * a.channels + m * m, s.index = a.labels, s.limit = a.classes;
  s.scratch = 2 * m + a.w * a.channels;
  return s;
}

#define ULFAST_FIELDS_PERTURB_AR(F)                                                                                     \
  F(const int64_t*, labels)     /* (n) */                                                                               \
  F(const float*, coefficients) /* (c, channels, 3, 3); the last of each window is not read */                          \
  F(float*, scratch)            /* CPU: a thread's share each */                                                        \
  F(const uint8_t*, images)     /* (n, h, w, channels): as for perturb_lsp */                                           \
  F(void*, out)                 /* (n, h, w, channels) uint8 or float */                                                \
  F(int64_t, seed)                                                                                                      \
  F(int64_t, first)                                                                                                     \
  F(int64_t, n)                                                                                                         \
  F(int64_t, classes)                                                                                                   \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, channels)                                                                                                  \
  F(float, norm)                                                                                                        \
  F(Norm, kind)                 /* of the norm: none leaves the noise as it comes */                                    \
  F(bool, truncate)
ULFAST_STRUCT(PerturbAr, ULFAST_FIELDS_PERTURB_AR);
constexpr int64_t perturb_ar_lanes = 16;  // images that share vectors, a lane each
// Rows of pixels that perturb_ar writes of an image at a time: short ones alone would leave the caches' prefetching
// idle.
constexpr int64_t perturb_ar_rows(int64_t w, int64_t channels) {
  return 768 / (w * channels) < 1 ? 1 : 768 / (w * channels);
}
static inline Share share_of(const PerturbAr& a) {
  Share s;
  s.rows = a.n, s.index = a.labels, s.limit = a.classes;
  s.group = perturb_ar_lanes;
  s.work = s.group * 16 * (a.h + 2) * (a.w + 2) * a.channels;
  // Of sixteen images the random border, three rows of each channel, weights and a few rows of pixels, and the numbers
  // of one border.
  const int64_t border = 2 * (a.h + a.w + 6);
  s.scratch = s.group * (border + 3 * (a.w + 4) + 8 + a.w * perturb_ar_rows(a.w, a.channels)) + border;
  s.scratch *= a.channels;
  return s;
}

#define ULFAST_FIELDS_CLASS_MOMENTS(F)                                                                                  \
  F(const uint8_t*, images) /* (n, d) */                                                                                \
  F(const int64_t*, labels) /* (n) */                                                                                   \
  F(int64_t*, order)        /* (n + classes) scratch; on CUDA (n) the order to take them in, or null */                 \
  F(float*, scratch)        /* CPU: (threads, 2 * class_moments_block) */                                               \
  F(int64_t*, sums)         /* (classes, d), zeros */                                                                   \
  F(int64_t*, squares)      /* (classes, d), zeros */                                                                   \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, classes)
ULFAST_STRUCT(ClassMoments, ULFAST_FIELDS_CLASS_MOMENTS);
constexpr int64_t class_moments_block = 2048;  // features a thread sums at a time

#define ULFAST_FIELDS_PERTURB_CONVOLUTION(F)                                                                            \
  F(const uint8_t*, images) /* (n, h, w, c) */                                                                          \
  F(const int64_t*, labels) /* (n) */                                                                                   \
  F(const float*, kernels)  /* (classes, side, side) */                                                                 \
  F(float*, scratch)        /* CPU: a thread's share each; CUDA: perturb_convolution_scratch */                         \
  F(uint8_t*, out)          /* (n, h, w, c) */                                                                          \
  F(int64_t, n)                                                                                                         \
  F(int64_t, classes)                                                                                                   \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(int64_t, side)
ULFAST_STRUCT(PerturbConvolution, ULFAST_FIELDS_PERTURB_CONVOLUTION);
static inline Share share_of(const PerturbConvolution& a) {
  Share s;
  s.rows = a.n, s.work = a.h * a.w * a.c * a.side * a.side, s.index = a.labels, s.limit = a.classes;
  s.scratch = (a.h + a.side) * (a.w + a.side) * a.c + a.h * a.w * a.c + 64;  // the image with its border, the result
  return s;
}

#define ULFAST_FIELDS_PATCH_FILTER(F)                                                                                   \
  F(const float*, x)        /* (n, h, w, c) */                                                                          \
  F(const float*, table)    /* (ids, taps, taps, 2 reach + 1, lanes): id of the block, kind of row, row, shift */       \
  F(const int64_t*, starts) /* (blocks) first value of each block of lanes in an image row; they may overlap */         \
  F(const int64_t*, ids)    /* (blocks) whose weights it takes */                                                       \
  F(float*, scratch)        /* a thread's share each: a few images with their borders */                                \
  F(float*, out)            /* (n, h, w, c), not x */                                                                   \
  F(int64_t, n)                                                                                                         \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(int64_t, taps)                                                                                                      \
  F(int64_t, blocks)
ULFAST_STRUCT(PatchFilter, ULFAST_FIELDS_PATCH_FILTER);
constexpr int64_t patch_filter_lanes = 48;  // a multiple of 1 to 4 channels and of three vectors on every level
constexpr int64_t patch_filter_images = 4;  // that share the loading of the weights
constexpr int64_t patch_filter_reach(int64_t taps, int64_t c) { return taps / 2 * c + c - 1; }
static inline Share share_of(const PatchFilter& a) {
  Share s;
  s.rows = a.n;
  s.group = patch_filter_images;
  s.work = s.group * a.h * a.w * a.c * a.taps * a.taps * a.c;
  s.scratch = s.group * a.h * (a.w * a.c + 2 * patch_filter_reach(a.taps, a.c));
  return s;
}

#define ULFAST_FIELDS_COUNT_CHANGES(F)                                                                                  \
  F(const uint8_t*, clean)  /* (n, d) */                                                                                \
  F(const uint8_t*, poisoned)/* (n, d) */                                                                               \
  F(int64_t*, out)          /* (n, 5) */                                                                                \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, c)             /* channels: d is a multiple, and count_changes_block */
ULFAST_STRUCT(CountChanges, ULFAST_FIELDS_COUNT_CHANGES);
constexpr int64_t count_changes_block = 192;  // values at a time: whole positions of 1, 2, 3, 4, 6 or 8 channels
static inline Share share_of(const CountChanges& a) {
  Share s;
  s.rows = a.n, s.work = a.d;
  return s;
}

#define ULFAST_FIELDS_FILTER_IMAGES(F)                                                                                  \
  F(const void*, x)         /* (n, h, w, c) u8, read as x / 255, or f32 */                                              \
  F(const float*, kernels)  /* (n, side, side) */                                                                       \
  F(float*, scratch)        /* a thread's share each: an image with its border */                                       \
  F(float*, out)            /* (n, h, w, c) */                                                                          \
  F(int64_t, n)                                                                                                         \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(int64_t, side)          /* odd */                                                                                   \
  F(DType, dtype)           /* of x */                                                                                  \
  F(bool, clamp)            /* keep the result in [0, 1] */
ULFAST_STRUCT(FilterImages, ULFAST_FIELDS_FILTER_IMAGES);
static inline Share share_of(const FilterImages& a) {
  Share s;
  s.rows = a.n, s.work = a.h * a.w * a.c * a.side * a.side;
  s.scratch = (a.h + a.side - 1) * (a.w + a.side - 1) * a.c;
  return s;
}

#define ULFAST_FIELDS_SHIFT_PIXELS(F)                                                                                   \
  F(const void*, x)         /* (n, h, w, c) u8, read as x / 255, or f32 */                                              \
  F(float*, scratch)        /* a thread's share each: an image, and its random numbers */                               \
  F(float*, out)            /* (n, h, w, c) */                                                                          \
  F(int64_t, seed)                                                                                                      \
  F(int64_t, stream)                                                                                                    \
  F(int64_t, first)                                                                                                     \
  F(int64_t, n)                                                                                                         \
  F(int64_t, h)                                                                                                         \
  F(int64_t, w)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(float, reach)           /* pixels, at most the shorter side */                                                      \
  F(DType, dtype)           /* of x */
ULFAST_STRUCT(ShiftPixels, ULFAST_FIELDS_SHIFT_PIXELS);
static inline Share share_of(const ShiftPixels& a) {
  Share s;
  s.rows = a.n, s.work = a.h * a.w * (8 * a.c + 24);
  s.scratch = a.h * a.w * (2 + (a.c == 3 ? 4 : a.c));
  return s;
}

#define ULFAST_FIELDS_PERTURB_LINEAR(F)                                                                                 \
  F(const uint8_t*, images) /* (n, d) */                                                                                \
  F(const int64_t*, labels) /* (n) */                                                                                   \
  F(const float*, weight)   /* (c, d) */                                                                                \
  F(float*, scratch)        /* CPU: a thread's share each */                                                            \
  F(uint8_t*, out)          /* (n, d) */                                                                                \
  F(int64_t, n)                                                                                                         \
  F(int64_t, d)                                                                                                         \
  F(int64_t, c)                                                                                                         \
  F(int64_t, steps)                                                                                                     \
  F(float, alpha)                                                                                                       \
  F(float, eps)                                                                                                         \
  F(float, share)           /* of the noise's own term; the image's has the rest */                                     \
  F(float, levels)          /* largest change of a stored pixel */
ULFAST_STRUCT(PerturbLinear, ULFAST_FIELDS_PERTURB_LINEAR);
static inline Share share_of(const PerturbLinear& a) {
  Share s;
  s.rows = a.n, s.work = a.d * a.c * (a.steps + 1), s.index = a.labels, s.limit = a.c;
  s.scratch = 4 * a.d + 12 * a.c + a.c * a.d;  // four rows of noise, their logits, and the weights packed
  return s;
}

// clang-format on

// Operators whose rows are independent: dispatch.cpp needs no line for them.
#define ULFAST_ROW_OPERATORS(F)              \
  F(apply_perturbation, ApplyPerturbation)   \
  F(pgd_step, PgdStep)                       \
  F(philox_uniform, Philox)                  \
  F(philox_normal, Philox)                   \
  F(perturb_lsp, PerturbLsp)                 \
  F(perturb_ar, PerturbAr)                   \
  F(perturb_convolution, PerturbConvolution) \
  F(perturb_linear, PerturbLinear)           \
  F(patch_filter, PatchFilter)               \
  F(filter_images, FilterImages)             \
  F(shift_pixels, ShiftPixels)               \
  F(count_changes, CountChanges)

// Operators with their own function in dispatch.cpp and their own kernels in table.h.
#define ULFAST_OTHER_OPERATORS(F)                   \
  F(project, Project)                               \
  F(ingest, Ingest)                                 \
  F(softmax_regression_step, SoftmaxRegressionStep) \
  F(class_moments, ClassMoments)

// Operators that CUDA has.
#define ULFAST_CUDA_OPERATORS(F)                    \
  F(project, Project)                               \
  F(ingest, Ingest)                                 \
  F(softmax_regression_step, SoftmaxRegressionStep) \
  F(class_moments, ClassMoments)                    \
  F(apply_perturbation, ApplyPerturbation)          \
  F(pgd_step, PgdStep)                              \
  F(philox_uniform, Philox)                         \
  F(philox_normal, Philox)                          \
  F(perturb_lsp, PerturbLsp)                        \
  F(perturb_ar, PerturbAr)                          \
  F(perturb_convolution, PerturbConvolution)        \
  F(perturb_linear, PerturbLinear)

// Further functions for CUDA: sizes of scratch; whether an operator's arguments fit into shared memory, and whether the
// rows should be sorted by label (1 or 0). They read no address.
#define ULFAST_CUDA_SIZES(F)                            \
  F(project_scratch, Project) /* coef */                \
  F(project_sorts, Project)   /* order */               \
  F(project_takes_tensor_cores, Project)                \
  F(ingest_scratch, Ingest)                 /* coef */  \
  F(ingest_sorts, Ingest)                   /* order */ \
  F(softmax_scratch, SoftmaxRegressionStep) /* coef */  \
  F(softmax_parts, SoftmaxRegressionStep)   /* grad */  \
  F(perturb_convolution_scratch, PerturbConvolution)    \
  F(class_moments_sorts, ClassMoments) /* order */      \
  F(perturb_ar_fits, PerturbAr)                         \
  F(perturb_linear_fits, PerturbLinear)

// Constants that Python reads, of all builds and of those with CUDA.
#define ULFAST_CONSTANTS(F) F(ingest_width) F(class_moments_block) F(patch_filter_lanes) F(count_changes_block)
#define ULFAST_CUDA_CONSTANTS(F) F(ingest_width) F(ingest_channels) F(perturb_lsp_latents) F(perturb_convolution_side)

namespace cpu {

#define ULFAST_DECLARE(name, Arguments) int64_t name(const Arguments& a, int threads);
ULFAST_ROW_OPERATORS(ULFAST_DECLARE)
ULFAST_OTHER_OPERATORS(ULFAST_DECLARE)
#undef ULFAST_DECLARE

// Floats that each thread of a row operator needs.
template <class Arguments> int64_t scratch(const Arguments& a) { return share_of(a).scratch; }

// Asks the system to back new memory with large pages before it is first touched: a result of tens of megabytes
// otherwise costs more time in page faults than in the kernel. This is a hint, which some systems ignore.
void advise_huge_pages(void* begin, int64_t bytes);

// The instruction levels this build holds, best last, and the one in use ("baseline", "v3", "v4").
int level_count();
const char* level_name(int i);
bool level_supported(int i);
const char* level();
bool set_level(const char* name);  // false: unknown, or this processor lacks it

}  // namespace cpu

// The same on a GPU, on the given cudaStream_t of the current device. They return null, or what the launch said.
//
// `order` is given by the caller (the rows sorted by label) or null (as they come). `softmax_regression_step` has
// `grad` (softmax_parts, c, d) and `result` 2 + 2 n: the two results, then the rows' losses and whether each is right.
// The generators read no `scratch` but that of perturb_convolution.
namespace cuda {

#define ULFAST_DECLARE(name, Arguments) const char* name(const Arguments& a, void* stream);
ULFAST_CUDA_OPERATORS(ULFAST_DECLARE)
#undef ULFAST_DECLARE
#define ULFAST_DECLARE(name, Arguments) int64_t name(const Arguments& a);
ULFAST_CUDA_SIZES(ULFAST_DECLARE)
#undef ULFAST_DECLARE

// Why no kernel can run on the current device, such as a driver older than the runtime; null: nothing is known.
const char* device_problem();

// The widest image row (w * c) and the most channels that ingest's shared memory always holds.
constexpr int64_t ingest_width = 4096, ingest_channels = 64;
constexpr int64_t perturb_lsp_latents = 4096;     // of an image: more do not fit in a block's shared memory
constexpr int64_t perturb_convolution_side = 64;  // nor does a filter of a larger side

}  // namespace cuda
}  // namespace ulfast
