#pragma once

#include "prelude.cuh"
#include "schedule/tile_map.cuh"

// Output tiles of the weights' gradients. How many there are follows from widths alone; routing says how long each takes, so experts
// go by their rows, most first. `Gradient` (emitted): kHidden, kHalves (gate and up apart), kWidthScale (2: they alternate in one matrix),
// kTokensFirst (the output's rows are those of H). Shared with the host.
namespace varmoe::schedule {

/// Output rows [m, m + kBlockM) and columns [n, …) of one half of an expert's matrix.
struct GradientTile {
  i32 expert;
  i32 row_begin;   // routed rows to sum over
  i32 rows;
  i32 half;        // 1: up
  i32 m, n;
  i32 width;       // columns of one half: I_e, or 2·I_e where gate and up alternate
};

template <class Gradient, int kBlockM, int kBlockN>
VARMOE_SHARED_CODE GradientTile gradient_tile(const i32* prefix, const i32* order, const i32* offsets, const abi::GradientEntry* experts,
                                              i32 count, i32 index) {
  const i32 p = upper_position(prefix, count, index);
  const i32 expert = order[p];
  const i32 width = experts[expert].width * Gradient::kWidthScale;
  const i32 rows_of_tiles = ceil_div(Gradient::kTokensFirst ? Gradient::kHidden : width, kBlockM);
  const i32 columns_of_tiles = ceil_div(Gradient::kTokensFirst ? width : Gradient::kHidden, kBlockN);
  const i32 local = index - prefix[p];
  const i32 per_half = rows_of_tiles * columns_of_tiles;
  const i32 half = Gradient::kHalves == 2 && local >= per_half ? 1 : 0;
  const i32 in_half = local - half * per_half;
  const i32 row = in_half / columns_of_tiles;
  const i32 begin = offsets[expert];
  return {expert, begin, offsets[expert + 1] - begin, half, row * kBlockM, (in_half - row * columns_of_tiles) * kBlockN, width};
}

}  // namespace varmoe::schedule
