#pragma once

#include "prelude.cuh"
#include "schedule/raster.cuh"
#include "schedule/row_tiles.cuh"

// From the index of an output tile to what it computes. `Layer` (emitted) has kClasses and width(class); with kClasses = 0 widths
// come from the device table (the runtime-width kernels). Shared with the host, whose tests walk whole layers.
namespace varmoe::schedule {

// The blocks of a cluster (kCluster of them) take neighbouring row tiles of one expert and the same column tile, so that they share
// its weights. Indices and counts below are of such groups; `rank` says which tile of the group.

/// An output tile: routed rows [row_begin, row_begin + rows) of `expert`, columns from `column_tile`·columns on.
struct OutputTile {
  i32 expert;
  i32 row_begin;
  i32 rows;
  i32 column_tile;
  i32 width;
  i32 kind;  // abi::kTile…
};

/// The greatest width; 0 where widths are not compiled in.
template <class Layer>
VARMOE_SHARED_CODE constexpr i32 widest() {
  if constexpr (Layer::kClasses > 0) {
    return Layer::width(0);
  } else {
    return 0;
  }
}

/// Column tiles of h for one class.
template <class Layer, int kColumns>
VARMOE_SHARED_CODE constexpr i32 fc1_column_tiles(i32 width_class) {
  return ceil_div(Layer::width(width_class), kColumns);
}

/// Output tiles of fc1: classes one after another, widest first.
template <class Layer, int kColumns, int kCluster = 1>
VARMOE_SHARED_CODE i32 fc1_tile_count(const i32* begin) {
  i32 total = 0;
  for (i32 c = 0; c < Layer::kClasses; ++c) total += (begin[c + 1] - begin[c]) * fc1_column_tiles<Layer, kColumns>(c);
  return total / kCluster;
}

/// A short chain over the classes, then closed form.
template <class Layer, int kColumns, int kGroup, int kCluster = 1>
VARMOE_SHARED_CODE OutputTile fc1_tile(const i32* begin, const abi::RowTile* tiles, i32 index, i32 rank = 0) {
  i32 first = begin[0];
  i32 row_tiles = 0, columns = 1, width = 0;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (i32 c = 0; c < Layer::kClasses; ++c) {
    const i32 next = begin[c + 1];
    row_tiles = (next - first) / kCluster;
    columns = fc1_column_tiles<Layer, kColumns>(c);
    width = Layer::width(c);
    const i32 in_class = row_tiles * columns;
    if (index < in_class) break;
    index -= in_class;
    first = next;
  }
  const TileCoordinate at = raster<kGroup>(index, row_tiles, columns);
  const abi::RowTile t = tiles[first + at.row_tile * kCluster + rank];
  return {t.expert, t.row_begin, t.rows, at.column_tile, width, t.kind};
}

/// K of fc2: the width; of a backward pass's product with both of fc1's matrices (kGateAndUp) each one's in whole stages of 64, as
/// Layer::width has it too.
template <class Layer>
VARMOE_SHARED_CODE i32 fc2_width(const abi::RowTile& t, const abi::ExpertEntry* experts) {
  if constexpr (Layer::kClasses == 0 && Layer::kGateAndUp) {
    return ceil_div(experts[t.expert].width, 64) * 128;
  } else if constexpr (Layer::kClasses == 0) {
    return experts[t.expert].width * (Layer::kAlternating ? 2 : 1);
  } else if constexpr (Layer::kClasses == 1) {
    return Layer::width(0);
  } else {
    return Layer::width(t.kind & abi::kTileClass);
  }
}

/// fc2's columns are H for every expert: one region, closed form. Only K differs by class.
template <class Layer, int kColumns, int kGroup, int kCluster = 1>
VARMOE_SHARED_CODE OutputTile fc2_tile(const abi::RowTile* tiles, const abi::ExpertEntry* experts, i32 row_tiles, i32 index,
                                       i32 rank = 0) {
  const TileCoordinate at = raster<kGroup>(index, row_tiles / kCluster, ceil_div(Layer::kHidden, kColumns));
  const abi::RowTile t = tiles[at.row_tile * kCluster + rank];
  return {t.expert, t.row_begin, t.rows, at.column_tile, fc2_width<Layer>(t, experts), t.kind};
}

/// The last position p of [0, n) with prefix[p] ≤ value, where prefix ascends and prefix[n] > value.
VARMOE_SHARED_CODE i32 upper_position(const i32* prefix, i32 n, i32 value) {
  i32 low = 0, high = n;
  while (high - low > 1) {
    const i32 mid = (low + high) / 2;
    if (prefix[mid] <= value) {
      low = mid;
    } else {
      high = mid;
    }
  }
  return low;
}

/// fc1 of a runtime-width layer: a search over the experts, then closed form within one. kRowCounts: experts' rows may have gaps between
/// them, and how many each has follows the E + 1 first rows.
template <class Layer, int kColumns, int kBlockM, int kRowStep, int kGroup, int kCluster = 1, bool kRowCounts = false>
VARMOE_SHARED_CODE OutputTile fc1_tile_runtime(const i32* prefix, const i32* expert_order, const i32* expert_offsets,
                                               const abi::ExpertEntry* experts, i32 index, i32 rank = 0) {
  const i32 p = upper_position(prefix, Layer::kExperts, index * kCluster);
  const i32 expert = expert_order[p];
  const i32 begin = expert_offsets[expert];
  const i32 rows = kRowCounts ? expert_offsets[Layer::kExperts + 1 + expert] : expert_offsets[expert + 1] - begin;
  const i32 width = experts[expert].width;
  const i32 row_tiles = row_tile_count(rows, kBlockM, kCluster);
  const TileCoordinate at = raster<kGroup>(index - prefix[p] / kCluster, row_tiles / kCluster, ceil_div(width, kColumns));
  const RowRange range = row_tile(rows, row_tiles, kRowStep, at.row_tile * kCluster + rank);
  const i32 kind = (experts[expert].up_first != 0 ? abi::kTileUpFirst : 0) | read_once(row_tiles, kCluster);
  return {expert, begin + range.first, range.rows, at.column_tile, width, kind};
}

/// fc1's output tiles, by the parameters of its kernel: compiled-in classes or runtime widths.
template <class Layer, int kColumns, int kCluster = 1>
VARMOE_SHARED_CODE i32 fc1_tile_count(const abi::GemmParams& p) {
  if constexpr (Layer::kClasses == 0) {
    return p.tile_prefix[Layer::kExperts] / kCluster;
  } else {
    return fc1_tile_count<Layer, kColumns, kCluster>(p.tile_counts->fc1_begin);
  }
}
template <class Layer, int kColumns, int kBlockM, int kRowStep, int kGroup, int kCluster = 1>
VARMOE_SHARED_CODE OutputTile fc1_tile(const abi::GemmParams& p, i32 index, i32 rank = 0) {
  if constexpr (Layer::kClasses == 0) {
    return fc1_tile_runtime<Layer, kColumns, kBlockM, kRowStep, kGroup, kCluster, Layer::kRowCounts>(p.tile_prefix, p.expert_order,
                                                                                                     p.expert_offsets, p.experts, index, rank);
  } else {
    return fc1_tile<Layer, kColumns, kGroup, kCluster>(p.tile_counts->fc1_begin, p.tiles, index, rank);
  }
}

/// fc2's row tiles: the last entry used of its class table.
template <class Layer>
VARMOE_SHARED_CODE i32 fc2_row_tiles(const abi::TileCounts& counts) {
  return counts.fc2_begin[Layer::kClasses == 0 ? 1 : Layer::kClasses];
}

}  // namespace varmoe::schedule
