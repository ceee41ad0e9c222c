#include "tools/tune/report_data.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/file_system.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "tools/tune/record_text.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tools {
namespace {

/// "…/nvidia-h200.json" → "…/nvidia-h200.jsonl", where the tuner puts its log of trials.
std::string trial_log_of(const std::string& record_file) {
  return record_file + "l";
}

std::optional<double> floor_us(const TuningKey& key) {
  const auto profile = model::find_profile(key.device.name);
  if (!profile) return std::nullopt;
  if (key.pass == TuningPass::backward) {
    const std::int64_t bytes = key.gradient_type == GradientType::fp32 ? 4 : 2;
    return model::backward_floor(layer_spec_of(key), key.token, *profile, bytes).seconds * 1e6;
  }
  return model::layer_floor(layer_spec_of(key), key.token, *profile).seconds * 1e6;
}

}  // namespace

ReportData collect_report(const tuningdb::TuningSources& sources,
                          const std::vector<std::string>& trial_logs) {
  ReportData data;
  tuningdb::Layers layers = tuningdb::read_layers(posix_file_system(), sources);
  data.problems = std::move(layers.problems);
  std::set<std::string> logs(trial_logs.begin(), trial_logs.end());
  std::map<std::string, ReportBucket> best;  // by sort_key: a layer's buckets lie side by side, ascending
  for (const tuningdb::LayerFile& file : layers.files) {
    const tuningdb::Layer& layer = layers.layers[file.layer];
    if (layer.kind != tuningdb::LayerKind::shipped) logs.insert(trial_log_of(file.path));
    for (const auto& stored : file.contents.records) {
      const TuningRecord& record = stored.record;
      auto [at, is_new] = best.try_emplace(tuningdb::sort_key(record.key));
      if (!is_new && !tuningdb::better(record, at->second.record)) continue;
      at->second = {record,
                    fmt::format("{} ({})", file.path, layer.text()),
                    tuningdb::staleness(record),
                    floor_us(record.key),
                    {}};
    }
  }
  std::map<std::string, std::vector<LoggedTrial>> trials;
  for (const std::string& log : logs) {
    auto read = read_trials(log);
    if (!read) {
      data.problems.push_back(read.error().message());
      continue;
    }
    for (auto& [key, list] : *read) trials[key].insert(trials[key].end(), list.begin(), list.end());
  }
  for (auto& [key, bucket] : best) {
    if (const auto found = trials.find(key_digest(bucket.record.key)); found != trials.end())
      bucket.trials = found->second;
    const TuningKey& k = bucket.record.key;
    std::string name = layer_text(k);
    if (k.fc1_layout != WeightLayout::nk || k.fc2_layout != WeightLayout::nk)
      name += fmt::format(", weights {} and {}", to_string(k.fc1_layout), to_string(k.fc2_layout));
    if (k.pass == TuningPass::backward) name += ", " + pass_text(k);
    if (data.layers.empty() || data.layers.back().device != k.device.name || data.layers.back().layer != name)
      data.layers.push_back({k.device.name, name, {}});
    data.layers.back().buckets.push_back(std::move(bucket));
  }
  return data;
}

}  // namespace varmoe::tools
