#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"

namespace varmoe::model {

/// What config space and cost model know of a GPU. An arch alone fixes no SM count, so compiling without a
/// GPU names one.
struct DeviceProfile {
  std::string id;                    ///< "h200": the file's name in tuning_db/devices/
  std::string name;                  ///< "NVIDIA H200": what the driver calls it
  std::vector<std::string> aliases;  ///< other names of the driver for boards of the same figures
  std::string arch;                  ///< "sm_90a": what kernels are compiled for
  std::int32_t compute_major = 0, compute_minor = 0;
  std::int32_t sm_count = 0;
  std::int32_t smem_per_block = 0;  ///< bytes, opt-in limit
  std::int32_t smem_per_sm = 0;     ///< bytes
  std::int32_t regs_per_sm = 65536;
  std::int32_t threads_per_sm = 2048;
  std::int64_t l2_bytes = 0;
  double bandwidth = 0;           ///< bytes/s, attainable weight stream (floor of TARGETS-style figures)
  double tensor_flops = 0;        ///< FLOP/s, attainable dense bf16
  double mma_sync_flops = 0;      ///< FLOP/s, attainable by the portable mma.sync path
  double sm_clock = 1.5e9;        ///< Hz, typical under load
  double launch_overhead = 3e-6;  ///< s between dependent kernels
};

/// Profiles shipped in tuning_db/devices/ (embedded), sorted by id.
const std::vector<DeviceProfile>& shipped_profiles();
/// By id ("h200"), by driver name ("NVIDIA H200"), or a path to a JSON profile (with a '/' or ending in
/// .json; its id is then the file's name). The error lists the ids.
Result<DeviceProfile> find_profile(std::string_view id_name_or_path);
/// Reads a profile's JSON (tuning_db/README.md has its fields). Strict; every figure is range-checked, since
/// the config space relies on them. `origin` stands for the file in messages.
Result<DeviceProfile> parse_profile(std::string_view text, std::string_view id, std::string_view origin);
/// A generic profile for a GPU that no file describes, from the attributes the driver gives. Attributes out
/// of range are replaced by the least that an sm_80 GPU has.
DeviceProfile generic_profile(std::int32_t major, std::int32_t minor, std::int32_t sm_count,
                              std::int32_t smem_per_block, std::int32_t smem_per_sm, std::int64_t l2_bytes);
/// 9,0 → "sm_90a" (its own tensor-core path needs the "a"); 8,0 → "sm_80"; 10,0 → "sm_100"; …: what kernels are
/// compiled for.
std::string arch_name(std::int32_t major, std::int32_t minor);

}  // namespace varmoe::model
