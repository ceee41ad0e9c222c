#pragma once

#include <cstdint>
#include <string>

#include "varmoe/tuning.hpp"

/// Whether what a record measured is still as fast: performance epochs, one per kernel family.
namespace varmoe::tuningdb {

enum class KernelFamily : std::uint8_t {
  sort,
  gather,
  combine,
  fc1_mma_sync,
  fc2_mma_sync,
  fc1_wgmma,  ///< both schedules of Hopper
  fc2_wgmma,
  one_launch,
  gradient_mma_sync,  ///< both gradients of weights
  gradient_wgmma,
};
inline constexpr int kKernelFamilies = 10;

const char* to_string(KernelFamily) noexcept;

/// Today's epoch of a family.
std::int32_t performance_epoch(KernelFamily) noexcept;

/// Today's epochs of the kernels that a config runs: what a record made now carries.
TuningEpochs current_epochs(const LayerConfig& config) noexcept;

/// The same of a backward pass. dh and dx are kernels of fc1's and fc2's families.
TuningEpochs current_epochs(const BackwardConfig& config) noexcept;

/// Why the record's figures may no longer hold, e.g. "fc1 was measured at epoch 1 of fc1_wgmma, which is now
/// at 2"; empty where they do. The gather and the whole-layer kernel count only where the config runs them.
std::string staleness(const TuningRecord& record);

}  // namespace varmoe::tuningdb
