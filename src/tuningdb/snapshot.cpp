#include "tuningdb/snapshot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <map>

#include "model/config_space.hpp"
#include "model/gradient_config.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tuningdb {
namespace {

struct Entry {
  std::shared_ptr<const TuningRecord> record;
  std::size_t layer = 0, file = 0;
  std::string stale;  ///< why; empty: fresh
};

/// What a record must have in common with the question to be considered at all.
std::string group_of(TuningKey key) {
  key.token = 1;
  key.device.name.clear();
  key.device.cu_num = 0;
  for (WidthClass& c : key.inter_dim) c.count = 0;
  return sort_key(key);
}

/// An entry, and how well it fits the question.
struct Candidate {
  const Entry* entry = nullptr;
  std::array<MatchQuality, 4> judgements{};  ///< worst first
  std::int64_t count_distance = 0;
};

MatchQuality judge_device(const TuningDevice& device, const model::DeviceProfile& asked) {
  if (is_device(device, asked)) return MatchQuality::exact;
  return device.cu_num == asked.sm_count ? MatchQuality::same_device_class : MatchQuality::same_arch;
}

/// Nothing when the record is too far from the question. Both are of one group.
std::optional<Candidate> judge(const Entry& entry, const TuningKey& asked,
                               const model::DeviceProfile& device) {
  const TuningKey& key = entry.record->key;
  Candidate candidate;
  candidate.entry = &entry;
  MatchQuality bucket = MatchQuality::exact;
  if (key.token != asked.token) {
    if (key.token != 2 * asked.token && 2 * key.token != asked.token) return std::nullopt;
    bucket = MatchQuality::near_bucket;
  }
  for (std::size_t i = 0; i < asked.inter_dim.size(); ++i) {
    candidate.count_distance += std::abs(key.inter_dim[i].count - asked.inter_dim[i].count);
  }
  candidate.judgements = {bucket,
                          candidate.count_distance == 0 ? MatchQuality::exact : MatchQuality::near_widths,
                          entry.stale.empty() ? MatchQuality::exact : MatchQuality::stale_epoch,
                          judge_device(key.device, device)};
  std::sort(candidate.judgements.begin(), candidate.judgements.end(), std::greater<>());
  return candidate;
}

bool fits_better(const Candidate& a, const Candidate& b) {
  if (a.judgements != b.judgements) return a.judgements < b.judgements;
  if (a.entry->layer != b.entry->layer) return a.entry->layer < b.entry->layer;
  const TuningRecord &x = *a.entry->record, &y = *b.entry->record;
  if (x.key.token != y.key.token) return x.key.token > y.key.token;
  if (a.count_distance != b.count_distance) return a.count_distance < b.count_distance;
  return better(x, y);
}

/// Exact but for its epochs.
bool only_stale(const Candidate& c) {
  return c.judgements[0] == MatchQuality::stale_epoch && c.judgements[1] == MatchQuality::exact;
}

}  // namespace

struct TuningSnapshot::State {
  std::vector<Layer> layers;
  std::vector<std::string> files;
  std::map<std::string, std::vector<Entry>> groups;
  std::vector<std::string> problems;
  std::size_t size = 0;
  Log log;
};

TuningSnapshot TuningSnapshot::load(const TuningSources& sources, const Log& log,
                                    const model::DeviceProfile* own, FileSystem* fs) {
  Layers read = read_layers(fs != nullptr ? *fs : posix_file_system(), sources);
  auto state = std::make_shared<State>();
  state->log = log;
  state->problems = std::move(read.problems);
  for (LayerFile& file : read.files) {
    std::size_t outside = 0;
    for (StoredRecord& stored : file.contents.records) {
      if (Status sound = check_config(stored.record, own); !sound) {
        if (++outside > kMaxProblems) continue;
        state->problems.push_back(fmt::format("{}: the record of {} is not used: {}", file.path,
                                              to_string(stored.record.key), sound.error().message()));
        continue;
      }
      Entry entry{
          std::make_shared<TuningRecord>(std::move(stored.record)), file.layer, state->files.size(), {}};
      entry.stale = staleness(*entry.record);
      state->groups[group_of(entry.record->key)].push_back(std::move(entry));
      ++state->size;
    }
    if (outside > kMaxProblems) {
      state->problems.push_back(fmt::format("{}: {} more records outside the config space are not used",
                                            file.path, outside - kMaxProblems));
    }
    state->files.push_back(std::move(file.path));
  }
  state->layers = std::move(read.layers);
  for (const std::string& problem : state->problems) log.once("tuningdb:" + problem, LogLevel::warn, problem);
  return TuningSnapshot(std::move(state));
}

