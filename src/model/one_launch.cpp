#include "model/one_launch.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/routing_stats.hpp"

namespace varmoe::model {
namespace {

/// Of kernels_src/: moe/whole_layer.cuh, abi.cuh. Emitted source asserts what follows from them.
constexpr std::int64_t kStageBytes = 16 * (1024 * 2 + 64), kExpertEntryBytes = 64;
constexpr std::int32_t kMostPredictedStages = 6;
/// Up to so many tokens, and so many bytes of weights, one launch was measured to beat the kernels one by one
/// (docs/performance.md, entry 23): those stream long weights faster, and take longer to start and to end.
constexpr std::int64_t kMostTokens = 8;
constexpr double kMostWeightBytes = 512e6;

constexpr std::int64_t align16(std::int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

Error bad_config(std::string message) {
  return Error(ErrorCode::invalid_config, "one_launch: " + std::move(message));
}

}  // namespace

std::int64_t one_launch_smem_bytes(const LayerSpec& spec, const OneLaunchConfig& config) {
  const std::int64_t slots = config.max_tokens * spec.top_k, experts = spec.num_experts(),
                     active = std::min(experts, slots);
  const std::int64_t routing = active * kExpertEntryBytes + active * 8 + experts * (8 + 4) +
                               3 * (active + 1) * 4 + 3 * slots * 4 + 32 * 4 + 4;
  const std::int64_t barriers = 2 * config.stages * 8 + (16 + 3) * 8 + 2 * 4;
  const std::int64_t sums = 2 * config.stages * (config.max_tokens / 8) * 512;
  return config.stages * kStageBytes + sums + align16(barriers) + align16(routing);
}

Status check_one_launch(const LayerSpec& spec, const OneLaunchConfig& config) {
  if (config.max_tokens == 0) return {};
  const std::int32_t tokens = config.max_tokens;
  if (tokens != 8 && tokens != 16 && tokens != 32 && tokens != 64)
    return bad_config(fmt::format("max_tokens is {}; must be 0, 8, 16, 32 or 64", tokens));
  if (config.stages < kFewestOneLaunchStages || config.stages > kMostOneLaunchStages)
    return bad_config(fmt::format("stages is {}; must be from {} to {}", config.stages,
                                  kFewestOneLaunchStages, kMostOneLaunchStages));
  if (spec.fc1_layout != WeightLayout::nk || spec.fc2_layout != WeightLayout::nk)
    return Error(ErrorCode::unsupported, "one_launch: takes nk weights, since it streams whole weight rows");
  if (spec.batch_invariant)
    return Error(ErrorCode::unsupported,
                 "one_launch: sums fc2 in another order than the kernels for more tokens, so a "
                 "batch_invariant layer cannot use it");
  if (spec.bias || spec.weight_on_input)
    return Error(ErrorCode::unsupported, fmt::format("one_launch: knows no {}; set max_tokens to 0",
                                                     spec.bias ? "biases" : "weights on the input"));
  return {};
}

Status check_one_launch(const LayerSpec& spec, const OneLaunchConfig& config, const DeviceProfile& device) {
  if (config.max_tokens == 0) return {};
  if (auto status = check_one_launch(spec, config); !status) return status;
  if (device.compute_major < 9)
    return Error(ErrorCode::unsupported,
                 fmt::format("one_launch: needs sm_90 or newer; {} is {}", device.name, device.arch));
  if (device.sm_count > kMaxOneLaunchBlocks)
    return Error(ErrorCode::unsupported, fmt::format("one_launch: takes up to {} SMs; {} has {}",
                                                     kMaxOneLaunchBlocks, device.name, device.sm_count));
  const std::int64_t bytes = one_launch_smem_bytes(spec, config);
  if (bytes > device.smem_per_block)
    return bad_config(
        fmt::format("stages={} with max_tokens={} takes {} bytes of shared memory; a block has {}",
                    config.stages, config.max_tokens, bytes, device.smem_per_block));
  return {};
}

OneLaunchConfig predict_one_launch(const LayerSpec& spec, std::int64_t bucket, const DeviceProfile& device) {
  if (bucket > kMostTokens) return {};
  const double matrices = spec.gated() ? 3 : 2;
  const double weights = RoutingStats(spec, bucket).hit_share() * matrices *
                         static_cast<double>(spec.hidden_size) * static_cast<double>(spec.total_width()) * 2;
  if (weights > kMostWeightBytes) return {};
  OneLaunchConfig config;
  config.max_tokens = 8;
  for (config.stages = kMostPredictedStages; config.stages >= kFewestOneLaunchStages; --config.stages) {
    if (check_one_launch(spec, config, device)) return config;
  }
  return {};
}

}  // namespace varmoe::model
