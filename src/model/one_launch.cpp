#include "model/one_launch.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "model/routing_stats.hpp"

namespace varmoe::model {
namespace {

/// Of kernels_src/: moe/whole_layer.cuh, abi.cuh. Emitted source asserts what follows from them.
constexpr std::int64_t kSlotBytes = 8 * (2 * 512 * 2 + 64), kExpertEntryBytes = 64;
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
  const std::int64_t warps = 4 * config.teams;
  const std::int64_t barriers = (warps + 3) * 8 + 2 * 4;
  const std::int64_t sums = warps * 5 / 2 * (config.max_tokens / 8) * 512;
  return warps * kSlotBytes + sums + align16(barriers) + align16(routing);
}

Status check_one_launch(const LayerSpec& spec, const OneLaunchConfig& config) {
  if (config.max_tokens == 0) return {};
  const std::int32_t tokens = config.max_tokens;
  if (tokens != 8 && tokens != 16)
    return bad_config(fmt::format("max_tokens is {}; must be 0, 8 or 16", tokens));
  if (config.teams < kFewestOneLaunchTeams || config.teams > kMostOneLaunchTeams)
    return bad_config(fmt::format("teams is {}; must be {} or {}", config.teams, kFewestOneLaunchTeams,
                                  kMostOneLaunchTeams));
  if (spec.fc1_layout != WeightLayout::nk || spec.fc2_layout != WeightLayout::nk)
    return Error(ErrorCode::unsupported, "one_launch: takes nk weights, since it streams whole weight rows");
  if (!spec.shared_widths.empty())
    return Error(ErrorCode::unsupported,
                 "one_launch: takes no shared experts; such a layer runs as sort, fc1, fc2 and combine");
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
        fmt::format("teams={} with max_tokens={} takes {} bytes of shared memory; a block has {}",
                    config.teams, config.max_tokens, bytes, device.smem_per_block));
  return {};
}

OneLaunchConfig predict_one_launch(const LayerSpec& spec, std::int64_t bucket, const DeviceProfile& device) {
  if (bucket > kMostTokens || !spec.shared_widths.empty()) return {};
  const double matrices = spec.gated() ? 3 : 2;
  const double weights = RoutingStats(spec, bucket).hit_share() * matrices *
                         static_cast<double>(spec.hidden_size) * static_cast<double>(spec.total_width()) * 2;
  if (weights > kMostWeightBytes) return {};
  OneLaunchConfig config;
  config.max_tokens = 8;
  for (config.teams = kMostOneLaunchTeams; config.teams >= kFewestOneLaunchTeams; --config.teams) {
    if (check_one_launch(spec, config, device)) return config;
  }
  return {};
}

}  // namespace varmoe::model
