#include "tuningdb/epochs.hpp"

#include <fmt/format.h>

#include <vector>

#include "model/config_space.hpp"

namespace varmoe::tuningdb {
namespace {

struct Family {
  KernelFamily family;
  const char* name;
  std::int32_t epoch;
};

/// Raise a family's epoch by one in the change that may have altered which config of it wins, or by how much:
/// another main loop, other loads, another epilogue, other register or shared memory use, another launch
/// (grid, clusters, overlap with its neighbours). Not for a comment, a rename, a change of checks, or one
/// that moves every config alike by less than the spread of a measurement. Never lower one: records of a
/// higher epoch may be in use somewhere.
///
/// A raised epoch voids no record: it becomes second choice (stale_epoch) until it is measured again. When
/// the meaning of a config changes instead, raise model::kConfigSpaceVersion.
constexpr Family kFamilies[kKernelFamilies] = {
    {KernelFamily::sort, "sort", 1},
    {KernelFamily::gather, "gather", 1},
    {KernelFamily::combine, "combine", 1},
    {KernelFamily::fc1_mma_sync, "fc1_mma_sync", 1},
    {KernelFamily::fc2_mma_sync, "fc2_mma_sync", 1},
    {KernelFamily::fc1_wgmma, "fc1_wgmma", 3},
    {KernelFamily::fc2_wgmma, "fc2_wgmma", 3},
    {KernelFamily::one_launch, "one_launch", 2},
    {KernelFamily::gradient_mma_sync, "gradient_mma_sync", 1},
    {KernelFamily::gradient_wgmma, "gradient_wgmma", 1},
};

constexpr bool in_enum_order() {
  for (int i = 0; i < kKernelFamilies; ++i) {
    if (static_cast<int>(kFamilies[i].family) != i) return false;
  }
  return true;
}
static_assert(in_enum_order());

KernelFamily fc1_family(const GemmConfig& config) {
  return model::uses_wgmma(config) ? KernelFamily::fc1_wgmma : KernelFamily::fc1_mma_sync;
}
KernelFamily fc2_family(const GemmConfig& config) {
  return model::uses_wgmma(config) ? KernelFamily::fc2_wgmma : KernelFamily::fc2_mma_sync;
}
KernelFamily gradient_family(const GradientConfig& config) {
  return config.schedule == Schedule::wgmma ? KernelFamily::gradient_wgmma : KernelFamily::gradient_mma_sync;
}

struct Measured {
  const char* kernel;
  std::int32_t epoch;
  KernelFamily family;
  bool runs = true;
};

/// What a record's figures depend on.
std::vector<Measured> measured_kernels(const TuningRecord& record) {
  const TuningEpochs& epochs = record.epochs;
  if (record.key.pass == TuningPass::backward) {
    const BackwardConfig& config = record.backward;
    return {{"dh", epochs.dh, fc1_family(config.dh)},
            {"dx", epochs.dx, fc2_family(config.dx)},
            {"fc1_gradient", epochs.fc1_gradient, gradient_family(config.fc1_gradient)},
            {"fc2_gradient", epochs.fc2_gradient, gradient_family(config.fc2_gradient)}};
  }
  const LayerConfig& config = record.config;
  return {{"fc1", epochs.fc1, fc1_family(config.fc1)},
          {"fc2", epochs.fc2, fc2_family(config.fc2)},
          {"sort", epochs.sort, KernelFamily::sort},
          {"gather", epochs.gather, KernelFamily::gather, config.fc1.gather == GatherMode::copy},
          {"combine", epochs.combine, KernelFamily::combine},
          {"one_launch", epochs.one_launch, KernelFamily::one_launch, config.one_launch.max_tokens > 0}};
}

}  // namespace

const char* to_string(KernelFamily family) noexcept {
  return kFamilies[static_cast<int>(family)].name;
}

std::int32_t performance_epoch(KernelFamily family) noexcept {
  return kFamilies[static_cast<int>(family)].epoch;
}

TuningEpochs current_epochs(const LayerConfig& config) noexcept {
  TuningEpochs epochs;
  epochs.sort = performance_epoch(KernelFamily::sort);
  epochs.gather = performance_epoch(KernelFamily::gather);
  epochs.combine = performance_epoch(KernelFamily::combine);
  epochs.fc1 = performance_epoch(fc1_family(config.fc1));
  epochs.fc2 = performance_epoch(fc2_family(config.fc2));
  epochs.one_launch = performance_epoch(KernelFamily::one_launch);
  return epochs;
}

TuningEpochs current_epochs(const BackwardConfig& config) noexcept {
  TuningEpochs epochs;
  epochs.dh = performance_epoch(fc1_family(config.dh));
  epochs.dx = performance_epoch(fc2_family(config.dx));
  epochs.fc1_gradient = performance_epoch(gradient_family(config.fc1_gradient));
  epochs.fc2_gradient = performance_epoch(gradient_family(config.fc2_gradient));
  return epochs;
}

std::string staleness(const TuningRecord& record) {
  if (record.config_space != model::kConfigSpaceVersion) {
    return fmt::format("it was measured in version {} of the config space, which is now at {}",
                       record.config_space, model::kConfigSpaceVersion);
  }
  for (const Measured& m : measured_kernels(record)) {
    if (!m.runs || m.epoch == performance_epoch(m.family)) continue;
    return fmt::format("{} was measured at epoch {} of {}, which is now at {}", m.kernel, m.epoch,
                       to_string(m.family), performance_epoch(m.family));
  }
  return {};
}

}  // namespace varmoe::tuningdb
