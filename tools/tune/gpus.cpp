#include "tools/tune/gpus.hpp"

#include <fmt/format.h>

#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "engine/device_choice.hpp"
#include "tools/common/layer_input.hpp"

namespace varmoe::tools {

Result<Gpus> find_gpus(const std::string& which, const Environment& environment) {
  auto driver = cuda::Driver::load();
  if (!driver) {
    return Error(
        driver.error().code(),
        fmt::format("measuring needs a GPU, and none can be used here: {}. Tune where the GPU is and bring "
                    "the records here (--tuning-db, or varmoe-tune merge); plan, compile, check, pack and "
                    "report need none",
                    driver.error().message()));
  }
  Gpus gpus;
  if (which == "all") {
    for (int i = 0; i < (*driver)->device_count(); ++i) gpus.ordinals.push_back(i);
  } else {
    auto ordinals = parse_counts(which, "--gpus", 0);
    if (!ordinals) return ordinals.error();
    for (const std::int64_t ordinal : *ordinals) {
      if (ordinal >= (*driver)->device_count()) {
        return Error(ErrorCode::invalid_argument,
                     fmt::format("--gpus: there is no GPU {}; there are {}, numbered from 0", ordinal,
                                 (*driver)->device_count()));
      }
      gpus.ordinals.push_back(static_cast<int>(ordinal));
    }
  }
  for (const int ordinal : gpus.ordinals) {
    auto device = cuda::Device::open(*driver, ordinal);
    if (!device) return device.error();
    auto profile = engine::device_profile((*device)->attributes(), environment);
    if (!profile) return profile.error();
    if (ordinal == gpus.ordinals.front()) {
      gpus.profile = *std::move(profile);
    } else if (profile->name != gpus.profile.name || profile->arch != gpus.profile.arch ||
               profile->sm_count != gpus.profile.sm_count) {
      return Error(
          ErrorCode::invalid_argument,
          fmt::format("--gpus: GPU {} is {} with {} SMs and GPU {} is {} with {}; tune each kind in a run of "
                      "its own",
                      gpus.ordinals.front(), gpus.profile.name, gpus.profile.sm_count, ordinal, profile->name,
                      profile->sm_count));
    }
  }
  return gpus;
}

}  // namespace varmoe::tools
