#include "tuner/measurer.hpp"

#include <fmt/format.h>

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
  const std::pair<const char*, double> times[] = {
      {"us", m.us}, {"skewed_us", m.skewed_us}, {"fc1_us", m.fc1_us}, {"fc2_us", m.fc2_us}};
  for (const auto& [name, value] : times) {
    if (!within(value, kLeastMicroseconds, kMostMicroseconds))
      return fmt::format("{} is {}, which is no time in microseconds", name, value);
  }
  if (!within(m.spread, 0, kMostSpread)) return fmt::format("its spread is {}", m.spread);
  for (const double share : {m.err1, m.err2}) {
    if (!within(share, 0, 1)) return fmt::format("its share of wrong elements is {}", share);
  }
  if (m.verified) return {};
  return m.err1 > 0 || m.err2 > 0
             ? fmt::format("wrong result: {:.3g} of h and {:.3g} of out are beyond the tolerance", m.err1,
                           m.err2)
             : "its result was not verified";
}

Result<std::vector<Measurement>> measure_all(Measurer& measurer, const MeasureRequest& request) {
  Collect collect(request.configs.size());
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
