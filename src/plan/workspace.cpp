#include <algorithm>

#include "abi.cuh"
#include "model/config_space.hpp"
#include "plan/plan.hpp"
#include "plan/sort_grid.hpp"

namespace varmoe::plan {
namespace {

/// The lowest block_m and the largest cluster of the config space: the longest tile list.
constexpr std::int64_t kSmallestBlockM = 8, kLargestCluster = 2;

}  // namespace

WorkspaceLayout workspace_layout(const LayerSpec& spec, const LayerConfig* config, std::int64_t tokens) {
  return workspace_layout(spec, spec.widest_of_all(), config, tokens);
}

WorkspaceLayout workspace_layout(const LayerSpec& spec, std::int64_t max_width, const LayerConfig* config,
                                 std::int64_t tokens) noexcept {
  WorkspaceLayout layout;
  std::size_t at = 0;
  const auto place = [&](std::int64_t count, std::size_t bytes) {
    const std::size_t begin = at;
    at += (static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
    return begin;
  };
  const std::int64_t experts = spec.all_experts();
  const std::int64_t rows = tokens * spec.slots_per_token();
  // Each expert's last tile may be short, and may need another to complete its cluster.
  const auto row_tiles = [&](const GemmConfig* gemm) {
    const std::int64_t block_m = gemm ? gemm->block_m : kSmallestBlockM;
    const std::int64_t cluster = gemm ? gemm->cluster : kLargestCluster;
    return rows / block_m + cluster * std::min(experts, rows);
  };

  layout.tile_counts = place(1, sizeof(abi::TileCounts));
  layout.layer_control = place(1, sizeof(abi::LayerControl));
  layout.expert_offsets = place(experts + 1, sizeof(i32));
  layout.fc1_tile_prefix = place(experts + 1, sizeof(i32));
  layout.h_pending = place(experts, sizeof(i32));
  // The most blocks that this many rows or fewer can have: the count itself is not monotonic.
  layout.block_histogram =
      place(std::min(SortGrid::kMaxBlocks, rows / SortGrid::kMinSlots + 1) * experts, sizeof(i32));
  layout.fc1_tiles = place(row_tiles(config ? &config->fc1 : nullptr), sizeof(abi::RowTile));
  layout.fc2_tiles = place(row_tiles(config ? &config->fc2 : nullptr), sizeof(abi::RowTile));
  layout.row_source = place(rows, sizeof(i32));
  layout.slot_row = place(rows, sizeof(i32));
  layout.shared_weight = place(spec.shared_gate ? tokens : 0, sizeof(float));
  layout.row_weight = place(spec.weight_on_input ? rows : 0, sizeof(float));
  layout.h = place(rows * model::h_columns(max_width), 2);
  layout.y = place(rows * spec.hidden_size, 2);
  layout.total_bytes = at;
  return layout;
}

}  // namespace varmoe::plan
