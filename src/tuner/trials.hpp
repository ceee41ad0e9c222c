#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"
#include "varmoe/error.hpp"

/// What the searches of a forward's and of a backward's configs share: measuring, what was learnt so far, how
/// a race is decided, and what is written down of its winner.
namespace varmoe::tuner {

template <class T>
bool contains(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}
template <class T>
void add_once(std::vector<T>& list, const T& value) {
  if (!contains(list, value)) list.push_back(value);
}
template <class T>
std::size_t place_of(const std::vector<T>& list, const T& value) {
  return static_cast<std::size_t>(std::find(list.begin(), list.end(), value) - list.begin());
}

/// The trials of one item. `Config` is LayerConfig or BackwardConfig, as the item's pass asks.
template <class Config>
class Trials {
 public:
  Trials(Measurer& measurer, const TuningItem& item, const SearchOptions& options)
      : measurer_(measurer), item_(item), options_(options) {}

  static const Config& config_of(const Trial& trial) {
    if constexpr (kBackward) {
      return trial.products;
    } else {
      return trial.config;
    }
  }

  /// How many go on from a race at least.
  std::size_t finalists() const { return std::max<std::size_t>(options_.finalists, 1); }

  double score(const Measurement& m) const {
    return (1 - options_.skew_weight) * m.us + options_.skew_weight * m.skewed_us;
  }
  /// The right trial of the least score, the first of equals; null without any.
  const Trial* best(const std::vector<Trial>& trials) const {
    const Trial* found = nullptr;
    for (const Trial& trial : trials) {
      if (!trial.failure.empty()) continue;
      if (found == nullptr || score(trial.measurement) < score(found->measurement)) found = &trial;
    }
    return found;
  }
  const Trial* best() const { return best(all_); }
  /// Whether the two differ by less than can be told from what was measured.
  bool tied(const Measurement& a, const Measurement& b) const {
    const double share = std::min(std::max(a.spread, b.spread), options_.max_tie);
    return std::abs(score(a) - score(b)) <= share * std::min(score(a), score(b));
  }
  /// Right trials alone, fastest first.
  void keep_right(std::vector<Trial>& trials) const {
    std::erase_if(trials, [](const Trial& t) { return !t.failure.empty(); });
    std::stable_sort(trials.begin(), trials.end(), [this](const Trial& a, const Trial& b) {
      return score(a.measurement) < score(b.measurement);
    });
  }
  bool is_wrong(const Config& config) const { return contains(wrong_, config); }

  /// Measures configs that were never found wrong, in requests of `batch` (0: one request), and keeps the
  /// trials.
  Result<std::vector<Trial>> measure(const std::vector<Config>& configs, Effort effort, std::size_t batch) {
    std::vector<Config> list;
    for (const Config& config : configs) {
      if (!is_wrong(config)) add_once(list, config);
    }
    std::vector<Trial> trials;
    if (batch == 0) batch = std::max<std::size_t>(list.size(), 1);
    for (std::size_t begin = 0; begin < list.size(); begin += batch) {
      if (options_.stop && options_.stop()) return {ErrorCode::cancelled, "the search was stopped"};
      const std::size_t end = std::min(begin + batch, list.size());
      const MeasureRequest request = request_of({list.data() + begin, list.data() + end}, effort);
      auto measured = measure_all(measurer_, request);
      if (!measured) return measured.error();
      for (std::size_t i = 0; i < request.count(); ++i) {
        Trial trial;
        if constexpr (kBackward) {
          trial.pass = TuningPass::backward;
          trial.products = list[begin + i];
        } else {
          trial.config = list[begin + i];
        }
        trial.effort = effort;
        trial.measurement = std::move((*measured)[i]);
        trial.failure = fault_of(trial.measurement);
        add_once(tried_, list[begin + i]);
        if (!trial.failure.empty()) {
          if (first_failure_.empty()) first_failure_ = trial.failure;
          add_once(wrong_, list[begin + i]);
        }
        if (options_.on_trial) options_.on_trial(trial);
        trials.push_back(std::move(trial));
      }
    }
    all_.insert(all_.end(), trials.begin(), trials.end());
    return trials;
  }
  Result<std::vector<Trial>> measure(const std::vector<Config>& configs, Effort effort) {
    return measure(configs, effort, std::max<std::size_t>(options_.batch, 1));
  }
  /// The same, onto a round.
  Status measure_more(std::vector<Trial>& round, const std::vector<Config>& configs, Effort effort) {
    auto more = measure(configs, effort);
    if (!more) return more.error();
    round.insert(round.end(), more->begin(), more->end());
    return {};
  }

