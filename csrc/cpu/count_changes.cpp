// flags: -ffp-contract=off
//
// count_changes: how an image differs from another, in whole numbers. Bytes: 2 n d; a few operations on bytes per
// value.
//
// Values are processed in blocks of a fixed length, a multiple of the channels, in loops that the compiler vectorises.
// A last, shorter block is padded with values that do not differ.
#include "simd.h"
#include "table.h"

namespace ulfast {
namespace ULFAST_LEVEL {

namespace {

constexpr int kBlock = count_changes_block;

struct Changes {
  int64_t positions, values, extreme, largest, squares;
};

// `first` is 1 at the first channel of a position, else 0.
ULFAST_INLINE void count(const uint8_t* a, const uint8_t* b, const uint8_t* first, int64_t c, Changes* s) {
  alignas(64) uint8_t size[kBlock], changed[2 * kBlock], any[kBlock];
  for (int i = 0; i < kBlock; ++i) size[i] = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
  for (int i = 0; i < kBlock; ++i) any[i] = changed[i] = size[i] != 0;
  for (int64_t j = 1; j < c; ++j)
    for (int i = 0; i < kBlock; ++i) any[i] |= changed[i + j];  // values past the block belong to no first channel
  uint8_t largest = 0;
  int positions = 0, values = 0, extreme = 0, squares = 0;
  for (int i = 0; i < kBlock; ++i) largest = size[i] > largest ? size[i] : largest;
  for (int i = 0; i < kBlock; ++i) positions += any[i] & first[i];
  for (int i = 0; i < kBlock; ++i) values += changed[i];
  for (int i = 0; i < kBlock; ++i) extreme += changed[i] & (uint8_t)((uint8_t)(b[i] + 1) < 2);  // 0 or 255
  for (int i = 0; i < kBlock; ++i) squares += (int)size[i] * size[i];
  s->positions += positions, s->values += values, s->extreme += extreme, s->squares += squares;
  if (largest > s->largest) s->largest = largest;
}

}  // namespace

void count_changes(const CountChanges& a, float*, int64_t begin, int64_t end) {
  alignas(64) uint8_t first[kBlock], rest[2][kBlock];
  for (int i = 0; i < kBlock; ++i) first[i] = i % a.c == 0;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t *x = a.clean + row * a.d, *y = a.poisoned + row * a.d;
    Changes s = {0, 0, 0, 0, 0};
    int64_t i = 0;
    for (; i + kBlock <= a.d; i += kBlock) count(x + i, y + i, first, a.c, &s);
    if (i < a.d) {
      __builtin_memset(rest, 0, sizeof(rest));
      __builtin_memcpy(rest[0], x + i, a.d - i);
      __builtin_memcpy(rest[1], y + i, a.d - i);
      count(rest[0], rest[1], first, a.c, &s);
    }
    int64_t* out = a.out + row * 5;
    out[0] = s.positions, out[1] = s.values, out[2] = s.extreme, out[3] = s.largest, out[4] = s.squares;
  }
}

}  // namespace ULFAST_LEVEL
}  // namespace ulfast
