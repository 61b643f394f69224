// Chooses the CPU level and distributes rows to threads.
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "table.h"

namespace ulfast {

namespace baseline {
extern const Table table;
}
#if defined(__x86_64__)
namespace v3 {
extern const Table table;
}
namespace v4 {
extern const Table table;
}
#endif

namespace cpu {

namespace {

const Table* const kTables[] = {
    &baseline::table,
#if defined(__x86_64__)
    &v3::table,
    &v4::table,
#endif
};
constexpr int kTableCount = sizeof kTables / sizeof kTables[0];

#if defined(__x86_64__)
constexpr unsigned bits() { return 0; }
template <class... Rest> constexpr unsigned bits(int first, Rest... rest) { return 1u << first | bits(rest...); }

// The highest psABI level that the processor has and whose registers the system saves; 1 is any processor.
// __builtin_cpu_supports knows the levels only from GCC 12 and Clang 18 on, and older Clangs lack some features.
int processor_level() {
  constexpr unsigned first = bits(0, 9, 12, 13, 19, 20, 22, 23, 27, 28, 29);  // SSE3, SSSE3, FMA, CX16, SSE4.1, SSE4.2,
                                                                              // MOVBE, POPCNT, OSXSAVE, AVX, F16C
  constexpr unsigned seventh = bits(3, 5, 8);                                 // BMI1, AVX2, BMI2
  constexpr unsigned extended = bits(0, 5);                                   // LAHF, LZCNT
  constexpr unsigned avx512 = bits(16, 17, 28, 30, 31);                       // F, DQ, CD, BW, VL
  constexpr unsigned ymm = bits(1, 2), zmm = bits(5, 6, 7);                   // registers, in XCR0
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & first) != first) return 1;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || (c & extended) != extended) return 1;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & seventh) != seventh) return 1;
  unsigned kept, high;
  __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
  if ((kept & ymm) != ymm) return 1;
  return (b & avx512) == avx512 && (kept & zmm) == zmm ? 4 : 3;
}
#endif

bool supported(int i) {
#if defined(__x86_64__)
  static const int level = processor_level();
  if (i > 0) return level >= i + 2;  // v3, v4
#endif
  return i == 0;
}

const Table* find(const char* name) {
  for (int i = 0; i < kTableCount; ++i)
    if (!strcmp(kTables[i]->name, name) && supported(i)) return kTables[i];
  return nullptr;
}

const Table* best() {
  for (int i = kTableCount - 1; i > 0; --i)
    if (supported(i)) return kTables[i];
  return kTables[0];
}

const Table* current = nullptr;

// Distributes rows [0, n) in pieces of at least `least` rows, in whole tiles, to at most `threads` threads. A single
// thread opens no parallel region: in a forked worker that would wait for threads that the fork did not copy.
template <class F> void share(int64_t n, int64_t least, int threads, F&& f, int64_t tile = current->tile) {
  const int64_t pieces = n < least * threads ? (n + least - 1) / least : threads;
  if (pieces <= 1) {
    if (n > 0) f(0, (int64_t)0, n);
    return;
  }
  const int64_t tiles = (n + tile - 1) / tile;
#pragma omp parallel for num_threads((int)pieces) schedule(static, 1)
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = tiles * p / pieces * tile, end = tiles * (p + 1) / pieces * tile;
    if (begin < n) f((int)p, begin, end < n ? end : n);
  }
}

int64_t first_outside(const int64_t* index, int64_t n, int64_t limit) {
  if (!index) return kIndexOk;
  for (int64_t i = 0; i < n; ++i)
    if (index[i] < 0 || index[i] >= limit) return i;
  return kIndexOk;
}

// Row numbers in the order of their labels, by counting sort: order (n), followed by the classes' next places.
void sort_by_label(const int64_t* labels, int64_t n, int64_t classes, int64_t* order) {
  int64_t* place = order + n;
  for (int64_t c = 0; c < classes; ++c) place[c] = 0;
  for (int64_t i = 0; i < n; ++i) ++place[labels[i]];
  for (int64_t c = 0, sum = 0; c < classes; ++c) {
    const int64_t count = place[c];
    place[c] = sum;
    sum += count;
  }
  for (int64_t i = 0; i < n; ++i) order[place[labels[i]]++] = i;
}

// Below this much work a second thread costs more than it brings.
constexpr int64_t kWork = 1 << 16;
int64_t least(int64_t work_a_row) { return work_a_row >= kWork ? 1 : kWork / (work_a_row > 0 ? work_a_row : 1) + 1; }

template <class A> auto scratch_of(const A& a) -> decltype(a.scratch) { return a.scratch; }
float* scratch_of(...) { return nullptr; }

