#include "tile/swizzle.cuh"

#include <doctest/doctest.h>

#include <set>
#include <utility>
#include <vector>

using namespace varmoe;

namespace {

constexpr u32 kRows = 64;

template <int kChunks>
void check_tile() {
  CAPTURE(kChunks);
  std::vector<int> met(kRows * kChunks);
  bool aligned = true, inside = true, conflict_free = true, repeats = true;
  for (u32 chunk = 0; chunk < kChunks; ++chunk) {
    for (u32 first = 0; first < kRows; first += 8) {
      std::set<u32> banks;
      for (u32 row = first; row < first + 8; ++row) {
        const u32 offset = tile::swizzled_offset<kChunks>(row, chunk);
        aligned &= offset % 16 == 0;
        inside &= offset / 16 / kChunks == row;  // a chunk stays in its row
        if (offset / 16 < met.size()) ++met[offset / 16];
        banks.insert(offset / 16 % 8);
        // What lets copies step down a column without computing the swizzle anew.
        repeats &= tile::swizzled_offset<kChunks>(row + 8, chunk) == offset + 8 * kChunks * 16;
      }
      conflict_free &= banks.size() == 8;
    }
  }
  CHECK(aligned);
  CHECK(inside);
  CHECK(repeats);
  CHECK(conflict_free);
  bool once = true;
  for (const int n : met) once &= n == 1;
  CHECK(once);
}

/// A step along K moves two chunks along a row; the main loop does it with one xor.
template <int kChunks>
void check_steps() {
  CAPTURE(kChunks);
  bool commutes = true;
  for (u32 row = 0; row < kRows; ++row) {
    for (u32 half = 0; half < 2; ++half) {
      for (u32 step = 0; step < kChunks / 2; ++step) {
        commutes &= (tile::swizzled_offset<kChunks>(row, half) ^ (step << 5)) ==
                    tile::swizzled_offset<kChunks>(row, half + 2 * step);
      }
    }
  }
  CHECK(commutes);
}

template <int... kFours>
void check_multiples_of_four(std::integer_sequence<int, kFours...>) {
  (check_tile<4 * (kFours + 1)>(), ...);
}

}  // namespace

TEST_CASE(
    "swizzled tiles are bijections, 16-byte aligned and free of ldmatrix bank conflicts at every row "
    "length") {
  // block_k of 32, 64 and 128 elements; kn tiles of 32 to 256 columns, in steps of 32.
  check_multiples_of_four(std::make_integer_sequence<int, 8>());
  // Rows of 2 mod 4 chunks, which no config has today, hold as well.
  check_tile<2>();
  check_tile<6>();
  check_tile<10>();
  check_tile<14>();
}

TEST_CASE("a step along K commutes with the swizzle for every block_k") {
  check_steps<4>();
  check_steps<8>();
  check_steps<16>();
}