std::optional<TunedMatch> TuningSnapshot::find(const LayerSpec& spec, const model::DeviceProfile& device,
                                               std::int64_t tokens) const {
  if (state_ == nullptr) return std::nullopt;
  return match(make_tuning_key(spec, tuning_device(device), tokens), spec, device);
}

std::optional<TunedMatch> TuningSnapshot::find_backward(const LayerSpec& spec,
                                                        const model::DeviceProfile& device,
                                                        std::int64_t tokens,
                                                        GradientType gradient_type) const {
  if (state_ == nullptr) return std::nullopt;
  return match(make_backward_tuning_key(spec, tuning_device(device), tokens, gradient_type), spec, device);
}

std::optional<TunedMatch> TuningSnapshot::match(const TuningKey& asked, const LayerSpec& spec,
                                                const model::DeviceProfile& device) const {
  const auto group = state_->groups.find(group_of(asked));
  if (group == state_->groups.end()) return std::nullopt;
  std::vector<Candidate> candidates;
  for (const Entry& entry : group->second) {
    if (auto candidate = judge(entry, asked, device)) candidates.push_back(*candidate);
  }
  std::sort(candidates.begin(), candidates.end(), fits_better);

  const auto place = [this](const Entry& entry) {
    return fmt::format("{} ({})", state_->files[entry.file], state_->layers[entry.layer].text());
  };
  for (const Candidate& candidate : candidates) {
    const Entry& entry = *candidate.entry;
    const std::string key = to_string(entry.record->key);
    const Status sound = asked.pass == TuningPass::backward
                             ? model::check_backward_config(spec, entry.record->backward, device)
                             : model::check_layer_config(spec, entry.record->config, device);
    if (!sound) {
      const std::string text = fmt::format("{}: the record of {} is not used on {}: {}", place(entry), key,
                                           device.name, sound.error().message());
      state_->log.once("tuningdb:" + text, LogLevel::warn, text);
      continue;
    }
    for (const Candidate& other : candidates) {
      if (!entry.stale.empty() || !only_stale(other) || other.entry->layer >= entry.layer) continue;
      const std::string text = fmt::format(
          "{}: the record of {} is passed over: {}. The one of {} is used; tune again to replace it",
          place(*other.entry), to_string(other.entry->record->key), other.entry->stale, place(entry));
      state_->log.once("tuningdb:" + text, LogLevel::warn, text);
    }
    return TunedMatch{entry.record->config,
                      entry.record->backward,
                      candidate.judgements[0],
                      state_->layers[entry.layer].text(),
                      state_->files[entry.file],
                      key,
                      entry.record};
  }
  return std::nullopt;
}

const std::vector<std::string>& TuningSnapshot::problems() const noexcept {
  static const std::vector<std::string> none;
  return state_ == nullptr ? none : state_->problems;
}

std::string TuningSnapshot::searched() const {
  std::string text;
  if (state_ == nullptr) return text;
  for (const Layer& layer : state_->layers) text += (text.empty() ? "" : ", ") + layer.text();
  return text;
}

std::size_t TuningSnapshot::size() const noexcept {
  return state_ == nullptr ? 0 : state_->size;
}

}  // namespace varmoe::tuningdb
