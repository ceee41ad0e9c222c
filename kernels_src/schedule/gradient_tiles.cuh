#pragma once

#include "prelude.cuh"
#include "schedule/tile_map.cuh"

// Output tiles of the weights' gradients. How many there are follows from widths alone; routing says how long each takes, so experts
// go by their rows, most first. The rows of an expert that has far more than its share are summed in parts by several blocks, of which the
// last to end adds the parts up, in their order. `Gradient` (emitted): kHidden, kHalves (gate and up apart), kWidthScale (2: they alternate in one matrix),
// kTokensFirst (the output's rows are those of H), kSegments (rows are a caller's, with gaps between experts; how many each has follows
// the E + 1 first rows). Shared with the host.
namespace varmoe::schedule {

/// Output rows [m, m + kBlockM) and columns [n, …) of one half of an expert's matrix.
struct GradientTile {
  i32 expert;
  i32 row_begin;   // routed rows to sum over, of this part
  i32 rows;
  i32 half;        // 1: up
  i32 m, n;
  i32 width;       // columns of one half: I_e, or 2·I_e where gate and up alternate
  i32 part, parts; // parts > 1: the sum goes to slot + part
  i32 slot;
};

/// Parts that all of a product's work is to be cut into. Only experts of 1.5 fair shares and more are split, into parts of no less than 3/4 of
/// one: so many more slots there are at most.
inline constexpr i32 kGradientParts = abi::kGradientSlots * 3 / 4;
/// The block that comes last adds parts up one after another, each in the time of so many rows: n parts of R rows take R / n + n of these, so
/// there are at most √(R / kPartCost).
inline constexpr i32 kPartCost = 128;

/// Rows of each part of an expert's tiles; 0: it is not split. `work`: Σ rows · tiles of all experts.
VARMOE_SHARED_CODE i32 gradient_part_rows(i64 work, i32 rows) {
  const i64 share = (work + kGradientParts - 1) / kGradientParts, fair = share > abi::kLeastPartRows ? share : abi::kLeastPartRows;
  i64 parts = (2 * rows + fair) / (2 * fair);
  if (parts < 2) return 0;
  while (parts > 2 && parts * parts * kPartCost > rows) --parts;
  return ceil_div(static_cast<i32>((rows + parts - 1) / parts), 64) * 64;
}
VARMOE_SHARED_CODE i32 gradient_parts(i32 part_rows, i32 rows) { return part_rows == 0 ? 1 : ceil_div(rows, part_rows); }

/// Rows of one of `count` experts.
template <bool kSegments>
VARMOE_SHARED_CODE i32 gradient_rows(const i32* offsets, i32 count, i32 expert) {
  return kSegments ? offsets[count + 1 + expert] : offsets[expert + 1] - offsets[expert];
}

template <class Gradient, int kBlockM, int kBlockN>
VARMOE_SHARED_CODE GradientTile gradient_tile(const i32* prefix, const i32* order, const abi::GradientSplit* splits, const i32* offsets,
                                              const abi::GradientEntry* experts, i32 count, i32 index) {
  const i32 p = upper_position(prefix, count, index);
  const i32 expert = order[p];
  const i32 width = experts[expert].width * Gradient::kWidthScale;
  const i32 rows_of_tiles = ceil_div(Gradient::kTokensFirst ? Gradient::kHidden : width, kBlockM);
  const i32 columns_of_tiles = ceil_div(Gradient::kTokensFirst ? width : Gradient::kHidden, kBlockN);
  const i32 begin = offsets[expert], rows = gradient_rows<Gradient::kSegments>(offsets, count, expert);
  const abi::GradientSplit split = splits[p];
  const i32 parts = gradient_parts(split.part_rows, rows);
  const i32 local = (index - prefix[p]) / parts, part = index - prefix[p] - local * parts;
  const i32 first = part * split.part_rows;
  const i32 per_half = rows_of_tiles * columns_of_tiles;
  const i32 half = Gradient::kHalves == 2 && local >= per_half ? 1 : 0;
  const i32 in_half = local - half * per_half;
  const i32 row = in_half / columns_of_tiles;
  return {expert, begin + first, parts > 1 ? min_of(split.part_rows, rows - first) : rows, half, row * kBlockM,
          (in_half - row * columns_of_tiles) * kBlockN, width, part, parts, split.slot + local * parts};
}

}  // namespace varmoe::schedule
