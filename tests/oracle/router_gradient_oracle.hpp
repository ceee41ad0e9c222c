#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "oracle/router_oracle.hpp"

/// The gradient of a router's weights and losses by its logits, in fp64: Jacobians written out, one after the
/// other. router_gradient_oracle_test holds it against finite differences of weights_of and statistics_of.
namespace oracle {

/// What the losses' gradient takes as given; the losses in RouterLoss's order.
struct LossInputs {
  std::array<double, 4> coefficients{};
  double tokens = 0;                  ///< that the losses are means over
  std::vector<double> counts, means;  ///< [E]
  std::vector<std::int32_t> widths;   ///< [E]
  bool of_shares() const { return coefficients[1] != 0 || coefficients[2] != 0 || coefficients[3] != 0; }
};

/// A number and the sum of the magnitudes it is made of, which is what rounding scales with.
struct Numbers {
  std::vector<double> value, magnitude;
  explicit Numbers(std::size_t count) : value(count, 0.0), magnitude(count, 0.0) {}
  void add(std::size_t at, double number, double size) {
    value[at] += number;
    magnitude[at] += std::abs(size);
  }
};

/// ∂(Σ c_i·losses[i])/∂P_e.
inline Numbers by_mean_score(const LossInputs& in, double top_k) {
  const std::size_t experts = in.widths.size();
  const auto all = static_cast<double>(experts);
  Numbers v(experts);
  double widths = 0;
  for (const std::int32_t w : in.widths) widths += w;
  for (std::size_t e = 0; e < experts; ++e) {
    const double share = in.counts[e] / (in.tokens * top_k);
    v.add(e, in.coefficients[1] * all * share, in.coefficients[1] * all * share);
    const double weighed = in.coefficients[3] * all * in.widths[e] / (widths / all) * share;
    v.add(e, weighed, weighed);
    double members = 0, mean = 0, terms = 0;
    for (std::size_t o = 0; o < experts; ++o) {
      if (in.widths[o] != in.widths[e]) continue;
      members += 1;
      mean += in.means[o];
      terms += in.counts[o] / (in.tokens * top_k) * in.means[o];
    }
    if (mean < std::ldexp(1.0, -100)) continue;
    const double first = in.coefficients[2] * members / mean * share,
                 second = in.coefficients[2] * members / (mean * mean) * terms;
    v.add(e, first - second, std::abs(first) + std::abs(second));
  }
  return v;
}

/// One token: `logits` [E], `ids` and `dweights` [k] (no dweights: the losses alone), `by_mean` of
/// by_mean_score.
inline Numbers dlogits_of(const varmoe::RouterSpec& spec, std::span<const double> logits,
                          std::span<const std::int64_t> ids, std::span<const float> dweights,
                          const LossInputs& in, const Numbers& by_mean) {
  const std::size_t experts = logits.size();
  Numbers gradient(experts);
  const bool sigmoid = spec.scoring == varmoe::Scoring::sigmoid;
  const std::vector<bool> everyone(experts, true);
  const auto complement = [&](std::size_t e) {
    return std::isnan(logits[e]) ? 0.0 : 1 / (1 + std::exp(logits[e]));
  };
  varmoe::RouterSpec softmax;
  const std::vector<double> shares = scores_of(softmax, logits, everyone);

  // Through the weights: by scores, then by logits.
  std::vector<std::size_t> chosen;
  std::vector<double> given;
  for (std::size_t j = 0; j < dweights.size(); ++j) {
    if (ids[j] < 0 || ids[j] >= spec.num_experts) continue;
    chosen.push_back(static_cast<std::size_t>(ids[j]));
    given.push_back(static_cast<double>(dweights[j]) * static_cast<double>(spec.scaling_factor));
  }
  if (!chosen.empty()) {
    std::vector<bool> members(experts, spec.order == varmoe::ScoreOrder::before_top_k);
    for (const std::size_t e : chosen) members[e] = true;
    const std::vector<double> scores = scores_of(spec, logits, members);
    double divisor = static_cast<double>(spec.epsilon);
    for (const std::size_t e : chosen) divisor += scores[e];
    Numbers by_score(experts);
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      if (!spec.renormalize) by_score.add(chosen[i], given[i], given[i]);
      if (!spec.renormalize || !(divisor > 0)) continue;
      for (std::size_t j = 0; j < chosen.size(); ++j) {
        const double own = i == j ? 1 : 0, weight = scores[chosen[j]] / divisor;
        by_score.add(chosen[i], given[j] * (own - weight) / divisor, given[j] * (own + weight) / divisor);
      }
    }
    for (std::size_t e = 0; e < experts; ++e) {
      if (by_score.magnitude[e] == 0) continue;
      if (sigmoid) {
        const double slope = scores[e] * complement(e);
        gradient.add(e, by_score.value[e] * slope, by_score.magnitude[e] * slope);
        continue;
      }
      for (std::size_t f = 0; f < experts; ++f) {
        const double own = e == f ? 1 : 0;
        gradient.add(f, by_score.value[e] * scores[e] * (own - scores[f]),
                     by_score.magnitude[e] * scores[e] * (own + scores[f]));
      }
    }
  }

  // z: (log Σ exp)², whose root's gradient is softmax.
  double greatest = -INFINITY, total = 0;
  for (const double l : logits) greatest = std::max(greatest, ranked(l));
  if (in.coefficients[0] != 0 && std::isfinite(greatest)) {
    for (const double l : logits)
      if (!std::isnan(l)) total += std::exp(l - greatest);
    const double factor = in.coefficients[0] * 2 / in.tokens;
    for (std::size_t e = 0; e < experts; ++e)
      gradient.add(e, factor * (greatest + std::log(total)) * shares[e],
                   factor * (std::abs(greatest) + std::log(total)) * shares[e]);
  }

  // The others: by the token's shares u = s / Σ s, then by logits.
  if (in.of_shares()) {
    const std::vector<double> scores = sigmoid ? scores_of(spec, logits, everyone) : shares;
    double sum = 0;
    for (const double s : scores) sum += s;
    for (std::size_t e = 0; e < experts && sum > 0; ++e) {
      const double slope = scores[e] / sum * (sigmoid ? complement(e) : 1.0) / in.tokens;
      double mean = 0, size = 0;
      for (std::size_t o = 0; o < experts; ++o) {
        mean += scores[o] / sum * by_mean.value[o];
        size += scores[o] / sum * by_mean.magnitude[o];
      }
      gradient.add(e, slope * (by_mean.value[e] - mean), slope * (by_mean.magnitude[e] + size));
    }
  }
  return gradient;
}

}  // namespace oracle
