#include "tuner/search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/token_bucket.hpp"
#include "tuner/backward_search.hpp"
#include "tuner/trials.hpp"

namespace varmoe::tuner {
namespace {

using model::GemmStage;

/// One of the two GEMMs of a layer: where its config and its time lie, and what is still in the race.
struct Gemm {
  GemmConfig LayerConfig::*config;
  double Measurement::*us;
  std::vector<GemmConfig> all;   ///< in the order that decides ties
  std::vector<GemmConfig> left;  ///< best first, once a round has been run
};

class Search {
  /// The order in which equals are taken.
  auto order(const LayerConfig& c) const {
    return std::tuple(!(c == baseline_), place_of(fc1_.all, c.fc1), place_of(fc2_.all, c.fc2),
                      c.sort.block_threads, c.sort.single_block_rows, c.gather.block_threads,
                      c.combine.block_threads, c.one_launch.max_tokens, c.one_launch.teams);
  }

 public:
  Search(Measurer& measurer, const TuningItem& item, const model::DeviceProfile& device,
         const SearchOptions& options)
      : item_(item), device_(device), options_(options), trials_(measurer, item, options) {}

  Result<SearchOutcome> run() {
    collect_candidates();
    if (Status status = halve(); !status) return status.error();
    if (trials_.best() == nullptr) return trials_.nothing_found();
    auto leaders = together();
    if (!leaders) return leaders.error();
    if (leaders->empty()) return trials_.nothing_found();
    auto finals = with_block_sizes(*std::move(leaders));
    if (!finals) return finals.error();
    auto confirmed = trials_.confirm(*std::move(finals), [this](const LayerConfig& c) { return order(c); });
    if (!confirmed) return confirmed.error();
    if (trials_.best(*confirmed) == nullptr) return trials_.nothing_found();
    return outcome(*confirmed);
  }

 private:
  const LayerSpec& spec() const { return item_.spec; }
  std::int64_t bucket() const { return item_.key.token; }
  bool sound(const LayerConfig& config) const {
    return model::check_layer_config(spec(), config, device_).ok();
  }

  void collect_candidates() {
    baseline_ = model::predict_layer_config(spec(), bucket(), device_);
    // GEMMs are judged in the kernels one by one; the whole layer in one launch meets the best of those
    // later.
    whole_ = {one_by_one(baseline_)};
    for (const LayerConfig& hint : options_.hints) {
      if (sound(hint)) add_once(whole_, one_by_one(hint));
    }
    for (Gemm* gemm : {&fc1_, &fc2_}) {
      for (const LayerConfig& config : whole_) add_once(gemm->all, config.*gemm->config);
      const GemmStage stage = gemm == &fc1_ ? GemmStage::fc1 : GemmStage::fc2;
      for (const GemmConfig& config :
           ranked_candidates(spec(), stage, bucket(), device_, options_.candidates))
        add_once(gemm->all, config);
      gemm->left = gemm->all;
    }
  }

  static LayerConfig one_by_one(LayerConfig config) {
    config.one_launch = {};
    return config;
  }

  LayerConfig with(LayerConfig base, const GemmConfig& fc1, const GemmConfig& fc2) const {
    base.fc1 = fc1;
    base.fc2 = fc2;
    return one_by_one(base);
  }

