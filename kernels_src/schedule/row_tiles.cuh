#pragma once

#include "prelude.cuh"

// How an expert's rows are cut into tiles. Host code as well.
namespace varmoe::schedule {

/// Tiles of an expert with `rows` rows: as few as block_m allows, completed to whole clusters.
VARMOE_SHARED_CODE constexpr i32 row_tile_count(i32 rows, i32 block_m, i32 cluster) {
  return ceil_div(ceil_div(rows, block_m), cluster) * cluster;
}

/// abi::kTileReadOnce of an expert with `tiles` tiles, or 0.
VARMOE_SHARED_CODE constexpr i32 read_once(i32 tiles, i32 cluster) { return tiles <= cluster ? abi::kTileReadOnce : 0; }

/// Rows of each tile but the last, where `rows` rows make `tiles` = row_tile_count(…) tiles: equal heights in steps of `step`
/// rows. With a step of block_m all but the last are full. `step` divides block_m, so that no height exceeds it and, of tiles
/// that are not there to complete a cluster, none is left without rows.
VARMOE_SHARED_CODE constexpr i32 row_tile_height(i32 rows, i32 tiles, i32 step) {
  return tiles == 0 ? step : ceil_div(ceil_div(rows, tiles), step) * step;
}

/// Rows of a tile, relative to the first of its expert.
struct RowRange {
  i32 first;
  i32 rows;
};

/// Tile `tile` of such an expert. One without rows begins where the expert does: a place that exists.
VARMOE_SHARED_CODE constexpr RowRange row_tile(i32 rows, i32 tiles, i32 step, i32 tile) {
  const i32 height = row_tile_height(rows, tiles, step);
  const i32 first = tile * height;
  return first < rows ? RowRange{first, min_of(height, rows - first)} : RowRange{0, 0};
}

/// Rows of one box of the copy engine where a tile of up to `block_m` rows is copied box by box: few instructions, few rows
/// beyond
/// the tile. The host encodes the tensor map with it.
VARMOE_SHARED_CODE constexpr i32 row_box(i32 block_m) { return block_m % 32 == 0 ? 32 : block_m % 16 == 0 ? 16 : 8; }

}  // namespace varmoe::schedule
