#include "tuningdb/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "base/text.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tuningdb {
namespace {

/// A profile with the limits that a record's config is held against.
model::DeviceProfile profile_of(const TuningDevice& device, const model::DeviceProfile* own) {
  if (own != nullptr && is_device(device, *own)) return *own;
  for (const model::DeviceProfile& profile : model::shipped_profiles()) {
    if (is_device(device, profile)) return profile;
  }
  // "sm_90a": major 9, minor 0; "sm_120": major 12, minor 0. A GPU that is not described may have more shared
  // memory than those that are, so that only the figures of the architecture bind.
  const int number = std::atoi(device.arch.c_str() + 3);
  constexpr std::int32_t kMost = 1 << 30;  // cut to the largest that a profile may have
  model::DeviceProfile profile =
      model::generic_profile(number / 10, number % 10, device.cu_num, kMost, kMost, std::int64_t{1} << 30);
  profile.name = device.name;
  return profile;
}

}  // namespace

TuningDevice tuning_device(const model::DeviceProfile& profile) {
  return {profile.arch, profile.sm_count, profile.name};
}

bool is_device(const TuningDevice& device, const model::DeviceProfile& profile) {
  if (device.arch != profile.arch || device.cu_num != profile.sm_count) return false;
  return device.name == profile.name ||
         std::find(profile.aliases.begin(), profile.aliases.end(), device.name) != profile.aliases.end();
}

Status check_config(const TuningRecord& record, const model::DeviceProfile* own) {
  const LayerSpec spec = layer_spec_of(record.key);
  const model::DeviceProfile profile = profile_of(record.key.device, own);
  return record.key.pass == TuningPass::backward
             ? model::check_backward_config(spec, record.backward, profile)
             : model::check_layer_config(spec, record.config, profile);
}

std::vector<std::string> check_records(std::span<const TuningRecord> records, std::string_view origin) {
  const std::string where = printable(origin, 4096);
  std::vector<std::string> faults;
  std::map<std::string, std::size_t> seen;
  std::string last;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const auto fault = [&](std::string_view what) {
      faults.push_back(fmt::format("{}: record {}: {}", where, i, what));
    };
    if (Status sound = check_record(records[i]); !sound) {
      fault(sound.error().message());
      continue;
    }
    if (Status sound = check_config(records[i]); !sound) fault(sound.error().message());
    std::string key = sort_key(records[i].key);
    if (const auto [first, inserted] = seen.try_emplace(key, i); !inserted) {
      fault(fmt::format("has the key of record {} ({})", first->second, to_string(records[i].key)));
    } else if (key < last) {
      fault("is out of order: it belongs before the one that precedes it");
    }
    last = std::move(key);
  }
  return faults;
}

std::vector<std::string> check_record_file(std::string_view text, std::string_view origin) {
  auto file = parse_record_file(text, origin);
  if (!file) return {file.error().message()};
  std::vector<std::string> faults = file->problems;
  const std::string where = printable(origin, 4096);
  if (!file->sorted) faults.push_back(fmt::format("{}: records are out of order", where));
  std::vector<TuningRecord> records;
  for (const StoredRecord& stored : file->records) records.push_back(stored.record);
  const std::vector<std::string> of_records = check_records(records, origin);
  faults.insert(faults.end(), of_records.begin(), of_records.end());
  if (!faults.empty()) return faults;
  if (const auto written = record_file_text(*file); !written || *written != text) {
    faults.push_back(
        fmt::format("{}: not as varmoe writes it: merge it once and keep what that writes", where));
  }
  return faults;
}

}  // namespace varmoe::tuningdb
