#pragma once

#include <string>

#include "engine/kernel_builder.hpp"
#include "engine/toolchain.hpp"
#include "model/device_profile.hpp"
#include "varmoe/tuning.hpp"

namespace varmoe::tools {

/// What is the same for every record of a run.
struct Provenance {
  std::string nvrtc, driver;
};
/// Of this machine; what cannot be told is empty.
Provenance read_provenance(const engine::Toolchain& toolchain);

/// Digest of the machine code's keys that a config's kernels have, in hex; empty where they cannot be
/// emitted.
std::string kernel_digest(engine::KernelBuilder& builder, const LayerSpec& spec, const LayerConfig& config,
                          std::int64_t bucket);

/// Epochs, versions and date of a record that was measured now.
void complete_record(TuningRecord& record, const Provenance& provenance, engine::KernelBuilder& builder);

}  // namespace varmoe::tools
