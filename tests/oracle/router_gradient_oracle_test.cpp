// The oracle of a router's gradient against finite differences of the oracle's weights and losses.
#include "oracle/router_gradient_oracle.hpp"

#include <doctest/doctest.h>

#include <random>

#include "oracle/statistics_oracle.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;

namespace {

constexpr std::int64_t kExperts = 12, kTokens = 5;

struct Case {
  RouterSpec spec;
  std::vector<double> logits;     // [kTokens, kExperts]
  std::vector<std::int64_t> ids;  // [kTokens, k]; some are none
  std::vector<float> dweights;
  std::vector<std::int32_t> widths;
  std::array<double, 4> coefficients{};
};

Case make_case(const RouterSpec& spec, const std::array<double, 4>& coefficients, std::uint64_t seed) {
  Case c;
  c.spec = spec;
  c.coefficients = coefficients;
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const std::vector<double> bias(kExperts, 0.0);
  for (std::int64_t i = 0; i < kTokens * kExperts; ++i) c.logits.push_back(normal(random));
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const auto row = std::span(c.logits).subspan(static_cast<std::size_t>(t * kExperts), kExperts);
    for (const std::int32_t id : oracle::route_token(spec, row, bias).ids)
      c.ids.push_back(random() % 8 == 0 ? (random() % 2 != 0 ? -1 : kExperts) : id);
  }
  for (std::size_t i = 0; i < c.ids.size(); ++i) c.dweights.push_back(static_cast<float>(normal(random)));
  for (std::int64_t e = 0; e < kExperts; ++e) c.widths.push_back(static_cast<std::int32_t>(8 << e % 3));
  return c;
}

oracle::Statistics statistics(const Case& c, std::span<const double> logits) {
  const RouterStatisticsSpec spec{kExperts, c.spec.top_k, LogitType::fp32, c.spec.scoring};
  return oracle::statistics_of(spec, logits, c.ids, c.widths, kTokens);
}

double loss(const Case& c, std::span<const double> logits) {
  const auto s = statistics(c, logits);
  double sum = c.coefficients[0] * s.z + c.coefficients[1] * s.load_balance +
               c.coefficients[2] * s.group_balance + c.coefficients[3] * s.compute;
  const auto k = static_cast<std::size_t>(c.spec.top_k);
  for (std::size_t t = 0; t < kTokens; ++t) {
    std::vector<std::int32_t> ids;
    std::vector<double> given;
    for (std::size_t j = t * k; j < (t + 1) * k; ++j) {
      if (c.ids[j] < 0 || c.ids[j] >= kExperts) continue;
      ids.push_back(static_cast<std::int32_t>(c.ids[j]));
      given.push_back(static_cast<double>(c.dweights[j]));
    }
    if (ids.empty()) continue;
    const auto weights = oracle::weights_of(c.spec, logits.subspan(t * kExperts, kExperts), ids);
    for (std::size_t j = 0; j < ids.size(); ++j) sum += given[j] * weights[j];
  }
  return sum;
}

void check(const Case& c) {
  const auto s = statistics(c, c.logits);
  oracle::LossInputs in;
  in.coefficients = c.coefficients;
  in.tokens = kTokens;
  in.counts.assign(s.counts.begin(), s.counts.end());
  in.means = s.mean_scores;
  in.widths = c.widths;
  const auto k = static_cast<std::size_t>(c.spec.top_k);
  const auto by_mean = oracle::by_mean_score(in, static_cast<double>(c.spec.top_k));
  for (std::size_t t = 0; t < kTokens; ++t) {
    const auto gradient =
        oracle::dlogits_of(c.spec, std::span<const double>(c.logits).subspan(t * kExperts, kExperts),
                           std::span<const std::int64_t>(c.ids).subspan(t * k, k),
                           std::span<const float>(c.dweights).subspan(t * k, k), in, by_mean);
    for (std::size_t e = 0; e < kExperts; ++e) {
      constexpr double kStep = 1e-5;
      std::vector<double> moved = c.logits;
      moved[t * kExperts + e] += kStep;
      const double above = loss(c, moved);
      moved[t * kExperts + e] -= 2 * kStep;
      const double slope = (above - loss(c, moved)) / (2 * kStep);
      CHECK(std::abs(slope - gradient.value[e]) <= 1e-7 * gradient.magnitude[e] + 2e-9);
      CHECK(gradient.magnitude[e] >= std::abs(gradient.value[e]) * (1 - 1e-12));
    }
  }
}

}  // namespace

TEST_CASE("the router gradient's oracle is the slope of the weights for every method") {
  std::uint64_t seed = 1;
  for (const auto& method : test::router_methods()) {
    CAPTURE(method.name);
    for (const std::int64_t top_k : {1, 4})
      check(make_case(test::router_of(method, kExperts, top_k), {}, ++seed));
  }
}

TEST_CASE("the router gradient's oracle is the slope of every loss") {
  std::uint64_t seed = 100;
  for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
    RouterSpec spec;
    spec.num_experts = kExperts;
    spec.top_k = 3;
    spec.scoring = scoring;
    for (std::size_t which = 0; which <= 4; ++which) {
      CAPTURE(which);
      std::array<double, 4> coefficients = {0.7, -0.3, 0.9, 0.4};
      for (std::size_t i = 0; i < 4 && which < 4; ++i)
        if (i != which) coefficients[i] = 0;
      Case c = make_case(spec, coefficients, ++seed);
      check(c);
      c.dweights.assign(c.dweights.size(), 0.0f);
      check(c);
    }
  }
}
