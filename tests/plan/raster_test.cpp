#include "schedule/raster.cuh"

#include <doctest/doctest.h>

#include <utility>
#include <vector>

using namespace varmoe;

namespace {

/// Walks a whole region and checks that each cell is met once, within its group.
template <int kGroup>
void check_region(i32 row_tiles, i32 column_tiles) {
  CAPTURE(kGroup);
  CAPTURE(row_tiles);
  CAPTURE(column_tiles);
  std::vector<int> met(static_cast<std::size_t>(row_tiles) * static_cast<std::size_t>(column_tiles));
  bool inside = true, grouped = true, rows_fastest = true, meets = true;
  schedule::TileCoordinate before{0, 0};
  for (i32 i = 0; i < row_tiles * column_tiles; ++i) {
    const auto at = schedule::raster<kGroup>(i, row_tiles, column_tiles);
    if (at.row_tile < 0 || at.row_tile >= row_tiles || at.column_tile < 0 || at.column_tile >= column_tiles) {
      inside = false;
      break;
    }
    ++met[static_cast<std::size_t>(at.row_tile * column_tiles + at.column_tile)];
    grouped &= at.row_tile / kGroup == i / (kGroup * column_tiles);
    if (i > 0 && at.row_tile / kGroup == before.row_tile / kGroup) {
      rows_fastest &= at.row_tile == before.row_tile + 1 ? at.column_tile == before.column_tile
                                                         : at.row_tile % kGroup == 0;
    } else if (i > 0) {
      // The last weights of one group are the first of the next.
      meets &= at.column_tile == before.column_tile;
    }
    before = at;
  }
  REQUIRE(inside);
  bool once = true;
  for (const int n : met) once &= n == 1;
  CHECK(once);
  CHECK(grouped);
  CHECK(rows_fastest);
  CHECK(meets);
}

template <int... kGroups>
void check_groups(i32 rows, i32 columns, std::integer_sequence<int, kGroups...>) {
  (check_region<kGroups>(rows, columns), ...);
}

using Groups = std::integer_sequence<int, 1, 2, 3, 5, 8, 16, 64>;

}  // namespace

TEST_CASE(
    "the raster meets each cell of a region once, group by group, rows fastest, columns there and back") {
  for (i32 rows = 1; rows <= 40; ++rows) {
    for (i32 columns = 1; columns <= 18; ++columns) check_groups(rows, columns, Groups());
  }
  check_groups(1, 4096, Groups());
  check_groups(4096, 1, Groups());
  check_groups(129, 257, Groups());
}

TEST_CASE("a raster group of one walks each row tile's columns, and the next row's backwards") {
  const std::pair<i32, i32> expected[] = {{0, 0}, {0, 1}, {0, 2}, {1, 2}, {1, 1},
                                          {1, 0}, {2, 0}, {2, 1}, {2, 2}};
  for (i32 i = 0; i < 9; ++i) {
    const auto at = schedule::raster<1>(i, 3, 3);
    CHECK(std::pair(at.row_tile, at.column_tile) == expected[i]);
  }
}
