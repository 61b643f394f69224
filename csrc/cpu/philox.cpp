// flags: -ffp-contract=off
//
// philox_uniform and philox_normal: counter-based random numbers, equal bytes at every level and on every device.
//
// Bytes: 4 n d written. Arithmetic: about 60 integer and 45 float operations per pair of normals, which bound it.
// Compiled without contraction.
#include "normals.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

void philox_uniform(const Philox& a, float*, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) numbers<false>(a.seed, (uint32_t)a.stream, a.first + i, a.d, a.out + i * a.d);
}

void philox_normal(const Philox& a, float*, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) numbers<true>(a.seed, (uint32_t)a.stream, a.first + i, a.d, a.out + i * a.d);
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
