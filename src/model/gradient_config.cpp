#include "model/gradient_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "model/backward_layer.hpp"
#include "model/cost_model.hpp"

namespace varmoe {

std::string to_string(const GradientConfig& c) {
  return fmt::format("schedule={},block_m={},block_n={},stages={},gather={}", to_string(c.schedule),
                     c.block_m, c.block_n, c.stages, c.gather == GatherMode::fused ? "fused" : "copy");
}

}  // namespace varmoe

namespace varmoe::model {
namespace {

/// Columns and rows of a box of Hopper's loop, and what its barriers and tile slots take.
constexpr std::int64_t kBoxBytes = 64 * 128, kTileSlotBytes = 128, kTileSlots = 3;

std::int64_t stage_bytes(const GradientConfig& c) {
  return c.schedule == Schedule::wgmma ? (c.block_m + c.block_n) / 64 * kBoxBytes
                                       : std::int64_t{32} * (c.block_m + c.block_n) * 2;
}

constexpr const char* kGradientShapes =
    "schedule=mma_sync with block_m and block_n of 64 or 128, 2 to 5 stages and gather=fused, or "
    "schedule=wgmma with block_m=128 and block_n of 64, 128 or 256, or block_m=256 and block_n of 64 or 128, "
    "2 to 8 stages, and gather=fused or copy";

bool is_gradient_shape(const GradientConfig& c) {
  const bool narrow_n = c.block_n == 64 || c.block_n == 128;
  if (c.schedule == Schedule::mma_sync)
    return (c.block_m == 64 || c.block_m == 128) && narrow_n && c.stages >= 2 && c.stages <= 5 &&
           c.gather == GatherMode::fused;
  return c.schedule == Schedule::wgmma &&
         ((c.block_m == 128 && (narrow_n || c.block_n == 256)) || (c.block_m == 256 && narrow_n)) &&
         c.stages >= 2 && c.stages <= 8;
}

/// Share of the tensor cores' time that a tile's products keep, by how often shared memory is read for each.
double efficiency(const GradientConfig& c) {
  const double m = c.block_m, n = c.block_n;
  return 1.0 / (1.0 + 24.0 * (1.0 / m + 1.0 / n));
}

/// Gathering on the way makes the products' time so much longer (measured: docs/performance.md, entry 30).
constexpr double kGatherCost = 0.25;
/// Columns of gathered rows that the three warps keep up with.
constexpr std::int32_t kMostGathered = 128;

/// Whether copies of x and dout in expert order cost less than gathering their rows on the way: rows are read
/// and written once for each, and products grow with the width.
bool copies_pay(const LayerSpec& spec, const DeviceProfile& device) {
  double width = 0;
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) width += static_cast<double>(spec.width_of(e));
  width /= static_cast<double>(spec.all_experts());
  const double products =
      2 * width * (spec.gated() ? 3 : 2) / device.tensor_flops;  // of a row and a column of H
  const double copies = 2 * 2 * 2 / device.bandwidth;
  return copies < kGatherCost * products;
}

}  // namespace

Result<GradientConfig> parse_gradient_config(std::string_view text, const GradientConfig& base) {
  GradientConfig config = base;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    const std::string_view item = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    const std::size_t equals = item.find('=');
    const std::string_view key = item.substr(0, equals),
                           value = equals == item.npos ? std::string_view() : item.substr(equals + 1);
    if (key == "schedule") {
      if (value != "wgmma" && value != "mma_sync")
        return Error(ErrorCode::invalid_config, fmt::format("schedule={}: must be wgmma or mma_sync", value));
      config.schedule = value == "wgmma" ? Schedule::wgmma : Schedule::mma_sync;
      continue;
    }
    if (key == "gather") {
      if (value != "fused" && value != "copy")
        return Error(ErrorCode::invalid_config, fmt::format("gather={}: must be fused or copy", value));
      config.gather = value == "fused" ? GatherMode::fused : GatherMode::copy;
      continue;
    }
    std::int32_t* field = key == "block_m"   ? &config.block_m
                          : key == "block_n" ? &config.block_n
                          : key == "stages"  ? &config.stages
                                             : nullptr;
    if (!field)
      return Error(ErrorCode::invalid_config,
                   fmt::format("\"{}\": keys are schedule, block_m, block_n, stages and gather", item));
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), *field);
    if (error != std::errc() || end != value.data() + value.size())
      return Error(ErrorCode::invalid_config, fmt::format("{}=\"{}\": must be a whole number", key, value));
  }
  return config;
}

std::int32_t gradient_threads(const GradientConfig& c) {
  return c.schedule == Schedule::wgmma ? 384 : 256;
}

std::int64_t gradient_smem_bytes(const GradientConfig& c) {
  const std::int64_t ring = c.stages * stage_bytes(c);
  return c.schedule == Schedule::wgmma ? ring + kTileSlotBytes + 8 * (2 * c.stages + 2 * kTileSlots) : ring;
}

bool gate_and_up_alternate(const LayerSpec& spec) {
  return spec.gated() && spec.fc1_layout == WeightLayout::kn && spec.gate_order == GateOrder::interleaved;
}

