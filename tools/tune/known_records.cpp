#include "tools/tune/known_records.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <utility>

#include "base/file_system.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"

namespace varmoe::tools {
namespace {

constexpr std::size_t kMostHints = 3;
/// Buckets further apart than this factor (2^2) say nothing of each other.
constexpr int kFarthestBucket = 2;

bool is_usable(const TuningRecord& record) {
  return record.verified && tuningdb::staleness(record).empty();
}

/// What two keys must have in common for the config of one to be worth a try for the other.
TuningKey shape_of(TuningKey key) {
  key.token = 1;
  for (WidthClass& c : key.inter_dim) c.count = 1;
  return key;
}

int bucket_distance(const TuningKey& a, const TuningKey& b) {
  const auto power = [](std::int64_t token) { return std::countr_zero(static_cast<std::uint64_t>(token)); };
  return std::abs(power(a.token) - power(b.token));
}

}  // namespace

KnownRecords::KnownRecords(const tuningdb::TuningSources& sources, const model::DeviceProfile& device)
    : device_(device) {
  tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), sources);
  problems_ = std::move(layers.problems);
  for (tuningdb::LayerFile& file : layers.files) {
    for (auto& stored : file.contents.records) {
      TuningRecord& record = stored.record;
      if (tuningdb::is_device(record.key.device, device) && tuningdb::check_config(record, &device))
        add(std::move(record));
    }
  }
}

void KnownRecords::add(TuningRecord record) {
  record.key.device = tuningdb::tuning_device(device_);  // by another of its names
  records_.push_back(std::move(record));
}

bool KnownRecords::is_fresh(const TuningKey& key) const {
  return std::any_of(records_.begin(), records_.end(),
                     [&](const TuningRecord& r) { return r.key == key && is_usable(r); });
}

std::vector<const TuningRecord*> KnownRecords::near(const TuningKey& key) const {
  const auto without_gradients = [](TuningKey of) {
    of.gradient_type = GradientType::layer_dtype;
    return of;
  };
  const TuningKey shape = without_gradients(shape_of(key));
  std::vector<std::pair<int, const TuningRecord*>> rated;
  // What this run made comes last and is the freshest.
  for (auto record = records_.rbegin(); record != records_.rend(); ++record) {
    if (without_gradients(shape_of(record->key)) != shape) continue;
    const int buckets = bucket_distance(record->key, key);
    if (buckets > kFarthestBucket) continue;
    rated.emplace_back(4 * buckets + (record->key.inter_dim == key.inter_dim ? 0 : 2) +
                           (record->key.gradient_type == key.gradient_type ? 0 : 1),
                       &*record);
  }
  std::stable_sort(rated.begin(), rated.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<const TuningRecord*> records;
  for (const auto& [distance, record] : rated) records.push_back(record);
  return records;
}

std::vector<LayerConfig> KnownRecords::hints(const TuningKey& key) const {
  std::vector<LayerConfig> configs;
  for (const TuningRecord* record : near(key)) {
    if (configs.size() == kMostHints) break;
    if (std::find(configs.begin(), configs.end(), record->config) == configs.end())
      configs.push_back(record->config);
  }
  return configs;
}

std::vector<BackwardConfig> KnownRecords::backward_hints(const TuningKey& key) const {
  std::vector<BackwardConfig> configs;
  for (const TuningRecord* record : near(key)) {
    if (configs.size() == kMostHints) break;
    if (std::find(configs.begin(), configs.end(), record->backward) == configs.end())
      configs.push_back(record->backward);
  }
  return configs;
}

bool KnownRecords::has_sibling(const TuningKey& key) const {
  const TuningKey shape = shape_of(key);
  return std::any_of(records_.begin(), records_.end(), [&](const TuningRecord& r) {
    return r.key.token == key.token && r.key.inter_dim != key.inter_dim && is_usable(r) &&
           shape_of(r.key) == shape;
  });
}

}  // namespace varmoe::tools
