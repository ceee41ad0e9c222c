#include "tuner/backward_search.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "model/backward_layer.hpp"
#include "model/cost_model.hpp"
#include "model/gradient_config.hpp"
#include "tuner/trials.hpp"

namespace varmoe::tuner {
namespace {

using model::GemmStage;

/// How the products read rows of x and dout.
enum class Reading : std::uint8_t { gathered, copied };
constexpr Reading kReadings[] = {Reading::gathered, Reading::copied};

/// Candidates of one product, and what is still in the race.
template <class Config>
struct Product {
  Config BackwardConfig::*config;
  double BackwardFigures::*us;
  std::vector<Config> all;                  ///< in the order that decides ties
  std::array<std::vector<Config>, 2> left;  ///< by reading; best first, once a round has been run

  std::vector<Config>& of(Reading reading) { return left[static_cast<std::size_t>(reading)]; }
  const std::vector<Config>& of(Reading reading) const { return left[static_cast<std::size_t>(reading)]; }
};

class BackwardSearch {
  /// The order in which equals are taken.
  auto order(const BackwardConfig& c) const {
    return std::tuple(!(c == baseline_), place_of(dh_.all, c.dh), place_of(dx_.all, c.dx),
                      place_of(fc1_gradient_.all, c.fc1_gradient),
                      place_of(fc2_gradient_.all, c.fc2_gradient));
  }

 public:
  BackwardSearch(Measurer& measurer, const TuningItem& item, const model::DeviceProfile& device,
                 const SearchOptions& options)
      : item_(item), device_(device), options_(options), trials_(measurer, item, options) {}

  Result<SearchOutcome> run() {
    collect_candidates();
    if (Status status = halve(); !status) return status.error();
    if (trials_.best() == nullptr) return trials_.nothing_found();
    auto finals = together();
    if (!finals) return finals.error();
    auto confirmed =
        trials_.confirm(*std::move(finals), [this](const BackwardConfig& c) { return order(c); });
    if (!confirmed) return confirmed.error();
    if (trials_.best(*confirmed) == nullptr) return trials_.nothing_found();
    return outcome(*confirmed);
  }

 private:
  const LayerSpec& spec() const { return item_.spec; }
  std::int64_t bucket() const { return item_.key.token; }
  bool sound(const BackwardConfig& config) const {
    return model::check_backward_config(spec(), config, device_).ok();
  }
  void each_product(const auto& visit) {
    visit(dh_);
    visit(dx_);
    visit(fc1_gradient_);
    visit(fc2_gradient_);
  }
  void each_product(const auto& visit) const {
    visit(dh_);
    visit(dx_);
    visit(fc1_gradient_);
    visit(fc2_gradient_);
  }

  /// dx reads neither x nor dout: it races beside the first reading.
  static Reading reading_of(const GemmConfig& config, bool is_dx) {
    return !is_dx && config.gather == GatherMode::copy ? Reading::copied : Reading::gathered;
  }
  static Reading reading_of(const GradientConfig& config, bool) {
    return model::reads_copies(config) ? Reading::copied : Reading::gathered;
  }
  template <class Config>
  bool is_dx(const Product<Config>& product) const {
    return static_cast<const void*>(&product) == &dx_;
  }

  void collect_candidates() {
    const LayerSpec back = model::backward_layer(spec()), down = model::backward_down_layer(spec());
    baseline_ = model::predict_products(spec(), bucket(), device_);
    whole_ = {baseline_};
    for (const BackwardConfig& hint : options_.backward_hints) {
      if (sound(hint)) add_once(whole_, hint);
    }
    each_product([this](auto& product) {
      for (const BackwardConfig& config : whole_) add_once(product.all, config.*product.config);
    });
    const auto add = [this](auto& product, auto config) {
      BackwardConfig probe = baseline_;
      probe.*product.config = config;
      if (sound(model::with_copies(probe))) add_once(product.all, config);
    };
    const CandidateLimits& limits = options_.candidates;
    for (const GemmConfig& config : ranked_candidates(back, GemmStage::fc1, bucket(), device_, limits)) {
      // Of each tile both ways of reading, whichever the cost model would take.
      for (const GatherMode gather :
           {config.gather, config.gather == GatherMode::copy ? GatherMode::fused : GatherMode::copy}) {
        GemmConfig other = config;
        other.gather = gather;
        if (gather == GatherMode::fused || has_copies()) add_fc1(back, other);
      }
    }
    for (const GemmConfig& config : ranked_candidates(down, GemmStage::fc2, bucket(), device_, limits))
      add(dx_, config);
    for (const GradientConfig& config : ranked_gradients(spec(), GemmStage::fc1, device_, limits))
      add(fc1_gradient_, config);
    for (const GradientConfig& config : ranked_gradients(spec(), GemmStage::fc2, device_, limits))
      add(fc2_gradient_, config);
    each_product([this](auto& product) {
      for (const auto& config : product.all) product.of(reading_of(config, is_dx(product))).push_back(config);
    });
  }
  void add_fc1(const LayerSpec& back, const GemmConfig& config) {
    if (model::check_dh_config(back, config, device_)) add_once(dh_.all, config);
  }
  bool has_copies() const { return device_.compute_major == 9; }