bool gradient_rows_are_hidden(const LayerSpec& spec, GemmStage stage) {
  return stage == GemmStage::fc1 ? spec.fc1_layout == WeightLayout::kn : spec.fc2_layout == WeightLayout::nk;
}

std::int64_t gradient_tiles(const LayerSpec& spec, GemmStage stage, const GradientConfig& c,
                            std::int64_t width) {
  const bool alternate = stage == GemmStage::fc1 && gate_and_up_alternate(spec);
  const std::int64_t halves = stage == GemmStage::fc1 && spec.gated() && !alternate ? 2 : 1;
  const bool hidden_rows = gradient_rows_are_hidden(spec, stage);
  const std::int64_t columns = alternate ? 2 * width : width;
  const std::int64_t m = hidden_rows ? spec.hidden_size : columns,
                     n = hidden_rows ? columns : spec.hidden_size;
  return halves * ((m + c.block_m - 1) / c.block_m) * ((n + c.block_n - 1) / c.block_n);
}

GemmConfig saving_config(GemmConfig config) {
  if (uses_wgmma(config)) return config;
  config.ctas_per_sm = 1;
  while (accumulators_per_thread(config) > 64)
    (config.block_m > config.block_n ? config.block_m : config.block_n) /= 2;
  return config;
}

Status check_dh_config(const LayerSpec& back, const GemmConfig& config, const DeviceProfile& device) {
  if (auto status = check_gemm_config(back, GemmStage::fc1, config, device); !status) return status;
  if (!uses_wgmma(config)) return check_gemm_config(back, GemmStage::fc1, saving_config(config), device);
  return check_dh_accumulators(config);
}

Status check_dh_accumulators(const GemmConfig& config) {
  if (!uses_wgmma(config) || accumulators_per_thread(config) <= kMaxWgmmaBackwardAccumulators) return {};
  return Error(ErrorCode::invalid_config,
               fmt::format("block_m={},block_n={} are {} accumulators a thread; where the activation's "
                           "backward follows, at most "
                           "{}",
                           config.block_m, config.block_n, accumulators_per_thread(config),
                           kMaxWgmmaBackwardAccumulators));
}

PartialSums partial_sums(const GemmConfig& dh, std::int64_t max_width) {
  const std::int64_t span = dh.schedule == Schedule::wgmma            ? dh.block_n / 2
                            : dh.schedule == Schedule::wgmma_pingpong ? dh.block_n
                                                                      : dh.block_n / dh.warps_n;
  return {span, (max_width + span - 1) / span};
}

LayerConfig predict_backward_config(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device) {
  LayerConfig config = predict_layer_config(backward_layer(spec), tokens, device);
  config.fc1 = predict_dh_config(backward_layer(spec), spec.gated() ? 2 : 1, tokens, device);
  config.fc2 = predict_layer_config(backward_down_layer(spec), tokens, device).fc2;
  // A stage lies within one of two matrices.
  if (spec.gated() && config.fc2.block_k > 64) config.fc2.block_k = 64;
  config.one_launch = {};
  return config;
}

BackwardConfig with_copies(BackwardConfig config) {
  if (reads_copies(config.fc1_gradient) || reads_copies(config.fc2_gradient))
    config.dh.gather = GatherMode::copy;
  return config;
}

BackwardConfig predict_products(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device) {
  const LayerConfig layer = predict_backward_config(spec, tokens, device);
  BackwardConfig config;
  config.dh = layer.fc1;
  config.dx = layer.fc2;
  config.fc1_gradient = predict_gradient_config(spec, GemmStage::fc1, device);
  config.fc2_gradient = predict_gradient_config(spec, GemmStage::fc2, device);
  return with_copies(config);
}

Status check_backward_config(const LayerSpec& spec, const BackwardConfig& config,
                             const DeviceProfile& device) {
  const auto named = [](const char* product, const Status& status) {
    return Error(status.error().code(), fmt::format("{}: {}", product, status.error().message()));
  };
  if (auto ok = check_dh_config(backward_layer(spec), config.dh, device); !ok) return named("dh", ok);
  if (auto ok = check_gemm_config(backward_down_layer(spec), GemmStage::fc2, config.dx, device); !ok)
    return named("dx", ok);
  if (auto ok = check_gradient_config(config.fc1_gradient, device); !ok) return named("fc1_gradient", ok);
  if (auto ok = check_gradient_config(config.fc2_gradient, device); !ok) return named("fc2_gradient", ok);
  return check_backward_shape(spec, config);
}

