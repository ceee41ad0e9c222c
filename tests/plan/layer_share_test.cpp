// How a whole-layer launch shares its weights: every unit of fc1 and every column of out belongs to one
// block, and no block has much more than another.
#include "schedule/layer_share.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace varmoe;

namespace {

constexpr i32 kBlocks[] = {1, 2, 3, 7, 78, 108, 114, 132, 148, 256};
constexpr i32 kHidden[] = {64, 72, 256, 264, 520, 2048, 2056, 2880, 4096, 5120, 7168, 16384};

}  // namespace

TEST_CASE("every unit of fc1 belongs to one block, and blocks differ by one unit at most") {
  for (const i32 blocks : kBlocks) {
    for (const i32 units : {0, 1, 2, 77, 131, 132, 133, 768, 1440, 3584}) {
      CAPTURE(blocks);
      CAPTURE(units);
      std::vector<int> owners(static_cast<std::size_t>(units));
      i32 least = units, most = 0;
      for (i32 block = 0; block < blocks; ++block) {
        const i32 mine = schedule::layer_units(units, blocks, block);
        least = std::min(least, mine);
        most = std::max(most, mine);
        for (i32 i = 0; i < mine; ++i) ++owners[static_cast<std::size_t>(block + i * blocks)];
      }
      CHECK(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));
      CHECK(most - least <= 1);
    }
  }
}

TEST_CASE("every column of out belongs to one block, in pieces of whole eights, 16 columns at most") {
  for (const i32 blocks : kBlocks) {
    for (const i32 hidden : kHidden) {
      CAPTURE(blocks);
      CAPTURE(hidden);
      std::vector<int> owners(static_cast<std::size_t>(hidden));
      i32 least = hidden, most = 0;
      for (i32 block = 0; block < blocks; ++block) {
        i32 columns = 0;
        for (i32 i = 0; i < schedule::layer_pieces(hidden, blocks, block); ++i) {
          const schedule::LayerPiece piece = schedule::layer_piece(hidden, blocks, block, i);
          CHECK((piece.rows == 8 || piece.rows == 16));
          CHECK(piece.row % 8 == 0);
          REQUIRE(piece.row + piece.rows <= hidden);
          for (i32 r = 0; r < piece.rows; ++r) ++owners[static_cast<std::size_t>(piece.row + r)];
          columns += piece.rows;
        }
        least = std::min(least, columns);
        most = std::max(most, columns);
      }
      CHECK(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));
      CHECK(most - least <= 8);
    }
  }
}

TEST_CASE("blocks with a unit more of fc1 are those with fewer columns of out") {
  // gpt-oss-120b on 132 SMs: 1440 units leave 120 blocks with an eleventh, 360 eights leave 96 with a third.
  int both = 0;
  for (i32 block = 0; block < 132; ++block) {
    const bool more_units = schedule::layer_units(1440, 132, block) == 11;
    i32 columns = 0;
    for (i32 i = 0; i < schedule::layer_pieces(2880, 132, block); ++i)
      columns += schedule::layer_piece(2880, 132, block, i).rows;
    both += more_units && columns == 24;
  }
  CHECK(both == 120 + 96 - 132);  // as few as there can be
}
