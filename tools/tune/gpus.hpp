#pragma once

#include <string>
#include <vector>

#include "base/env.hpp"
#include "model/device_profile.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// GPUs to measure on, all of one kind.
struct Gpus {
  std::vector<int> ordinals;
  model::DeviceProfile profile;  ///< as an engine on them has it
};

/// "0", "0,2", "all". no_device, with what can be done without one, where there is none; invalid_argument
/// where one is not there or they differ: a record is about one kind of GPU. No context stays behind.
Result<Gpus> find_gpus(const std::string& which, const Environment& environment);

}  // namespace varmoe::tools
