#include "model/device_profile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/text.hpp"
#include "model/embedded/device_profiles.hpp"
#include "model/json_fields.hpp"

namespace varmoe::model {
namespace {

constexpr std::size_t kMaxProfileBytes = 64 << 10;
constexpr std::int32_t kLeastSmemPerBlock = 48 << 10;
constexpr std::int32_t kMostSmem = 1 << 20;
constexpr std::int32_t kMostSms = 4096;
constexpr std::int64_t kMostL2 = std::int64_t{1} << 40;
constexpr std::int32_t kReserved = 1024;  // of an SM's shared memory, per block

std::int32_t narrow(std::int64_t value) {
  return static_cast<std::int32_t>(value);
}

DeviceProfile read_profile(const JsonFields& fields, std::string_view id) {
  fields.refuse_unknown({"varmoe_device", "name", "aliases", "compute_major", "compute_minor", "sm_count",
                         "smem_per_block", "smem_per_sm", "regs_per_sm", "threads_per_sm", "l2_bytes",
                         "bandwidth", "tensor_flops", "mma_sync_flops", "sm_clock", "launch_overhead"});
  fields.integer("varmoe_device", 1, 1);
  DeviceProfile profile;
  profile.id = id;
  profile.name = printable(fields.string("name"), 128);
  if (const Json* aliases = fields.find("aliases")) {
    const auto* list = aliases->as<Json::Array>();
    if (list == nullptr) fields.fail("aliases", *aliases, "must be a list of names");
    for (const Json& alias : *list) {
      const auto* text = alias.as<std::string>();
      if (text == nullptr) fields.fail("aliases", alias, "must hold names");
      profile.aliases.push_back(printable(*text, 128));
    }
  }
  profile.compute_major = narrow(fields.integer("compute_major", 8, 99));
  profile.compute_minor = narrow(fields.integer("compute_minor", 0, 9));
  profile.arch = arch_name(profile.compute_major, profile.compute_minor);
  profile.sm_count = narrow(fields.integer("sm_count", 1, kMostSms));
  profile.smem_per_block = narrow(fields.integer("smem_per_block", kLeastSmemPerBlock, kMostSmem));
  profile.smem_per_sm =
      narrow(fields.integer("smem_per_sm", profile.smem_per_block + kReserved, kMostSmem + kReserved));
  profile.regs_per_sm = narrow(fields.integer_or("regs_per_sm", 65536, 1 << 20, 65536));
  profile.threads_per_sm = narrow(fields.integer("threads_per_sm", 1024, 4096));
  profile.l2_bytes = fields.integer("l2_bytes", 1 << 20, kMostL2);
  profile.bandwidth = fields.real("bandwidth", 1e10, 1e15);
  profile.tensor_flops = fields.real("tensor_flops", 1e12, 1e18);
  profile.mma_sync_flops = fields.real("mma_sync_flops", 1e12, profile.tensor_flops);
  profile.sm_clock = fields.real("sm_clock", 1e8, 1e10);
  profile.launch_overhead = fields.real_or("launch_overhead", 1e-7, 1e-3, profile.launch_overhead);
  return profile;
}

bool is_path(std::string_view text) {
  return text.find('/') != std::string_view::npos ||
         (text.size() > 5 && text.substr(text.size() - 5) == ".json");
}

/// "tuning_db/devices/h200.json" → "h200".
std::string_view stem(std::string_view path) {
  if (const auto slash = path.rfind('/'); slash != std::string_view::npos) path.remove_prefix(slash + 1);
  if (const auto dot = path.rfind(".json"); dot != std::string_view::npos && dot != 0)
    path = path.substr(0, dot);
  return path;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [&](char x, char y) { return lower(x) == lower(y); });
}

}  // namespace

