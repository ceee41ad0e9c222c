#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "oracle/router_oracle.hpp"
#include "varmoe/router_statistics.hpp"

/// Counts and losses of a router as plain fp64 loops over the definitions in varmoe/router_statistics.hpp.
namespace oracle {

struct Statistics {
  std::vector<std::int64_t> counts;
  std::vector<double> mean_scores;
  double z = 0, load_balance = 0, group_balance = 0, compute = 0;
};

/// `logits` [tokens, E], `ids` [tokens, k], `widths` [E].
inline Statistics statistics_of(const varmoe::RouterStatisticsSpec& spec, std::span<const double> logits,
                                std::span<const std::int64_t> ids, std::span<const std::int32_t> widths,
                                std::int64_t tokens) {
  const auto experts = static_cast<std::size_t>(spec.num_experts);
  Statistics s;
  s.counts.assign(experts, 0);
  s.mean_scores.assign(experts, 0.0);
  if (tokens == 0) return s;
  varmoe::RouterSpec scoring;
  scoring.scoring = spec.scoring;
  const auto count = static_cast<std::size_t>(tokens);
  for (std::size_t t = 0; t < count; ++t) {
    const auto row = logits.subspan(t * experts, experts);
    const auto scores = scores_of(scoring, row, std::vector<bool>(experts, true));
    double sum = 0;
    for (const double score : scores) sum += score;
    for (std::size_t e = 0; e < experts && sum > 0; ++e)
      s.mean_scores[e] += scores[e] / sum / static_cast<double>(tokens);
    double greatest = -INFINITY, total = 0;
    for (const double l : row) greatest = std::max(greatest, ranked(l));
    if (greatest > -INFINITY) {
      for (const double l : row)
        if (!std::isnan(l)) total += l == greatest ? 1 : std::exp(l - greatest);
      s.z += std::pow(greatest + std::log(total), 2) / static_cast<double>(tokens);
    }
  }
  const auto slots = count * static_cast<std::size_t>(spec.top_k);
  for (std::size_t i = 0; i < slots; ++i)
    if (ids[i] >= 0 && ids[i] < spec.num_experts) ++s.counts[static_cast<std::size_t>(ids[i])];
  double all_widths = 0;
  struct Group {
    double experts = 0, probability = 0, terms = 0;
  };
  std::map<std::int32_t, Group> groups;
  for (std::size_t e = 0; e < experts; ++e) {
    const double term = static_cast<double>(s.counts[e]) / static_cast<double>(slots) * s.mean_scores[e];
    s.load_balance += static_cast<double>(experts) * term;
    s.compute += static_cast<double>(experts) * widths[e] * term;
    all_widths += widths[e];
    Group& g = groups[widths[e]];
    g.experts += 1;
    g.probability += s.mean_scores[e];
    g.terms += term;
  }
  s.compute /= all_widths / static_cast<double>(experts);
  for (const auto& [width, g] : groups)
    if (g.probability > 0) s.group_balance += g.experts / g.probability * g.terms;
  return s;
}

/// What is wrong with a result; empty: nothing.
inline std::string statistics_problem(const Statistics& expected, std::span<const std::int32_t> counts,
                                      std::span<const float> means, std::span<const float> losses) {
  const auto off = [](double got, double right) {
    return !(std::abs(got - right) <= 1e-5 * std::abs(right) + 1e-9);
  };
  for (std::size_t e = 0; e < expected.counts.size(); ++e) {
    if (counts[e] != expected.counts[e])
      return "expert " + std::to_string(e) + " has " + std::to_string(counts[e]) + " slots, not " +
             std::to_string(expected.counts[e]);
    if (off(static_cast<double>(means[e]), expected.mean_scores[e]))
      return "mean score " + std::to_string(e) + " is " + std::to_string(means[e]) + ", not " +
             std::to_string(expected.mean_scores[e]);
  }
  const double right[] = {expected.z, expected.load_balance, expected.group_balance, expected.compute};
  for (std::size_t i = 0; i < 4; ++i)
    if (off(static_cast<double>(losses[i]), right[i]))
      return "loss " + std::to_string(i) + " is " + std::to_string(losses[i]) + ", not " +
             std::to_string(right[i]);
  return {};
}

}  // namespace oracle
