#pragma once

#include "prelude.cuh"

// How a whole-layer launch shares its weights among blocks. Host code as well.
//
// Block b does units b, b + blocks, … of fc1 and like pieces of fc2, so that what all blocks read at a time lies side by side: shares that are
// contiguous streamed at 3.9 TB/s on an H200, these at 4.5 (docs/performance.md, entry 23).
namespace varmoe::schedule {

/// Elements of K that a slot holds of each weight row. The copy engine takes about 13 ns for a row, however short.
inline constexpr i32 kLayerChunk = 512;
/// Weight rows of a slot: one mma tile's.
inline constexpr i32 kLayerRows = 16;
/// Rows of out are dealt in eights: 16 bytes of each token.
inline constexpr i32 kLayerOutRows = 8;

/// Units of fc1 that block `block` does, of `units`: block + i·blocks.
VARMOE_SHARED_CODE constexpr i32 layer_units(i32 units, i32 blocks, i32 block) { return units <= block ? 0 : ceil_div(units - block, blocks); }

/// Columns of out: weight rows of fc2.
struct LayerPiece {
  i32 row, rows;
};

/// Rounds in which every block has a whole piece of kLayerRows rows.
VARMOE_SHARED_CODE constexpr i32 layer_full_rounds(i32 hidden, i32 blocks) { return hidden / (kLayerRows * blocks); }

/// A block's piece of what the full rounds leave: fewer than kLayerRows rows a block, dealt in eights; may be empty. The last blocks get more, since
/// the first may have a unit more of fc1.
VARMOE_SHARED_CODE constexpr LayerPiece layer_last_piece(i32 hidden, i32 blocks, i32 block) {
  const i32 begin = layer_full_rounds(hidden, blocks) * kLayerRows * blocks, eights = (hidden - begin) / kLayerOutRows;
  const i32 place = blocks - 1 - block, each = eights / blocks, more = eights % blocks;
  return {begin + (each * place + min_of(place, more)) * kLayerOutRows, (each + (place < more ? 1 : 0)) * kLayerOutRows};
}

/// Pieces of fc2 that a block does, of H = `hidden` rows.
VARMOE_SHARED_CODE constexpr i32 layer_pieces(i32 hidden, i32 blocks, i32 block) {
  return layer_full_rounds(hidden, blocks) + (layer_last_piece(hidden, blocks, block).rows > 0 ? 1 : 0);
}

/// Piece `i` of a block.
VARMOE_SHARED_CODE constexpr LayerPiece layer_piece(i32 hidden, i32 blocks, i32 block, i32 i) {
  return i < layer_full_rounds(hidden, blocks) ? LayerPiece{(i * blocks + blocks - 1 - block) * kLayerRows, kLayerRows}
                                               : layer_last_piece(hidden, blocks, block);
}

}  // namespace varmoe::schedule