Result<DeviceProfile> parse_profile(std::string_view text, std::string_view id, std::string_view origin) {
  JsonLimits limits;
  limits.max_bytes = kMaxProfileBytes;
  limits.max_depth = 4;
  limits.max_values = 1024;
  auto root = parse_strict_json(text, limits);
  const std::string where = printable(origin);
  if (!root) return Error(ErrorCode::invalid_argument, fmt::format("{}: {}", where, root.error().message()));
  try {
    return read_profile(JsonFields(*root, where, NullField::is_wrong), id);
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
}

const std::vector<DeviceProfile>& shipped_profiles() {
  static const std::vector<DeviceProfile> profiles = [] {
    std::vector<DeviceProfile> result;
    for (const auto& file : embedded::device_profiles::files()) {
      auto profile = parse_profile(file.text, stem(file.name), file.name);
      // A test reads every shipped file, so that none is missing here.
      if (profile) result.push_back(std::move(*profile));
    }
    std::sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return result;
  }();
  return profiles;
}

Result<DeviceProfile> find_profile(std::string_view id_name_or_path) {
  for (const DeviceProfile& profile : shipped_profiles()) {
    const auto names_it = [id_name_or_path](std::string_view name) {
      return equal_ignoring_case(name, id_name_or_path);
    };
    if (names_it(profile.id) || names_it(profile.name) ||
        std::any_of(profile.aliases.begin(), profile.aliases.end(), names_it)) {
      return profile;
    }
  }
  if (is_path(id_name_or_path)) {
    auto text = read_input_file(std::string(id_name_or_path), kMaxProfileBytes);
    if (!text) return text.error();
    return parse_profile(*text, printable(stem(id_name_or_path), 64), id_name_or_path);
  }
  std::vector<std::string_view> ids;
  for (const DeviceProfile& profile : shipped_profiles()) ids.push_back(profile.id);
  return Error(ErrorCode::invalid_argument,
               fmt::format("no device profile \"{}\"; did you mean {}? There are {}; or name a JSON file",
                           printable(id_name_or_path, 64), nearest(id_name_or_path, ids), join(ids)));
}

DeviceProfile generic_profile(std::int32_t major, std::int32_t minor, std::int32_t sm_count,
                              std::int32_t smem_per_block, std::int32_t smem_per_sm, std::int64_t l2_bytes) {
  DeviceProfile profile;
  profile.compute_major = major;
  profile.compute_minor = minor;
  profile.arch = arch_name(major, minor);
  profile.sm_count = std::clamp(sm_count, 1, kMostSms);
  profile.smem_per_block = std::clamp(smem_per_block, kLeastSmemPerBlock, kMostSmem);
  profile.smem_per_sm = std::clamp(smem_per_sm, profile.smem_per_block + kReserved, kMostSmem + kReserved);
  // Half-size parts of an architecture hold 48 warps an SM.
  const bool large_sm = minor == 0 && (major == 8 || major == 9 || major == 10);
  profile.threads_per_sm = large_sm ? 2048 : 1536;
  profile.l2_bytes = std::clamp<std::int64_t>(l2_bytes, 1 << 20, kMostL2);
  profile.id = fmt::format("generic_{}_{}sm", profile.arch, profile.sm_count);
  profile.name = fmt::format("{} GPU of {} SMs", profile.arch, profile.sm_count);
  // Per SM, what the parts that files describe have in common: of the large ones (HBM), and of the others
  // (GDDR).
  const double sms = profile.sm_count;
  profile.bandwidth = sms * (large_sm ? 20e9 : 8e9);
  profile.tensor_flops = sms * (major == 8 && large_sm ? 2.4e12 : large_sm ? 5.5e12 : 1.2e12);
  profile.mma_sync_flops =
      large_sm ? std::min(profile.tensor_flops, sms * 3.0e12) : profile.tensor_flops * 0.95;
  profile.sm_clock = large_sm ? 1.5e9 : 2.0e9;
  return profile;
}

std::string arch_name(std::int32_t major, std::int32_t minor) {
  return fmt::format("sm_{}{}{}", major, minor, major == 9 && minor == 0 ? "a" : "");
}

}  // namespace varmoe::model
