#pragma once

#include "prelude.cuh"

// How an expert's rows are cut into tiles. Host code as well.
namespace varmoe::schedule {

/// Rows of each tile but the last, where `rows` rows make `tiles` = ⌈rows / block_m⌉ tiles: equal heights in steps of `step`
/// rows. With a step of block_m all but the last are full. `step` divides block_m, so that no height exceeds it and no tile
/// is left without rows.
VARMOE_SHARED_CODE constexpr i32 row_tile_height(i32 rows, i32 tiles, i32 step) {
  return tiles == 0 ? step : ceil_div(ceil_div(rows, tiles), step) * step;
}

/// Rows of one box of the copy engine where a tile of up to `block_m` rows is copied box by box: few instructions, few rows
/// beyond
/// the tile. The host encodes the tensor map with it.
VARMOE_SHARED_CODE constexpr i32 row_box(i32 block_m) { return block_m % 32 == 0 ? 32 : block_m % 16 == 0 ? 16 : 8; }

}  // namespace varmoe::schedule
