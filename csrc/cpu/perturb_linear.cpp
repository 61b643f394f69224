// flags: -ffp-contract=fast
//
// perturb_linear: sign steps on the noise of every image against a linear classifier, all in one visit of the image.
//
// Both terms of the objective are linear in the image, so a step is two products with the weights (c, d) and a sign:
// flops 4 n d c per step, bytes 2 n d in all. A few rows of noise stay in the second-level cache for all steps,
// together with the weights; features are processed in blocks, so that a block of the weights is fetched once for the
// step and for the products of its result. The multiply-adds bound it.
#include "packed.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

// Features at a time: ten rows of weights and four of noise fit into the first level, for two threads if packed.
constexpr int64_t kBlock = kPacks ? 8 * kChunk<float> : 512;

double exp_(double x) { return __builtin_exp(x); }

struct Step {
  const float* p;  // (R, c) residuals
  int64_t c;
  float alpha, eps;
};

// noise[r, i] = clamp(noise[r, i] - alpha * sign(sum_j p[r, j] * b[j, i]), -eps, eps): U vectors of R rows.
template <int R, int U>
ULFAST_INLINE void descend_vectors(const float* b, int64_t bs, const Step& step, float* noise, int64_t ns) {
  constexpr int n = Vec<float>::size;
  const vecf zero = {}, up = zero + step.alpha, high = zero + step.eps, low = -high;
  vecf g[R][U] = {};
  for (int64_t j = 0; j < step.c; ++j) {
    vecf bv[U];
    for (int u = 0; u < U; ++u) bv[u] = load(b + j * bs + u * n);
    for (int r = 0; r < R; ++r) {
      const vecf pv = splat<float>(step.p[r * step.c + j]);
      for (int u = 0; u < U; ++u) g[r][u] += pv * bv[u];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int u = 0; u < U; ++u) {
      float* at = noise + r * ns + u * n;
      const vecf move = g[r][u] > zero ? up : g[r][u] < zero ? -up : zero;
      vecf v = load(at) - move;
      v = v > low ? v : low;
      store(at, v < high ? v : high);
    }
}

// Features [0, d) of R rows of noise: the step, and the products of its result with the weights b, added to `own`.
// Whole chunks use the packed weights, if there are any.
template <int R> ULFAST_INLINE void advance(const float* b, int64_t bs, const float* packed, int64_t d,
                                            const Step& step, float* noise, int64_t ns, float* own) {
  constexpr int n = Vec<float>::size, U = 4;
  const int64_t c = step.c;
  int64_t i = 0, done = 0;
  if constexpr (kPacks) {
    const int64_t chunks = d / kChunk<float>;
    for (int64_t t = 0; t < chunks; ++t)
      descend_vectors<R, kChunkVectors>(packed + t * c * kChunk<float>, kChunk<float>, step, noise + t * kChunk<float>,
                                        ns);
    packed_dots_all(strided<R>((const float*)noise, ns), packed, c, chunks, own, c);
    i = done = chunks * kChunk<float>;
  } else {
    for (; i + U * n <= d; i += U * n) descend_vectors<R, U>(b + i, bs, step, noise + i, ns);
  }
  for (; i + n <= d; i += n) descend_vectors<R, 1>(b + i, bs, step, noise + i, ns);
  for (; i < d; ++i)
    for (int r = 0; r < R; ++r) {
      float g = 0;
      for (int64_t j = 0; j < c; ++j) g += step.p[r * c + j] * b[j * bs + i];
      float v = noise[r * ns + i] - (g > 0 ? step.alpha : g < 0 ? -step.alpha : 0.0f);
      v = v > -step.eps ? v : -step.eps;
      noise[r * ns + i] = v < step.eps ? v : step.eps;
    }
  if (done < d) dots_all(strided<R>((const float*)noise + done, ns), b + done, bs, d - done, c, own, c);
}

// p[j] += scale * softmax(z)[j], or of `from - z` if `from` is given. Computed in float64.
ULFAST_INLINE void add_softmax(const float* z, const float* from, int64_t c, double scale, float* p) {
  double top = -1e300, total = 0;
  for (int64_t j = 0; j < c; ++j) {
    const double v = from ? (double)from[j] - z[j] : z[j];
    top = v > top ? v : top;
  }
  for (int64_t j = 0; j < c; ++j) total += exp_((from ? (double)from[j] - z[j] : z[j]) - top);
  const double share = scale / total;
  for (int64_t j = 0; j < c; ++j) p[j] += (float)(share * exp_((from ? (double)from[j] - z[j] : z[j]) - top));
}

// out = x - noise in whole levels within the bound; a bound between two levels rounds down.
ULFAST_INLINE void publish(const uint8_t* x, const float* noise, float levels, uint8_t* out, int64_t d) {
  constexpr int n = Vec<float>::size;
  const vecf most = vecf{} + levels, least = -most, zero = {}, white = zero + 255.0f;
  int64_t i = 0;
  for (; i + n <= d; i += n) {
    vecf v = (load(noise + i) * 255.0f + 0x1.8p23f) - 0x1.8p23f;  // to nearest
    v = v > least ? v : least;
    v = load_as(x + i) - (v < most ? v : most);
    v = v > zero ? v : zero;
    narrow_bytes(out + i, __builtin_convertvector(v < white ? v : white, veci));
  }
  for (; i < d; ++i) {
    float v = (noise[i] * 255.0f + 0x1.8p23f) - 0x1.8p23f;
    v = v > -levels ? v : -levels;
    v = (float)x[i] - (v < levels ? v : levels);
    v = v > 0.0f ? v : 0.0f;
    out[i] = (uint8_t)(int)(v < 255.0f ? v : 255.0f);
  }
}

// All steps of the R rows from `first` on. noise (R, d); logits (3, R, c): those of the images, those of the noise, and
// the residuals.
template <int R> void rows(const PerturbLinear& a, const float* packed, float* noise, float* logits, int64_t first) {
  const int64_t d = a.d, c = a.c;
  float *image = logits, *own = logits + R * c, *p = logits + 2 * R * c;
  for (int64_t i = 0; i < 2 * R * c; ++i) logits[i] = 0;
  for (int r = 0; r < R; ++r) widen(a.images + (first + r) * d, d, noise + r * d);
  dots_all(strided<R>((const float*)noise, d), a.weight, d, d, c, image, c);
  for (int64_t i = 0; i < R * c; ++i) image[i] *= kUnit;
  for (int64_t i = 0; i < R * d; ++i) noise[i] = 0;
  const Step step{p, c, a.alpha, a.eps};
  for (int64_t t = 0; t < a.steps; ++t) {
    for (int r = 0; r < R; ++r) {
      float* pr = p + r * c;
      for (int64_t j = 0; j < c; ++j) pr[j] = (1 - a.share) / (float)c;
      add_softmax(own + r * c, nullptr, c, a.share, pr);
      add_softmax(own + r * c, image + r * c, c, a.share - 1.0, pr);
      pr[a.labels[first + r]] -= a.share;
    }
    for (int64_t i = 0; i < R * c; ++i) own[i] = 0;
    for (int64_t i = 0; i < d; i += kBlock) {
      const int64_t width = d - i < kBlock ? d - i : kBlock;
      advance<R>(a.weight + i, d, packed + i * c, width, step, noise + i, d, own);
    }
  }
  for (int r = 0; r < R; ++r) publish(a.images + (first + r) * d, noise + r * d, a.levels, a.out + (first + r) * d, d);
}

}  // namespace

void perturb_linear(const PerturbLinear& a, float* scratch, int64_t begin, int64_t end) {
  float *logits = scratch + kRows * a.d, *packed = logits + 3 * kRows * a.c;
  if (kPacks) pack_chunks(a.weight, a.c, a.d, packed, 0, a.d / kChunk<float>);
  for (; begin + kRows <= end; begin += kRows) rows<kRows>(a, packed, scratch, logits, begin);
  for (; begin < end; ++begin) rows<1>(a, packed, scratch, logits, begin);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