// A row operator: its index is checked first, then its groups of rows are distributed; each thread has its own scratch.
template <class A>
int64_t run(const A& a, void (*kernel)(const A& a, float* scratch, int64_t begin, int64_t end), int threads) {
  const Share s = share_of(a);
  const int64_t bad = first_outside(s.index, s.rows, s.limit);
  if (bad != kIndexOk) return bad;
  float* scratch = scratch_of(a);
  share((s.rows + s.group - 1) / s.group, least(s.work), threads,
        [&](int p, int64_t b, int64_t e) {
          const int64_t end = e * s.group;
          kernel(a, scratch ? scratch + p * s.scratch : nullptr, b * s.group, end < s.rows ? end : s.rows);
        },
        s.group > 1 ? 1 : current->tile);
  return kIndexOk;
}

}  // namespace

int level_count() { return kTableCount; }
const char* level_name(int i) { return kTables[i]->name; }
bool level_supported(int i) { return supported(i); }
const char* level() { return current->name; }

bool set_level(const char* name) {
  const Table* t = !strcmp(name, "auto") ? best() : find(name);
  if (!t) return false;
  current = t;
  return true;
}

void advise_huge_pages(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

int64_t project(const Project& a, int threads) {
  const Table* t = current;
  if (a.labels) {
    const int64_t bad = first_outside(a.labels, a.n, a.classes);
    if (bad != kIndexOk) return bad;
    sort_by_label(a.labels, a.n, a.classes, a.order);
  }
  const int64_t chunks = a.packed ? t->chunks(a) : 0;
  share(chunks, (1 << 15) / (a.k + 1) + 1, threads, [&](int, int64_t b, int64_t e) { t->pack(a, b, e); }, 1);
  share(a.n, least(a.d * (a.k + 1)), threads, [&](int, int64_t b, int64_t e) { t->project(a, b, e); });
  return kIndexOk;
}

int64_t ingest(const Ingest& a, int threads) {
  const int64_t bad = first_outside(a.index, a.n, a.images_n);
  if (bad != kIndexOk) return bad;
  const int64_t strange = first_outside(a.labels, a.n, a.classes);
  if (strange != kIndexOk) return a.n + strange;  // distinguishes it from a bad index
  const Table* t = current;
  share(a.n, least(a.h * a.w * a.c * (a.k + 2)), threads, [&](int, int64_t b, int64_t e) { t->ingest(a, b, e); });
  return kIndexOk;
}

int64_t softmax_regression_step(const SoftmaxRegressionStep& a, int threads) {
  int64_t bad = first_outside(a.index, a.n, a.rows);
  if (bad != kIndexOk) return bad;
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t label = a.labels[a.index ? a.index[i] : i];
    if (label < 0 || label >= a.c) return i;
  }
  const Table* t = current;
  const bool update = a.lr != 0.0f;
  constexpr int kMost = 256;
  if (threads > kMost) threads = kMost;
  double results[kMost][8] = {};  // a cache line a thread
  int used[kMost] = {};
  share(a.n, least(a.d * a.c), threads, [&](int p, int64_t b, int64_t e) {
    float* grad = a.grad + p * a.c * a.d;
    if (update) memset(grad, 0, a.c * a.d * sizeof(float));
    t->softmax_gradient(a, update ? grad : nullptr, results[p], b, e);
    used[p] = 1;
  });
  double loss = 0, correct = 0;
  int pieces = 0;
  for (int p = 0; p < threads; ++p) {
    loss += results[p][0], correct += results[p][1];
    if (used[p]) pieces = p + 1;
  }
  const double n = a.n > 0 ? (double)a.n : 1;
  a.result[0] = loss / n, a.result[1] = correct;
  if (update && pieces) {
    const float scale = (float)(a.lr / n);
    share(a.c * a.d, 1 << 17, threads, [&](int, int64_t b, int64_t e) { t->softmax_update(a, pieces, scale, b, e); });
  }
  return kIndexOk;
}

int64_t class_moments(const ClassMoments& a, int threads) {
  const int64_t bad = first_outside(a.labels, a.n, a.classes);
  if (bad != kIndexOk) return bad;
  sort_by_label(a.labels, a.n, a.classes, a.order);
  const Table* t = current;
  // The features are divided among threads, so that no sums have to be combined.
  constexpr int64_t line = 64;
  const int64_t lines = (a.d + line - 1) / line;
  share(
      lines, least(a.n * line), threads,
      [&](int p, int64_t b, int64_t e) {
        t->class_moments(a, a.scratch + p * 2 * class_moments_block, b * line, e * line < a.d ? e * line : a.d);
      },
      1);
  return kIndexOk;
}

#define ULFAST_RUN(name, Arguments) \
  int64_t name(const Arguments& a, int threads) { return run(a, current->name, threads); }
ULFAST_ROW_OPERATORS(ULFAST_RUN)
#undef ULFAST_RUN

}  // namespace cpu
}  // namespace ulfast