  /// Configs in which each GEMM that is left comes up at least once, as few as may be: `first`, then fc1's
  /// i-th beside fc2's i-th. Where two do not go together, or failed together, or one list has ended, the
  /// partner is one of base's.
  std::vector<LayerConfig> pairs(const LayerConfig& base, std::vector<LayerConfig> first) const {
    std::vector<LayerConfig> result = std::move(first);
    const auto missing = [&result](const Gemm& gemm) {
      std::vector<GemmConfig> list;
      for (const GemmConfig& config : gemm.left) {
        if (std::none_of(result.begin(), result.end(),
                         [&](const LayerConfig& c) { return c.*gemm.config == config; }))
          list.push_back(config);
      }
      return list;
    };
    const std::vector<GemmConfig> fc1 = missing(fc1_), fc2 = missing(fc2_);
    const auto add = [&](const GemmConfig& a, const GemmConfig& b) {
      const LayerConfig config = with(base, a, b);
      if (!sound(config) || trials_.is_wrong(config)) return false;
      add_once(result, config);
      return true;
    };
    for (std::size_t i = 0; i < std::max(fc1.size(), fc2.size()); ++i) {
      if (i < fc1.size() && i < fc2.size() && add(fc1[i], fc2[i])) continue;
      if (i < fc1.size()) beside_any(fc2_, base.fc2, [&](const GemmConfig& b) { return add(fc1[i], b); });
      if (i < fc2.size()) beside_any(fc1_, base.fc1, [&](const GemmConfig& a) { return add(a, fc2[i]); });
    }
    return result;
  }
  /// Offers `preferred`, then the others of the GEMM, until one is taken.
  static void beside_any(const Gemm& gemm, const GemmConfig& preferred, const auto& take) {
    if (take(preferred)) return;
    for (const GemmConfig& config : gemm.left) {
      if (take(config)) return;
    }
  }

  static bool was_right(const std::vector<Trial>& trials, const Gemm& gemm, const GemmConfig& config) {
    return std::any_of(trials.begin(), trials.end(),
                       [&](const Trial& t) { return t.failure.empty() && t.config.*gemm.config == config; });
  }

  /// A pair fails as a whole, though one GEMM of it may be sound: each that was never right is tried beside
  /// one that was.
  Status second_chances(std::vector<Trial>& round, Effort effort) {
    const Trial* good = trials_.best(round);
    if (good == nullptr) return {};
    std::vector<LayerConfig> again;
    for (const Trial& trial : round) {
      if (trial.failure.empty()) continue;
      for (const Gemm* gemm : {&fc1_, &fc2_}) {
        if (was_right(round, *gemm, trial.config.*gemm->config)) continue;
        LayerConfig config = good->config;
        config.*gemm->config = trial.config.*gemm->config;
        if (sound(config)) again.push_back(config);
      }
    }
    return trials_.measure_more(round, again, effort);
  }

  /// Leaves the GEMM's fastest configs of a round, fastest first, the order of candidates among equals.
  void rank(Gemm& gemm, const std::vector<Trial>& round) const {
    gemm.left = trials_.fastest(
        round, gemm.all, gemm.all, gemm.left.size(),
        [&](const Trial& trial) { return trial.config.*gemm.config; },
        [&](const Trial& trial) { return trial.measurement.*gemm.us; });
  }

  /// Successive halving of fc1's and fc2's configs, each judged by its own time.
  Status halve() {
    Effort effort = Effort::quick;
    for (;;) {
      const std::size_t before = fc1_.left.size() + fc2_.left.size();
      const Trial* good = trials_.best();
      const LayerConfig base = good == nullptr ? baseline_ : good->config;
      auto round =
          trials_.measure(pairs(base, effort == Effort::quick ? whole_ : std::vector<LayerConfig>()), effort);
      if (!round) return round.error();
      if (Status status = second_chances(*round, effort); !status) return status;
      for (Gemm* gemm : {&fc1_, &fc2_}) rank(*gemm, *round);
      const std::size_t after = fc1_.left.size() + fc2_.left.size();
      const std::size_t most = trials_.finalists();
      const bool few = fc1_.left.size() <= most && fc2_.left.size() <= most;
      if (few || after >= before) return {};
      effort = Effort::normal;
    }
  }

  /// Trials of the best GEMMs together, beside the whole configs, fastest first; wrong ones left out.
  Result<std::vector<Trial>> together() {
    std::vector<LayerConfig> configs = whole_;
    for (const GemmConfig& a : fc1_.left) {
      for (const GemmConfig& b : fc2_.left) {
        const LayerConfig config = with(baseline_, a, b);
        if (sound(config)) configs.push_back(config);
      }
    }
    // The winner so far is right for certain, whatever its GEMMs are worth beside others.
    if (const Trial* good = trials_.best()) configs.push_back(good->config);
    auto trials = trials_.measure(configs, Effort::normal);
    if (!trials) return trials.error();
    trials_.keep_right(*trials);
    return trials;
  }

