#pragma once

#include "prelude.cuh"

// Order in which the output tiles of one region (row tiles × column tiles) are walked. Groups of `kGroup` row tiles share the
// column tiles' weights while they are in L2; within a group the row tile runs fastest, and every other group walks its columns
// backwards, so that the last weights of one group are the first of the next.
namespace varmoe::schedule {

struct TileCoordinate {
  i32 row_tile;
  i32 column_tile;
};

template <int kGroup>
VARMOE_SHARED_CODE TileCoordinate raster(i32 index, i32 row_tiles, i32 column_tiles) {
  static_assert(kGroup >= 1, "a raster group holds at least one row tile");
  const i32 per_group = kGroup * column_tiles;
  const i32 group = index / per_group;
  const i32 in_group = index - group * per_group;
  const i32 first = group * kGroup;
  const i32 rows = min_of(kGroup, row_tiles - first);
  const i32 column = in_group / rows;
  const i32 row = in_group - column * rows;
  return {first + row, (group & 1) ? column_tiles - 1 - column : column};
}

}  // namespace varmoe::schedule
