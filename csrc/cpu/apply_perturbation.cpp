// flags: -ffp-contract=off
//
// apply_perturbation: clamp(images + 255 * delta[index]) to uint8. Bytes: n d (1 + 4 + 1); bound by memory.
//
// Compiled without contraction, so that all levels round identically.
#include "pixels.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

template <bool Truncate> void run(const ApplyPerturbation& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    pixel_row<Truncate>(a.images + row * a.d, a.delta + (a.index ? a.index[row] : row) * a.d, a.out + row * a.d, a.d,
                        a.n * a.d);
}

}  // namespace

void apply_perturbation(const ApplyPerturbation& a, float*, int64_t begin, int64_t end) {
  a.truncate ? run<true>(a, begin, end) : run<false>(a, begin, end);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
