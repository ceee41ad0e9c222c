#include "engine/device_choice.hpp"

#include <algorithm>
#include <utility>

namespace varmoe::engine {

Result<model::DeviceProfile> device_profile(const cuda::DeviceAttributes& a, const Environment& environment) {
  const std::string& asked = environment.device_profile;
  auto found = model::find_profile(asked.empty() ? a.name : asked);
  if (!found && !asked.empty())
    return Error(ErrorCode::invalid_environment, "VARMOE_DEVICE_PROFILE: " + found.error().message());
  model::DeviceProfile profile = found ? *std::move(found)
                                       : model::generic_profile(a.compute_major, a.compute_minor, a.sm_count,
                                                                a.smem_per_block, a.smem_per_sm, a.l2_bytes);
  profile.arch = model::arch_name(a.compute_major, a.compute_minor);
  profile.compute_major = a.compute_major;
  profile.compute_minor = a.compute_minor;
  if (asked.empty()) {
    profile.name = a.name;
    profile.sm_count = a.sm_count;  // a MIG slice has fewer than its name says
  }
  const auto bound = [](std::int32_t& limit, int reported) {
    limit = std::min<std::int32_t>(limit, reported);
  };
  bound(profile.smem_per_block, a.smem_per_block);
  bound(profile.smem_per_sm, a.smem_per_sm);
  bound(profile.regs_per_sm, a.regs_per_sm);
  bound(profile.threads_per_sm, a.threads_per_sm);
  if (!environment.arch.empty()) profile.arch = environment.arch;
  return profile;
}

}  // namespace varmoe::engine