  /// Configs in which each product that is left comes up at least once, as few as may be: `first`, then of
  /// each reading the i-th of each product side by side. Where a list has ended, its best stands in; where it
  /// has nothing at all, base's.
  std::vector<BackwardConfig> rows(const BackwardConfig& base, std::vector<BackwardConfig> first) const {
    std::vector<BackwardConfig> result = std::move(first);
    for (const Reading reading : kReadings) {
      BackwardConfig stand_in = base;
      each_product([&](const auto& product) {
        const auto& left = product.of(is_dx(product) ? Reading::gathered : reading);
        if (!left.empty()) stand_in.*product.config = left.front();
      });
      const auto dh = missing_of(dh_, reading, result);
      const auto dx = missing_of(dx_, reading, result);
      const auto fc1 = missing_of(fc1_gradient_, reading, result);
      const auto fc2 = missing_of(fc2_gradient_, reading, result);
      const std::size_t most = std::max({dh.size(), dx.size(), fc1.size(), fc2.size()});
      for (std::size_t i = 0; i < most; ++i) {
        BackwardConfig row = stand_in;
        if (i < dh.size()) row.dh = dh[i];
        if (i < dx.size()) row.dx = dx[i];
        if (i < fc1.size()) row.fc1_gradient = fc1[i];
        if (i < fc2.size()) row.fc2_gradient = fc2[i];
        row = model::with_copies(row);
        if (sound(row) && !trials_.is_wrong(row)) add_once(result, row);
      }
    }
    return result;
  }
  template <class Config>
  std::vector<Config> missing_of(const Product<Config>& product, Reading reading,
                                 const std::vector<BackwardConfig>& rows) const {
    std::vector<Config> list;
    for (const Config& config : product.of(reading)) {
      if (std::none_of(rows.begin(), rows.end(),
                       [&](const BackwardConfig& row) { return row.*product.config == config; }))
        list.push_back(config);
    }
    return list;
  }

  /// A trial fails as a whole, though three products of it may be sound: each that was never right is tried
  /// beside three that were.
  Status second_chances(std::vector<Trial>& round, Effort effort) {
    const Trial* good = trials_.best(round);
    if (good == nullptr) return {};
    std::vector<BackwardConfig> again;
    for (const Trial& trial : round) {
      if (trial.failure.empty()) continue;
      each_product([&](const auto& product) {
        const auto& config = trial.products.*product.config;
        const bool was_right = std::any_of(round.begin(), round.end(), [&](const Trial& t) {
          return t.failure.empty() && t.products.*product.config == config;
        });
        if (was_right) return;
        BackwardConfig one = good->products;
        one.*product.config = config;
        one = model::with_copies(one);
        if (sound(one)) add_once(again, one);
      });
    }
    return trials_.measure_more(round, again, effort);
  }

  /// Leaves the fastest configs of a round of each reading, fastest first, the order of candidates among
  /// equals.
  template <class Config>
  void rank(Product<Config>& product, const std::vector<Trial>& round) const {
    for (const Reading reading : kReadings) {
      std::vector<Config>& left = product.of(reading);
      left = trials_.fastest(
          round, left, product.all, left.size(),
          [&](const Trial& trial) { return trial.products.*product.config; },
          [&](const Trial& trial) { return (*trial.measurement.products).*product.us; });
    }
  }

  std::size_t still_racing() const {
    std::size_t count = 0;
    each_product([&](const auto& product) { count += product.left[0].size() + product.left[1].size(); });
    return count;
  }

  Status halve() {
    Effort effort = Effort::quick;
    for (;;) {
      const std::size_t before = still_racing();
      const Trial* good = trials_.best();
      const BackwardConfig base = good == nullptr ? baseline_ : good->products;
      auto round = trials_.measure(
          rows(base, effort == Effort::quick ? whole_ : std::vector<BackwardConfig>()), effort);
      if (!round) return round.error();
      if (Status status = second_chances(*round, effort); !status) return status;
      each_product([&](auto& product) { rank(product, *round); });
      bool few = true;
      each_product([&](const auto& product) {
        for (const auto& left : product.left) few = few && left.size() <= trials_.finalists();
      });
      if (few || still_racing() >= before) return {};
      effort = Effort::normal;
    }
  }

