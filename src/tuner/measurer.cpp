#include "tuner/measurer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace varmoe::tuner {
namespace {

/// Not fooled by NaN: every comparison with it is false.
bool within(double value, double least, double most) {
  return value >= least && value <= most;
}

class Collect final : public MeasureEvents {
 public:
  explicit Collect(std::size_t count) : answers_(count) {}
  void answer(std::size_t index, const Measurement& measurement) override {
    if (index < answers_.size() && !answers_[index]) answers_[index] = measurement;
  }
  std::vector<Measurement> take() {
    std::vector<Measurement> result;
    for (std::optional<Measurement>& answer : answers_) {
      if (answer) {
        result.push_back(*std::move(answer));
      } else {
        result.emplace_back().failure = "it was not measured";
      }
    }
    return result;
  }

 private:
  std::vector<std::optional<Measurement>> answers_;
};

}  // namespace

std::string fault_of(const Measurement& m) {
  if (!m.failure.empty()) return m.failure;
  std::vector<std::pair<const char*, double>> times = {{"us", m.us}, {"skewed_us", m.skewed_us}};
  std::vector<double> shares = {m.err1, m.err2};
  if (m.products) {
    const BackwardFigures& p = *m.products;
    times.insert(times.end(), {{"us_dh", p.us_dh},
                               {"us_dx", p.us_dx},
                               {"us_fc1_gradient", p.us_fc1_gradient},
                               {"us_fc2_gradient", p.us_fc2_gradient}});
    shares = {p.err_dh, p.err_dx, p.err_fc1_gradient, p.err_fc2_gradient};
  } else {
    times.insert(times.end(), {{"fc1_us", m.fc1_us}, {"fc2_us", m.fc2_us}});
  }
  for (const auto& [name, value] : times) {
    if (!within(value, kLeastMicroseconds, kMostMicroseconds))
      return fmt::format("{} is {}, which is no time in microseconds", name, value);
  }
  if (!within(m.spread, 0, kMostSpread)) return fmt::format("its spread is {}", m.spread);
  for (const double share : shares) {
    if (!within(share, 0, 1)) return fmt::format("its share of wrong elements is {}", share);
  }
  if (m.verified) return {};
  if (m.products && std::any_of(shares.begin(), shares.end(), [](double share) { return share > 0; })) {
    return fmt::format(
        "wrong result: {:.3g} of dtopk_weights, {:.3g} of dx, {:.3g} of dW1 and {:.3g} of dW2 are beyond the "
        "tolerance",
        shares[0], shares[1], shares[2], shares[3]);
  }
  return m.err1 > 0 || m.err2 > 0
             ? fmt::format("wrong result: {:.3g} of h and {:.3g} of out are beyond the tolerance", m.err1,
                           m.err2)
             : "its result was not verified";
}

MeasureRequest MeasureRequest::only(const std::vector<std::size_t>& indices) const {
  MeasureRequest some{spec, bucket, effort, {}, pass, gradient_type, {}};
  for (const std::size_t index : indices) {
    if (pass == TuningPass::backward) {
      some.products.push_back(products[index]);
    } else {
      some.configs.push_back(configs[index]);
    }
  }
  return some;
}

std::string MeasureRequest::config_text(std::size_t index) const {
  return pass == TuningPass::backward ? text_of(products[index]) : text_of(configs[index]);
}

std::string text_of(const LayerConfig& config) {
  return fmt::format("fc1 {}, fc2 {}", to_string(config.fc1), to_string(config.fc2));
}
std::string text_of(const BackwardConfig& config) {
  return fmt::format("dh {}, dx {}, fc1_gradient {}, fc2_gradient {}", to_string(config.dh),
                     to_string(config.dx), to_string(config.fc1_gradient), to_string(config.fc2_gradient));
}

Result<std::vector<Measurement>> measure_all(Measurer& measurer, const MeasureRequest& request) {
  Collect collect(request.count());
  if (Status status = measurer.measure(request, collect); !status) return status.error();
  return collect.take();
}

const char* to_string(Effort effort) noexcept {
  switch (effort) {
    case Effort::quick:
      return "quick";
    case Effort::normal:
      return "normal";
    case Effort::final_:
      return "final";
  }
  return "invalid";
}

}  // namespace varmoe::tuner
