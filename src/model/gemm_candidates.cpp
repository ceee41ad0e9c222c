#include <algorithm>
#include <array>

#include "model/config_space.hpp"

/// The grid of configs worth trying.
namespace varmoe::model {
namespace {

constexpr std::array<std::int32_t, 5> kBlockM = {16, 32, 64, 128, 256};
constexpr std::array<std::int32_t, 9> kBlockN = {32, 64, 96, 128, 160, 176, 192, 224, 256};

bool power_of_two(std::int32_t value) {
  return (value & (value - 1)) == 0;
}

/// Columns that tiles of this block_n compute, waste included, over all experts.
std::int64_t covered_columns(const LayerSpec& spec, GemmStage stage, std::int32_t block_n,
                             const std::vector<WidthClass>& classes) {
  GemmConfig config;
  config.block_n = block_n;
  const std::int64_t tile = tile_columns(spec, stage, config);
  std::int64_t total = 0;
  for (const WidthClass& c : classes) {
    const std::int64_t columns = stage == GemmStage::fc1 ? c.width : spec.hidden_size;
    total += c.count * ((columns + tile - 1) / tile * tile);
  }
  return total;
}

/// Powers of two, and what wastes fewer columns of these widths than the next power of two above.
std::vector<std::int32_t> useful_block_n(const LayerSpec& spec, GemmStage stage) {
  const std::vector<WidthClass> classes = width_classes(spec);
  std::vector<std::int32_t> result;
  for (const std::int32_t block_n : kBlockN) {
    const std::int32_t next = block_n < 128 ? 128 : 256;
    if (power_of_two(block_n) ||
        covered_columns(spec, stage, block_n, classes) < covered_columns(spec, stage, next, classes)) {
      result.push_back(block_n);
    }
  }
  return result;
}

/// For each number of warps, the arrangement whose warp tiles are nearest to square: it reads shared memory
/// least.
void for_each_warp_layout(const GemmConfig& base, const auto& visit) {
  for (const std::int32_t warps : {2, 4, 8}) {
    GemmConfig best = base;
    std::int32_t best_traffic = 0;
    for (const std::int32_t warps_m : {1, 2, 4}) {
      if (warps_m > warps) break;
      const std::int32_t warps_n = warps / warps_m;
      if (base.block_m % (16 * warps_m) != 0 || base.block_n % (16 * warps_n) != 0) continue;
      const std::int32_t traffic = base.block_m * warps_n + base.block_n * warps_m;
      if (best_traffic != 0 && traffic >= best_traffic) continue;
      best_traffic = traffic;
      best.warps_m = warps_m;
      best.warps_n = warps_n;
    }
    // Fewer than 8 accumulators a thread is a tile cut too thin.
    const std::int64_t accumulators = accumulators_per_thread(best);
    if (best_traffic != 0 && accumulators >= 8 && accumulators <= kMaxAccumulators) visit(best);
  }
}

struct Depths {
  std::vector<std::int32_t> block_k, stages;
};

/// Short tiles stream weights and want deep pipelines; tall ones are bound by tensor cores and want room for
/// the tile.
Depths depths(std::int32_t block_m) {
  if (block_m <= 32) return {{64, 128}, {3, 4, 6}};
  if (block_m == 64) return {{64}, {2, 3, 4, 6}};
  return {{32, 64}, {2, 3, 4}};
}

/// The deepest ring that fits.
void add_wgmma_depths(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device, GemmConfig config,
                      const auto& add) {
  constexpr std::int32_t kMostStages = 8;
  for (config.stages = kMostStages; config.stages > 2; --config.stages) {
    if (wgmma_smem_bytes(spec, stage, config) > device.smem_per_block) continue;
    add(config);
    break;
  }
}

/// Hopper's schedules: tiles by rows per expert, weight rows by 128 or 256, ping-pong where one group's share
/// is a tile of its own.
void add_wgmma(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device, const auto& add) {
  constexpr std::array<std::int32_t, 9> kHeights = {16, 32, 64, 96, 128, 160, 192, 224, 256};
  for (const Schedule schedule : {Schedule::wgmma, Schedule::wgmma_pingpong}) {
    for (const std::int32_t block_n : {64, 128, 256}) {
      for (const std::int32_t block_m : kHeights) {
        GemmConfig config;
        config.schedule = schedule;
        config.block_m = block_m;
        config.block_n = block_n;
        config.warps_m = schedule == Schedule::wgmma ? 1 : 2;
        config.warps_n = schedule == Schedule::wgmma ? 8 : 4;
        // Short tiles meet few others of their expert; tall ones share weights and rows in L2, or as a
        // cluster.
        for (const std::int32_t cluster : {1, 2}) {
          if (cluster > 1 && block_m < 64) continue;
          config.cluster = cluster;
          for (const std::int32_t raster : {4, 8}) {
            if (raster != (block_m < 128 ? 8 : 4) && (block_m < 128 || cluster > 1)) continue;
            config.raster = raster;
            for (const GatherMode gather : {GatherMode::fused, GatherMode::copy}) {
              if (gather == GatherMode::copy && (stage == GemmStage::fc2 || block_m < 128)) continue;
              config.gather = gather;
              add_wgmma_depths(spec, stage, device, config, add);
            }
          }
        }
      }
    }
  }
}

}  // namespace

std::vector<GemmConfig> gemm_candidates(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device) {
  std::vector<GemmConfig> result;
  const auto add = [&](const GemmConfig& config) {
    if (check_gemm_config(spec, stage, config, device)) result.push_back(config);
  };
  const bool hopper = device.compute_major == 9;
  if (hopper) add_wgmma(spec, stage, device, add);
  const std::vector<std::int32_t> block_ns = useful_block_n(spec, stage);
  for (const std::int32_t block_m : kBlockM) {
    // Taller tiles are bound by the tensor cores, which mma.sync does not fill there.
    if (hopper && block_m > 64) break;
    const Depths depth = depths(block_m);
    for (const std::int32_t block_n : block_ns) {
      GemmConfig base;
      base.block_m = block_m;
      base.block_n = block_n;
      for_each_warp_layout(base, [&](GemmConfig config) {
        for (const std::int32_t block_k : depth.block_k) {
          for (const std::int32_t stages : depth.stages) {
            config.block_k = block_k;
            config.stages = stages;
            // As many blocks as fit: fewer never help at the same depth, and deeper pipelines are candidates
            // of their own.
            config.ctas_per_sm = std::min(resident_blocks(config, device), 4);
            if (config.ctas_per_sm == 0) continue;
            add(config);
            // A copied x pays where many tiles read each row: tall tiles.
            if (stage == GemmStage::fc1 && block_m >= 128 && block_k == 64 && stages >= 3 &&
                power_of_two(block_n)) {
              GemmConfig copied = config;
              copied.gather = GatherMode::copy;
              add(copied);
            }
          }
        }
      });
    }
  }
  return result;
}

}  // namespace varmoe::model
