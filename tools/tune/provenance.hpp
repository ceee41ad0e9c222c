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

/// Digest of the machine code's keys that the kernels of a record's config have (of a backward pass those of
/// its four products), in hex; empty where they cannot be emitted.
std::string kernel_digest(engine::KernelBuilder& builder, const TuningRecord& record,
                          const model::DeviceProfile& device);

/// Epochs, versions and date of a record that was measured now.
void complete_record(TuningRecord& record, const Provenance& provenance, engine::KernelBuilder& builder,
                     const model::DeviceProfile& device);

}  // namespace varmoe::tools