  /// Of one kernel's configs `among`: the fastest by `us_of(trial)` in the right trials of a round, fastest
  /// first, in the order of `all` among equals. The share SearchOptions::keep of `racing` goes on, or the
  /// finalists. `kernel_of(trial)`: the kernel's config.
  template <class Kernel, class KernelOf, class UsOf>
  std::vector<Kernel> fastest(const std::vector<Trial>& round, const std::vector<Kernel>& among,
                              const std::vector<Kernel>& all, std::size_t racing, const KernelOf& kernel_of,
                              const UsOf& us_of) const {
    std::vector<std::tuple<double, std::size_t>> standings;
    for (const Kernel& config : among) {
      std::optional<double> us;
      for (const Trial& trial : round) {
        if (!trial.failure.empty() || kernel_of(trial) != config) continue;
        us = std::min(us.value_or(us_of(trial)), us_of(trial));
      }
      if (us) standings.emplace_back(*us, place_of(all, config));
    }
    std::sort(standings.begin(), standings.end());
    const double share = std::ceil(options_.keep * static_cast<double>(racing));
    const std::size_t kept = std::max(finalists(), static_cast<std::size_t>(share));
    if (standings.size() > kept) standings.resize(kept);
    std::vector<Kernel> result;
    for (const auto& [us, place] : standings) result.push_back(all[place]);
    return result;
  }

  /// Interleaved, in one request, in the order in which equals are taken (`order(config)`). After a failure
  /// the others were not interleaved as they should be: once more without it. Right trials alone.
  template <class Order>
  Result<std::vector<Trial>> confirm(std::vector<Config> finals, const Order& order) {
    std::sort(finals.begin(), finals.end(),
              [&](const Config& a, const Config& b) { return order(a) < order(b); });
    for (;;) {
      auto trials = measure(finals, Effort::final_, 0);
      if (!trials) return trials.error();
      const auto failed = std::erase_if(*trials, [](const Trial& t) { return !t.failure.empty(); });
      if (failed == 0 || trials->empty()) return trials;
    }
  }

  /// Of right trials in the order in which equals are taken: the fastest, or what equals it. The baseline, if
  /// it is there, stays unless it is beaten by min_improvement; `baseline_us` is then its time, else 0.
  const Trial& winner(const std::vector<Trial>& finals, const Config& baseline, double& baseline_us) const {
    const Trial& fastest = *best(finals);
    const Trial* winner = &*std::find_if(finals.begin(), finals.end(), [&](const Trial& t) {
      return tied(t.measurement, fastest.measurement);
    });
    baseline_us = 0;
    if (config_of(finals.front()) == baseline) {
      const Measurement& measured = finals.front().measurement;
      baseline_us = measured.us;
      if (score(winner->measurement) > (1 - options_.min_improvement) * score(measured))
        winner = &finals.front();
    }
    return *winner;
  }

  /// A winner and its record; `floor`: of the pass.
  SearchOutcome found(const Trial& winner, const model::Floor& floor, double baseline_us) const {
    const Measurement& m = winner.measurement;
    SearchOutcome result = counts();
    result.found = true;
    TuningRecord& record = result.record;
    record.key = item_.key;
    if constexpr (kBackward) {
      record.backward = winner.products;
      record.of_products = *m.products;
    } else {
      record.config = winner.config;
    }
    record.us = m.us;
    record.tflops = floor.flops / m.us * 1e-6;  // FLOP/µs are MFLOP/s
    record.bw = floor.bytes / m.us * 1e-3;      // bytes/µs are MB/s
    record.baseline_us = baseline_us;
    record.spread = m.spread;
    record.verified = m.verified;
    record.config_space = model::kConfigSpaceVersion;
    record.candidates = static_cast<std::int32_t>(result.tried);
    return result;
  }

  /// How many were tried, and where none was right, why.
  SearchOutcome counts() const {
    SearchOutcome result;
    result.tried = tried_.size();
    result.failed = wrong_.size();
    return result;
  }
  SearchOutcome nothing_found() const {
    SearchOutcome result = counts();
    result.failure = "none of " + std::to_string(tried_.size()) +
                     " configs was right; the first to fail: " + first_failure_;
    return result;
  }

 private:
  static constexpr bool kBackward = std::is_same_v<Config, BackwardConfig>;

  MeasureRequest request_of(std::vector<Config> configs, Effort effort) const {
    MeasureRequest request{item_.spec, item_.key.token, effort};
    if constexpr (kBackward) {
      request.pass = TuningPass::backward;
      request.gradient_type = item_.key.gradient_type;
      request.products = std::move(configs);
    } else {
      request.configs = std::move(configs);
    }
    return request;
  }

  Measurer& measurer_;
  const TuningItem& item_;
  const SearchOptions& options_;
  std::vector<Trial> all_;
  std::vector<Config> tried_, wrong_;
  std::string first_failure_;
};

}  // namespace varmoe::tuner
