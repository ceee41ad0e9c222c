#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/toolchain.hpp"
#include "model/device_profile.hpp"
#include "tools/common/layer_input.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/training.hpp"

namespace varmoe::tools {

/// What a pack holds.
struct PackReport {
  std::vector<KernelReport> kernels;  ///< each once, in order of first use
  std::size_t records = 0;
  std::uint64_t bytes = 0;
};

/// What a pack is for: a Layer, or a TrainingLayer with these options.
using PackFor = std::optional<TrainingOptions>;

/// Writes a folder that a server needs for these layers and token buckets on this device:
///
///   <folder>/cubin/…        a read-only layer of the cubin cache (VARMOE_CUBIN_PATH=<folder>)
///   <folder>/tuning/….json  the tuning records that chose the kernels (VARMOE_TUNING_DB=<folder>/tuning)
///   <folder>/pack.json      what it is: for people, and the mark by which a pack may be replaced
///
/// The same layers, records, library and NVRTC give the same bytes. Folders are made for everyone to read.
/// What the server will choose with these records is planned again from them alone (and the shipped ones),
/// and must be the same kernels.
///
/// The folder is written beside its place and renamed; a former pack there is replaced, anything else is
/// refused (io_error). Errors: those of planning and compiling; cancelled.
Result<PackReport> write_pack(const std::string& folder, const std::vector<InputLayer>& layers,
                              const std::vector<std::int64_t>& buckets, const engine::Toolchain& toolchain,
                              const model::DeviceProfile& device, const PackFor& training, bool progress);

}  // namespace varmoe::tools