  /// What to measure at the end: the baseline, the leaders, and the first leader with the best block sizes
  /// around it.
  Result<std::vector<LayerConfig>> with_block_sizes(std::vector<Trial> leaders) {
    std::vector<LayerConfig> finals = {baseline_};
    for (std::size_t i = 0; i < std::min(leaders.size(), trials_.finalists()); ++i)
      add_once(finals, leaders[i].config);
    const LayerConfig& leader = leaders.front().config;
    const BlockVariants variants = block_variants(spec(), bucket(), leader);
    std::vector<LayerConfig> configs = {leader};
    for (const auto* list : {&variants.sort, &variants.gather, &variants.combine, &variants.one_launch})
      configs.insert(configs.end(), list->begin(), list->end());
    std::erase_if(configs, [this](const LayerConfig& c) { return !sound(c); });
    auto trials = trials_.measure(configs, Effort::normal);
    if (!trials) return trials.error();
    const Trial* of_leader = nullptr;
    for (const Trial& trial : *trials) {
      if (trial.failure.empty() && trial.config == leader) of_leader = &trial;
    }
    if (of_leader == nullptr) return finals;
    LayerConfig improved = leader;
    const auto improve = [&](const std::vector<LayerConfig>& list, auto LayerConfig::*kernel) {
      const Trial* fastest = of_leader;
      for (const Trial& trial : *trials) {
        if (!trial.failure.empty() || !contains(list, trial.config)) continue;
        if (trials_.score(trial.measurement) < trials_.score(fastest->measurement) &&
            !trials_.tied(trial.measurement, of_leader->measurement))
          fastest = &trial;
      }
      improved.*kernel = fastest->config.*kernel;
    };
    improve(variants.sort, &LayerConfig::sort);
    improve(variants.gather, &LayerConfig::gather);
    improve(variants.combine, &LayerConfig::combine);
    improve(variants.one_launch, &LayerConfig::one_launch);
    add_once(finals, improved);
    return finals;
  }

  /// `finals`: right, in the order in which equals are taken, at least one.
  SearchOutcome outcome(const std::vector<Trial>& finals) const {
    double baseline_us = 0;
    const Trial& winner = trials_.winner(finals, baseline_, baseline_us);
    const Measurement& m = winner.measurement;
    SearchOutcome result = trials_.found(winner, model::layer_floor(spec(), bucket(), device_), baseline_us);
    TuningRecord& record = result.record;
    // One launch for the layer has neither a time of fc1 nor an h to compare.
    const bool apart = item_.key.token > winner.config.one_launch.max_tokens;
    record.us1 = apart ? m.fc1_us : 0;
    record.us2 = apart ? m.fc2_us : 0;
    record.err1 = apart ? m.err1 : 0;
    record.err2 = m.err2;
    return result;
  }

  const TuningItem& item_;
  const model::DeviceProfile& device_;
  const SearchOptions& options_;
  LayerConfig baseline_;
  std::vector<LayerConfig> whole_;  ///< the baseline and the hints
  Gemm fc1_{&LayerConfig::fc1, &Measurement::fc1_us, {}, {}},
      fc2_{&LayerConfig::fc2, &Measurement::fc2_us, {}, {}};
  Trials<LayerConfig> trials_;
};

}  // namespace

Result<SearchOutcome> search_item(Measurer& measurer, const TuningItem& item,
                                  const model::DeviceProfile& device, const SearchOptions& options) {
  if (Status status = item.spec.validate(); !status)
    return {ErrorCode::invalid_argument, status.error().message()};
  if (item.key.token < 1 || model::bucket_of(item.key.token) != item.key.token) {
    return {ErrorCode::invalid_argument,
            fmt::format("token is {}; must be a bucket: a power of two", item.key.token)};
  }
  if (item.key.pass == TuningPass::backward) return search_backward(measurer, item, device, options);
  return Search(measurer, item, device, options).run();
}

}  // namespace varmoe::tuner
