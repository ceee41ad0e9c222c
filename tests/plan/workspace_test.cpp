#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "abi.cuh"
#include "plan/plan.hpp"
#include "plan/sort_grid.hpp"

using namespace varmoe;
using plan::SortGrid;
using plan::workspace_layout;
using plan::WorkspaceLayout;

namespace {

std::size_t bytes_of(const LayerSpec& spec, std::int64_t tokens) {
  return workspace_layout(spec, nullptr, tokens).total_bytes;
}

/// Small rows beside many experts bring out whatever grows unevenly.
std::vector<LayerSpec> specs() {
  std::vector<LayerSpec> all = {uniform_spec(64, 1, 8, 1),      uniform_spec(64, 1024, 8, 1),
                                uniform_spec(64, 1024, 8, 32),  uniform_spec(64, 300, 16, 3),
                                uniform_spec(2048, 64, 512, 8), uniform_spec(7168, 256, 2048, 8)};
  LayerSpec uneven = uniform_spec(136, 5, 8, 7);
  uneven.expert_widths = {8, 4096, 16, 24, 8};
  all.push_back(uneven);
  uneven.weight_on_input = true;
  all.push_back(uneven);
  return all;
}

/// Every T up to some hundreds, then around each power of two and multiple of 4096 rows up to `limit` tokens.
std::vector<std::int64_t> token_counts(std::int64_t limit, std::int64_t top_k) {
  std::vector<std::int64_t> all;
  for (std::int64_t t = 1; t <= 600; ++t) all.push_back(t);
  const auto around = [&](std::int64_t t) {
    for (std::int64_t d = -2; d <= 2; ++d) all.push_back(t + d);
  };
  for (std::int64_t t = 1024; t <= limit; t *= 2) around(t);
  for (std::int64_t rows = 4096; rows / top_k <= limit; rows += 4096) around(rows / top_k);
  all.erase(std::remove_if(all.begin(), all.end(), [&](std::int64_t t) { return t < 1 || t > limit; }),
            all.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

LayerConfig config_of(std::int32_t fc1_m, std::int32_t fc2_m, std::int32_t fc1_cluster = 1,
                      std::int32_t fc2_cluster = 1) {
  LayerConfig config;
  config.fc1.block_m = fc1_m;
  config.fc2.block_m = fc2_m;
  config.fc1.cluster = fc1_cluster;
  config.fc2.cluster = fc2_cluster;
  return config;
}

struct Region {
  const char* name;
  std::size_t begin, bytes;
};

/// Where each part begins and how much of it the kernels use, reckoned from what they write.
std::vector<Region> regions(const LayerSpec& spec, const WorkspaceLayout& at, std::int64_t tokens,
                            const LayerConfig& config) {
  const std::int64_t rows = tokens * spec.top_k, experts = spec.num_experts();
  // The most row tiles: as many experts as can be with a cluster for one row, all the other rows with one
  // expert.
  const auto most_tiles = [&](const GemmConfig& gemm) {
    const std::int64_t used = std::min(experts, rows);
    return (used + (rows - used) / (gemm.block_m * gemm.cluster)) * gemm.cluster;
  };
  // fc2 may read h's rows by stages of 64 elements.
  const std::int64_t whole_stages = (spec.max_width() + 63) / 64 * 64;
  const auto bytes = [](std::int64_t count, std::size_t each) {
    return static_cast<std::size_t>(count) * each;
  };
  return {
      {"expert_offsets", at.expert_offsets, bytes(experts + 1, 4)},
      {"row_source", at.row_source, bytes(rows, 4)},
      {"slot_row", at.slot_row, bytes(rows, 4)},
      {"row_weight", at.row_weight, bytes(spec.weight_on_input ? rows : 0, 4)},
      {"block_histogram", at.block_histogram, bytes(SortGrid(rows).blocks * experts, 4)},
      {"fc1_tiles", at.fc1_tiles, bytes(most_tiles(config.fc1), sizeof(abi::RowTile))},
      {"fc2_tiles", at.fc2_tiles, bytes(most_tiles(config.fc2), sizeof(abi::RowTile))},
      {"tile_counts", at.tile_counts, sizeof(abi::TileCounts)},
      {"fc1_tile_prefix", at.fc1_tile_prefix, bytes(experts + 1, 4)},
      {"h_pending", at.h_pending, bytes(experts, 4)},
      {"h", at.h, bytes(rows * whole_stages, 2)},
      {"y", at.y, bytes(rows * spec.hidden_size, 2)},
  };
}

void check_regions(const LayerSpec& spec, const LayerConfig* config, std::int64_t tokens) {
  const WorkspaceLayout layout = workspace_layout(spec, config, tokens);
  // Of every config the lowest tiles in clusters make the longest lists.
  auto all = regions(spec, layout, tokens, config ? *config : config_of(8, 8, 2, 2));
  std::sort(all.begin(), all.end(), [](const Region& a, const Region& b) { return a.begin < b.begin; });
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::size_t end = i + 1 < all.size() ? all[i + 1].begin : layout.total_bytes;
    if (all[i].begin % 256 != 0) FAIL_CHECK(all[i].name << " at " << all[i].begin << ", tokens " << tokens);
    if (all[i].begin + all[i].bytes > end) FAIL_CHECK(all[i].name << " overflows, tokens " << tokens);
  }
}

}  // namespace

TEST_CASE("workspace parts are 256-byte aligned, apart and large enough for the worst routing") {
  for (const LayerSpec& spec : specs()) {
    for (const std::int64_t tokens : token_counts(20000, spec.top_k)) {
      check_regions(spec, nullptr, tokens);
      for (const LayerConfig& config : {config_of(8, 256), config_of(192, 64), config_of(64, 8, 2, 1),
                                        config_of(16, 192, 1, 2), config_of(8, 160, 2, 2)}) {
        check_regions(spec, &config, tokens);
      }
    }
  }
}

TEST_CASE("the workspace is monotonic in tokens") {
  for (const LayerSpec& spec : specs()) {
    CAPTURE(spec.num_experts());
    CAPTURE(spec.top_k);
    std::size_t before = 0;
    int falls = 0;
    std::int64_t first_fall = 0;
    for (const std::int64_t tokens : token_counts(300000, spec.top_k)) {
      const std::size_t bytes = bytes_of(spec, tokens);
      if (bytes < before && falls++ == 0) first_fall = tokens;
      before = bytes;
    }
    CAPTURE(first_fall);
    CHECK(falls == 0);
  }
}

TEST_CASE("the workspace without a config bounds that of every config") {
  for (const LayerSpec& spec : specs()) {
    for (const std::int64_t tokens : token_counts(10000, spec.top_k)) {
      const std::size_t bound = bytes_of(spec, tokens);
      for (const std::int32_t fc1_m : {8, 16, 24, 64, 160, 256}) {
        for (const std::int32_t fc2_m : {8, 64, 192}) {
          for (const std::int32_t cluster : {1, 2}) {
            const LayerConfig config = config_of(fc1_m, fc2_m, cluster, cluster);
            if (workspace_layout(spec, &config, tokens).total_bytes > bound) {
              FAIL_CHECK("tokens " << tokens << ", block_m " << fc1_m << " and " << fc2_m << ", cluster "
                                   << cluster);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("the two-launch sort's blocks cover all slots, none is empty, and whole warps walk them") {
  for (std::int64_t slots = 1; slots <= 2000000; slots += slots < 5000 ? 1 : 97) {
    const SortGrid grid(slots);
    const bool sound = grid.blocks >= 1 && grid.blocks <= SortGrid::kMaxBlocks &&
                       grid.slots_per_block >= SortGrid::kMinSlots && grid.slots_per_block % 32 == 0 &&
                       grid.blocks * grid.slots_per_block >= slots &&
                       (grid.blocks - 1) * grid.slots_per_block < slots;
    if (!sound) FAIL_CHECK("slots " << slots);
  }
  CHECK(SortGrid(0).blocks == 1);
  CHECK(SortGrid(SortGrid::kMinSlots).blocks == 1);
  CHECK(SortGrid(SortGrid::kMinSlots + 1).blocks == 2);
  CHECK(SortGrid(std::int64_t{1} << 31).blocks == 128);
}
