#include "tuner/candidates.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "model/cost_model.hpp"
#include "model/gradient_config.hpp"
#include "model/one_launch.hpp"

namespace varmoe::tuner {
namespace {

constexpr std::array<std::int32_t, 3> kSortThreads = {256, 512, 1024};
constexpr std::array<std::int32_t, 3> kRowThreads = {128, 256, 512};
/// Numbers of routed rows between which one launch of the sort and two may each be the faster.
constexpr std::int64_t kFewestRowsOfTwoLaunches = 512, kMostRowsOfOneLaunch = 16384;

/// What the limits leave of rated configs, best first.
template <class Config>
std::vector<Config> promising(std::vector<std::pair<double, Config>> rated, const CandidateLimits& limits) {
  std::stable_sort(rated.begin(), rated.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Config> result;
  std::array<std::size_t, 3> of_schedule{};
  for (std::size_t rank = 0; rank < rated.size(); ++rank) {
    const auto& [cost, config] = rated[rank];
    std::size_t& same = of_schedule.at(static_cast<std::size_t>(config.schedule));
    const bool near = (limits.most == 0 || rank < limits.most) && cost <= limits.slower * rated.front().first;
    if (!near && same >= limits.per_schedule && limits.most != 0) continue;
    ++same;
    result.push_back(config);
  }
  return result;
}

}  // namespace

std::vector<GemmConfig> ranked_candidates(const LayerSpec& spec, model::GemmStage stage, std::int64_t bucket,
                                          const model::DeviceProfile& device, const CandidateLimits& limits) {
  std::vector<std::pair<double, GemmConfig>> rated;
  for (const GemmConfig& config : model::gemm_candidates(spec, stage, device))
    rated.emplace_back(model::predict_gemm_seconds(spec, stage, config, bucket, device), config);
  return promising(std::move(rated), limits);
}

std::vector<GradientConfig> ranked_gradients(const LayerSpec& spec, model::GemmStage stage,
                                             const model::DeviceProfile& device,
                                             const CandidateLimits& limits) {
  std::vector<std::pair<double, GradientConfig>> rated;
  std::vector<GradientConfig> all = model::gradient_configs(device);
  std::stable_sort(all.begin(), all.end(),
                   [](const GradientConfig& a, const GradientConfig& b) { return a.stages > b.stages; });
  for (const GradientConfig& config : all)
    rated.emplace_back(model::predict_gradient_cost(spec, stage, config, device), config);
  return promising(std::move(rated), limits);
}

BlockVariants block_variants(const LayerSpec& spec, std::int64_t bucket, const LayerConfig& config) {
  BlockVariants variants;
  for (const std::int32_t threads : kSortThreads) {
    if (threads == config.sort.block_threads) continue;
    variants.sort.emplace_back(config).sort.block_threads = threads;
  }
  const std::int64_t rows = bucket * spec.slots_per_token();
  if (rows >= kFewestRowsOfTwoLaunches && rows <= kMostRowsOfOneLaunch) {
    const bool one_launch = rows <= config.sort.single_block_rows;
    // The other side of the threshold, for every token count of the bucket.
    const auto most = static_cast<std::int32_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
    variants.sort.emplace_back(config).sort.single_block_rows = one_launch ? 0 : most;
  }
  if (config.fc1.gather == GatherMode::copy) {
    for (const std::int32_t threads : kRowThreads) {
      if (threads == config.gather.block_threads) continue;
      variants.gather.emplace_back(config).gather.block_threads = threads;
    }
  }
  for (const std::int32_t threads : kRowThreads) {
    if (threads == config.combine.block_threads) continue;
    variants.combine.emplace_back(config).combine.block_threads = threads;
  }
  for (std::int32_t tokens = 8; tokens <= model::kMaxOneLaunchTokens; tokens *= 2) {
    if (tokens < bucket) continue;
    for (std::int32_t teams = model::kFewestOneLaunchTeams; teams <= model::kMostOneLaunchTeams; ++teams)
      variants.one_launch.emplace_back(config).one_launch = {tokens, teams};
    break;
  }
  return variants;
}

}  // namespace varmoe::tuner