  /// The best of each product where dh, fc1_gradient and fc2_gradient read rows so; nothing where a product
  /// has none left.
  std::optional<BackwardConfig> leaders(Reading dh, Reading fc1, Reading fc2) const {
    if (dh_.of(dh).empty() || dx_.of(Reading::gathered).empty() || fc1_gradient_.of(fc1).empty() ||
        fc2_gradient_.of(fc2).empty())
      return std::nullopt;
    BackwardConfig config{dh_.of(dh).front(), dx_.of(Reading::gathered).front(),
                          fc1_gradient_.of(fc1).front(), fc2_gradient_.of(fc2).front()};
    config = model::with_copies(config);
    if (!sound(config)) return std::nullopt;
    return config;
  }

  /// What to measure at the end, after a round by the time of the whole pass.
  Result<std::vector<BackwardConfig>> together() {
    std::vector<BackwardConfig> configs = whole_;
    for (const Reading dh : kReadings) {
      for (const Reading fc1 : kReadings) {
        for (const Reading fc2 : kReadings) {
          const bool copies = fc1 == Reading::copied || fc2 == Reading::copied;
          // dh reads the copy where there is one; a copy for dh alone is one of its candidates.
          if (copies && dh == Reading::gathered) continue;
          if (const auto config = leaders(dh, fc1, fc2)) add_once(configs, *config);
        }
      }
    }
    for (const Reading reading : kReadings) {
      const auto base = leaders(reading, reading, reading);
      if (!base) continue;
      each_product([&](const auto& product) {
        const auto& left = product.of(is_dx(product) ? Reading::gathered : reading);
        for (std::size_t i = 1; i < left.size() && i < trials_.finalists(); ++i) {
          BackwardConfig config = *base;
          config.*product.config = left[i];
          config = model::with_copies(config);
          if (sound(config)) add_once(configs, config);
        }
      });
    }
    // The winner so far is right for certain.
    if (const Trial* good = trials_.best()) add_once(configs, good->products);
    auto trials = trials_.measure(configs, Effort::normal);
    if (!trials) return trials.error();
    const std::vector<Trial> in_order = *trials;
    trials_.keep_right(*trials);
    std::vector<BackwardConfig> finals = {baseline_};
    if (trials->empty()) return finals;
    for (std::size_t i = 0; i < std::min(trials->size(), trials_.finalists()); ++i)
      add_once(finals, (*trials)[i].products);
    add_once(finals, improved(trials->front(), in_order));
    return finals;
  }

  /// The fastest with every product that another trial changed for the better, against a trial that differs
  /// from it in this product alone.
  BackwardConfig improved(const Trial& fastest, const std::vector<Trial>& trials) const {
    BackwardConfig result = fastest.products;
    each_product([&](const auto& product) {
      double most = 0;
      for (const Trial& one : trials) {
        for (const Trial& other : trials) {
          if (!one.failure.empty() || !other.failure.empty()) continue;
          BackwardConfig changed = other.products;
          changed.*product.config = one.products.*product.config;
          const double gain = trials_.score(other.measurement) - trials_.score(one.measurement);
          if (changed != one.products || gain <= most || trials_.tied(one.measurement, other.measurement))
            continue;
          BackwardConfig candidate = result;
          candidate.*product.config = one.products.*product.config;
          if (model::with_copies(candidate) != candidate || !sound(candidate)) continue;
          most = gain;
          result = candidate;
        }
      }
    });
    return result;
  }

  SearchOutcome outcome(const std::vector<Trial>& finals) const {
    double baseline_us = 0;
    const Trial& winner = trials_.winner(finals, baseline_, baseline_us);
    const std::int64_t gradient_bytes = item_.key.gradient_type == GradientType::fp32 ? 4 : 2;
    return trials_.found(winner, model::backward_floor(spec(), bucket(), device_, gradient_bytes),
                         baseline_us);
  }

  const TuningItem& item_;
  const model::DeviceProfile& device_;
  const SearchOptions& options_;
  BackwardConfig baseline_;
  std::vector<BackwardConfig> whole_;  ///< the baseline and the hints
  Product<GemmConfig> dh_{&BackwardConfig::dh, &BackwardFigures::us_dh, {}, {}},
      dx_{&BackwardConfig::dx, &BackwardFigures::us_dx, {}, {}};
  Product<GradientConfig> fc1_gradient_{
      &BackwardConfig::fc1_gradient, &BackwardFigures::us_fc1_gradient, {}, {}},
      fc2_gradient_{&BackwardConfig::fc2_gradient, &BackwardFigures::us_fc2_gradient, {}, {}};
  Trials<BackwardConfig> trials_;
};

}  // namespace

Result<SearchOutcome> search_backward(Measurer& measurer, const TuningItem& item,
                                      const model::DeviceProfile& device, const SearchOptions& options) {
  return BackwardSearch(measurer, item, device, options).run();
}

}  // namespace varmoe::tuner
