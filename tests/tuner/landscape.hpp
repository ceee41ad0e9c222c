#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "model/gradient_config.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"

/// Layers, keys and a Measurer double: times that are a function of the config.
namespace varmoe::test {

inline const model::DeviceProfile& h200() {
  static const model::DeviceProfile profile = [] {
    auto found = model::find_profile("h200");
    REQUIRE(found.ok());
    return *found;
  }();
  return profile;
}

/// Every pair of its GEMM configs goes together: its width is a multiple of 64.
inline const LayerSpec kUniform = uniform_spec(2048, 128, 768, 8);

inline TuningKey key_of(const LayerSpec& spec, std::int64_t bucket) {
  TuningKey key;
  key.device = {"sm_90a", 132, "NVIDIA H200"};
  key.token = bucket;
  key.model_dim = spec.hidden_size;
  key.inter_dim = width_classes(spec);
  key.expert = spec.num_experts();
  key.topk = spec.top_k;
  key.act_type = spec.activation;
  return key;
}
inline tuner::TuningItem item_of(const LayerSpec& spec, std::int64_t bucket) {
  return {spec, key_of(spec, bucket)};
}

/// A right measurement.
inline tuner::Measurement figures(double fc1_us, double fc2_us, double rest_us = 10) {
  tuner::Measurement m;
  m.fc1_us = fc1_us;
  m.fc2_us = fc2_us;
  m.us = fc1_us + fc2_us + rest_us;
  m.skewed_us = 1.25 * m.us;
  m.spread = 0.002;
  m.verified = true;
  return m;
}

/// From 0 to 1, the same for the same config.
inline double share_of(const GemmConfig& config, std::uint64_t seed = 0) {
  const std::string text = to_string(config) + std::to_string(seed);
  std::seed_seq sequence(text.begin(), text.end());
  std::mt19937 random(sequence);
  return static_cast<double>(random()) / static_cast<double>(std::mt19937::max());
}

/// Any config's figures: rugged, without a hint of which is best.
inline tuner::Measurement rugged(const LayerConfig& config, std::uint64_t seed = 0) {
  return figures(100 + 50 * share_of(config.fc1, seed), 60 + 30 * share_of(config.fc2, seed + 1));
}

/// A backward pass: a right measurement.
inline tuner::Measurement backward_figures(double dh, double dx, double fc1_gradient, double fc2_gradient,
                                           double rest_us = 20) {
  tuner::Measurement m;
  m.products = BackwardFigures{dh, dx, fc1_gradient, fc2_gradient, 0, 0, 0, 0};
  m.us = dh + dx + fc1_gradient + fc2_gradient + rest_us;
  m.skewed_us = 1.25 * m.us;
  m.spread = 0.002;
  m.verified = true;
  return m;
}
inline tuner::TuningItem backward_item_of(const LayerSpec& spec, std::int64_t bucket,
                                          GradientType type = GradientType::layer_dtype) {
  tuner::TuningItem item = item_of(spec, bucket);
  item.key.pass = TuningPass::backward;
  item.key.gradient_type = type;
  return item;
}
inline double share_of(const GradientConfig& config, std::uint64_t seed = 0) {
  const std::string text = to_string(config) + std::to_string(seed);
  std::seed_seq sequence(text.begin(), text.end());
  std::mt19937 random(sequence);
  return static_cast<double>(random()) / static_cast<double>(std::mt19937::max());
}
inline tuner::Measurement rugged(const BackwardConfig& config) {
  return backward_figures(100 + 50 * share_of(config.dh), 100 + 50 * share_of(config.dx, 1),
                          100 + 50 * share_of(config.fc1_gradient, 2),
                          60 + 30 * share_of(config.fc2_gradient, 3));
}

class Landscape : public tuner::Measurer {
 public:
  using Of = std::function<tuner::Measurement(const LayerConfig&, tuner::Effort)>;
  explicit Landscape(Of of = [](const LayerConfig& config, tuner::Effort) { return rugged(config); })
      : of_(std::move(of)) {}

  Status measure(const tuner::MeasureRequest& request, tuner::MeasureEvents& events) override {
    requests.push_back(request);
    for (std::size_t i = 0; i < request.products.size(); ++i) {
      events.turn(i);
      events.answer(i, of_products(request.products[i], request.effort));
    }
    for (std::size_t i = 0; i < request.configs.size(); ++i) {
      events.turn(i);
      events.answer(i, of_(request.configs[i], request.effort));
    }
    return {};
  }
  std::string description() const override { return "landscape"; }

  std::vector<tuner::MeasureRequest> requests;
  std::function<tuner::Measurement(const BackwardConfig&, tuner::Effort)> of_products =
      [](const BackwardConfig& config, tuner::Effort) { return rugged(config); };

 private:
  Of of_;
};

/// Few candidates, for tests in which the search is not the point.
inline tuner::SearchOptions quick_search() {
  tuner::SearchOptions options;
  options.candidates.most = 6;
  options.candidates.per_schedule = 1;
  return options;
}

}  // namespace varmoe::test