Status check_backward_shape(const LayerSpec& spec, const BackwardConfig& config) {
  const auto named = [](const char* product, const Status& status) {
    return Error(status.error().code(), fmt::format("{}: {}", product, status.error().message()));
  };
  if (auto ok = check_gemm_shape(backward_layer(spec), GemmStage::fc1, config.dh); !ok)
    return named("dh", ok);
  if (auto ok = check_dh_accumulators(config.dh); !ok) return named("dh", ok);
  if (auto ok = check_gemm_shape(backward_down_layer(spec), GemmStage::fc2, config.dx); !ok)
    return named("dx", ok);
  // A stage lies within one of two matrices.
  if (spec.gated() && config.dx.block_k > 64)
    return Error(ErrorCode::invalid_config,
                 fmt::format("dx: block_k is {}; must be at most 64 in a gated layer", config.dx.block_k));
  for (const auto& [name, c] :
       {std::pair("fc1_gradient", config.fc1_gradient), std::pair("fc2_gradient", config.fc2_gradient)}) {
    if (!is_gradient_shape(c))
      return Error(ErrorCode::invalid_config,
                   fmt::format("{}: {}: must be {}", name, to_string(c), kGradientShapes));
  }
  if (with_copies(config) != config)
    return Error(ErrorCode::invalid_config,
                 "dh: gather is fused; must be copy beside a gradient that reads copies of rows");
  return {};
}

std::vector<GradientConfig> gradient_configs(const DeviceProfile& device) {
  std::vector<GradientConfig> configs;
  const auto add = [&](Schedule schedule, std::int32_t m, std::int32_t n, std::int32_t most) {
    for (std::int32_t stages = 2; stages <= most; ++stages) {
      GradientConfig c{schedule, m, n, stages};
      if (gradient_smem_bytes(c) > device.smem_per_block) continue;
      configs.push_back(c);
      c.gather = GatherMode::copy;
      if (schedule == Schedule::wgmma) configs.push_back(c);
    }
  };
  for (const std::int32_t m : {64, 128})
    for (const std::int32_t n : {64, 128}) add(Schedule::mma_sync, m, n, 5);
  if (device.compute_major != 9) return configs;
  for (const std::int32_t n : {64, 128, 256}) add(Schedule::wgmma, 128, n, 8);
  for (const std::int32_t n : {64, 128}) add(Schedule::wgmma, 256, n, 8);
  return configs;
}

Status check_gradient_config(const GradientConfig& config, const DeviceProfile& device) {
  const auto all = gradient_configs(device);
  if (std::find(all.begin(), all.end(), config) != all.end()) return {};
  return Error(
      ErrorCode::invalid_config,
      fmt::format(
          "{}: on {} a weight gradient's config has schedule=mma_sync with block_m and block_n of 64 or "
          "128 and 2 to 5 stages{}, within {} bytes of shared memory",
          to_string(config), device.name,
          device.compute_major == 9
              ? ", or schedule=wgmma with block_m=128 and block_n of 64, 128 or "
                "256, or block_m=256 and block_n of 64 or 128, 2 to 8 stages, and gather=fused or copy"
              : "",
          device.smem_per_block));
}

double predict_gradient_cost(const LayerSpec& spec, GemmStage stage, const GradientConfig& c,
                             const DeviceProfile& device) {
  std::int64_t tiles = 0;
  for (std::int64_t e = 0; e < spec.all_experts(); ++e)
    tiles += gradient_tiles(spec, stage, c, spec.width_of(e));
  const double per_tile = static_cast<double>(c.block_m) * c.block_n / efficiency(c);
  const double cost = std::max(1.0, static_cast<double>(tiles) / device.sm_count) * per_tile;
  if (c.schedule == Schedule::mma_sync) return cost * device.tensor_flops / device.mma_sync_flops;
  return c.gather == GatherMode::fused ? cost * (1 + kGatherCost) : cost;
}

GradientConfig predict_gradient_config(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device) {
  GradientConfig best;
  double best_cost = std::numeric_limits<double>::infinity();
  const bool hopper = device.compute_major == 9, copies = hopper && copies_pay(spec, device);
  for (const GradientConfig& c : gradient_configs(device)) {
    if ((c.schedule == Schedule::wgmma) != hopper || (c.gather == GatherMode::copy) != copies) continue;
    const std::int32_t gathered = gradient_rows_are_hidden(spec, stage) ? c.block_m : c.block_n;
    if (hopper && !copies && gathered > kMostGathered) continue;
    // The deepest ring that fits, 3 on the portable path, where blocks share an SM.
    const GradientConfig deeper{c.schedule, c.block_m, c.block_n, c.stages + 1, c.gather};
    if (hopper ? c.stages < 8 && gradient_smem_bytes(deeper) <= device.smem_per_block : c.stages != 3)
      continue;
    std::int64_t tiles = 0;
    for (std::int64_t e = 0; e < spec.all_experts(); ++e)
      tiles += gradient_tiles(spec, stage, c, spec.width_of(e));
    const double per_tile = static_cast<double>(c.block_m) * c.block_n / efficiency(c);
    // Tiles are handed out one by one: the last wave is half full on average, but fewer tiles than SMs take a
    // whole one.
    const double waves = std::max(1.0, static_cast<double>(tiles) / device.sm_count);
    const double cost = waves * per_tile;
    if (cost < best_cost) {
      best_cost = cost;
      best = c;
    }
  }
  return best;
}

}  // namespace varmoe::model
