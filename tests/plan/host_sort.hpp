#pragma once

#include <algorithm>
#include <vector>

#include "plan/device_table.hpp"

namespace varmoe::test {

/// What the sort kernels leave behind for a routing, reckoned without them: rows by expert, row tiles by
/// class.
struct SortedRows {
  std::vector<i32> rows_of;         ///< of each expert
  std::vector<i32> expert_offsets;  ///< [E + 1]
  std::vector<abi::RowTile> fc1_tiles, fc2_tiles;
  abi::TileCounts counts{};
  std::vector<i32> fc1_tile_prefix;  ///< [E + 1], runtime widths alone
};

struct SortShape {
  i32 fc1_block_m, fc2_block_m;
  i32 fc1_tile_columns = 0;  ///< 0 unless runtime widths
  i32 classes;
  i32 fc1_row_step = 0, fc2_row_step = 0;  ///< 0: block_m
  i32 fc1_cluster = 1, fc2_cluster = 1;
};

inline i32 round_up(i32 value, i32 multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Row tiles of an expert: as few as block_m allows, whole clusters of them.
inline i32 row_tiles_of(i32 rows, i32 block_m, i32 cluster) {
  return round_up(round_up(rows, block_m) / block_m, cluster);
}

inline SortedRows sort_rows(const DeviceTable& table, const std::vector<i32>& rows_of,
                            const SortShape& shape) {
  SortedRows out;
  out.rows_of = rows_of;
  out.expert_offsets = {0};
  for (const i32 rows : rows_of) out.expert_offsets.push_back(out.expert_offsets.back() + rows);
  const std::vector<i32>& begin = shape.fc1_tile_columns > 0 ? table.one_class : table.class_begin;
  const auto list = [&](i32 block_m, i32 row_step, i32 cluster, std::vector<abi::RowTile>& tiles,
                        i32* class_begin) {
    for (i32 c = 0; c < shape.classes; ++c) {
      class_begin[c] = static_cast<i32>(tiles.size());
      for (i32 i = begin[static_cast<std::size_t>(c)]; i < begin[static_cast<std::size_t>(c) + 1]; ++i) {
        const i32 e = table.order[static_cast<std::size_t>(i)];
        const auto at = static_cast<std::size_t>(e);
        if (rows_of[at] == 0) continue;
        // The rows are shared out among the tiles; one that gets none begins where the expert does.
        const i32 count = row_tiles_of(rows_of[at], block_m, cluster);
        const i32 height = round_up((rows_of[at] + count - 1) / count, row_step > 0 ? row_step : block_m);
        for (i32 tile = 0, row = 0; tile < count; ++tile, row += height) {
          const i32 rows = std::clamp(rows_of[at] - row, 0, height);
          const i32 kind = table.entries[at].width_class |
                           (table.entries[at].up_first != 0 ? abi::kTileUpFirst : 0) |
                           (rows_of[at] <= cluster * block_m ? abi::kTileReadOnce : 0);
          tiles.push_back({e, out.expert_offsets[at] + (rows > 0 ? row : 0), rows, kind});
        }
      }
    }
    class_begin[shape.classes] = static_cast<i32>(tiles.size());
  };
  list(shape.fc1_block_m, shape.fc1_row_step, shape.fc1_cluster, out.fc1_tiles, out.counts.fc1_begin);
  list(shape.fc2_block_m, shape.fc2_row_step, shape.fc2_cluster, out.fc2_tiles, out.counts.fc2_begin);
  out.counts.rows = out.expert_offsets.back();
  if (shape.fc1_tile_columns > 0) {
    out.fc1_tile_prefix = {0};
    for (const i32 e : table.order) {
      const auto at = static_cast<std::size_t>(e);
      const i32 row_tiles = row_tiles_of(rows_of[at], shape.fc1_block_m, shape.fc1_cluster);
      const i32 columns = (table.entries[at].width + shape.fc1_tile_columns - 1) / shape.fc1_tile_columns;
      out.fc1_tile_prefix.push_back(out.fc1_tile_prefix.back() + row_tiles * columns);
    }
  }
  return out;
}

}  // namespace varmoe::test
