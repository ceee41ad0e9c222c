#pragma once

#include "base/env.hpp"
#include "cuda/device.hpp"
#include "model/device_profile.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// What the cost model and the config space work with on a GPU: the profile asked for by
/// VARMOE_DEVICE_PROFILE, else the shipped one of this GPU, else a generic one; VARMOE_ARCH replaces its
/// arch. A shipped profile is taken as it is wherever the device allows it, so that configs are chosen here
/// as `varmoe-tune compile --device` chose them on the machine that filled the cache. invalid_environment
/// when the variable names no profile.
Result<model::DeviceProfile> device_profile(const cuda::DeviceAttributes& attributes,
                                            const Environment& environment);

}  // namespace varmoe::engine
