#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "varmoe/router_spec.hpp"

/// What a router computes, as a plain fp64 loop over sorted lists, and what a result in fp32 must agree with.
/// Shares no code with src/: it reads the spec's fields and nothing else of the library.
namespace oracle {

/// One token's routing.
struct TokenRouting {
  std::vector<double> scores;     ///< [E]
  std::vector<double> choice;     ///< [E] what experts are chosen by; −∞ for a NaN
  std::vector<bool> in_groups;    ///< [E]
  double group_gap = INFINITY;    ///< between the last group chosen and the first that is not
  std::vector<std::int32_t> ids;  ///< [k]
  std::vector<double> weights;    ///< [k]
};

inline double ranked(double value) {
  return std::isnan(value) ? -INFINITY : value;
}

/// Scores of all experts; softmax over `members` alone (all: every expert).
inline std::vector<double> scores_of(const varmoe::RouterSpec& spec, std::span<const double> logits,
                                     const std::vector<bool>& members) {
  std::vector<double> scores(logits.size(), 0.0);
  if (spec.scoring == varmoe::Scoring::sigmoid) {
    for (std::size_t e = 0; e < logits.size(); ++e)
      if (!std::isnan(logits[e])) scores[e] = 1 / (1 + std::exp(-logits[e]));
    return scores;
  }
  double greatest = -INFINITY, total = 0;
  for (std::size_t e = 0; e < logits.size(); ++e)
    if (members[e]) greatest = std::max(greatest, ranked(logits[e]));
  if (greatest == -INFINITY) return scores;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (!members[e] || std::isnan(logits[e])) continue;
    scores[e] = logits[e] == greatest ? 1 : std::exp(logits[e] - greatest);
    total += scores[e];
  }
  for (double& s : scores) s /= total;
  return scores;
}

/// Indices by descending value, ties by ascending index.
inline std::vector<std::int32_t> descending(std::span<const double> values) {
  std::vector<std::int32_t> order(values.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return order;
}

/// Weights of the experts `ids` were chosen to be.
inline std::vector<double> weights_of(const varmoe::RouterSpec& spec, std::span<const double> logits,
                                      std::span<const std::int32_t> ids) {
  std::vector<bool> members(logits.size(), spec.order == varmoe::ScoreOrder::before_top_k);
  for (const std::int32_t id : ids) members[static_cast<std::size_t>(id)] = true;
  const std::vector<double> scores = scores_of(spec, logits, members);
  std::vector<double> weights;
  double sum = 0;
  for (const std::int32_t id : ids) {
    weights.push_back(scores[static_cast<std::size_t>(id)]);
    sum += weights.back();
  }
  if (spec.renormalize) {
    sum += static_cast<double>(spec.epsilon);
    for (double& w : weights) w = sum > 0 ? w / sum : 0;
  }
  for (double& w : weights) w *= static_cast<double>(spec.scaling_factor);
  return weights;
}

/// `logits` [E], `bias` [E] or empty.
inline TokenRouting route_token(const varmoe::RouterSpec& spec, std::span<const double> logits,
                                std::span<const double> bias) {
  const auto experts = static_cast<std::size_t>(spec.num_experts);
  TokenRouting r;
  r.scores = scores_of(spec, logits, std::vector<bool>(experts, true));
  const bool limited = spec.num_groups > 1 && spec.top_groups < spec.num_groups;
  const bool two_best = limited && spec.group_score == varmoe::GroupScore::top2_sum;
  for (std::size_t e = 0; e < experts; ++e) {
    double c = spec.correction_bias || two_best ? r.scores[e] : ranked(logits[e]);
    if (spec.correction_bias) c += bias[e];
    r.choice.push_back(std::isnan(logits[e]) ? -INFINITY : ranked(c));
  }
  r.in_groups.assign(experts, true);
  std::vector<double> candidates = r.choice;
  if (limited) {
    const std::size_t size = experts / static_cast<std::size_t>(spec.num_groups);
    std::vector<double> group_scores;
    for (std::size_t first = 0; first < experts; first += size) {
      std::vector<double> members(r.choice.begin() + static_cast<std::ptrdiff_t>(first),
                                  r.choice.begin() + static_cast<std::ptrdiff_t>(first + size));
      std::sort(members.begin(), members.end(), std::greater<>());
      group_scores.push_back(ranked(two_best ? members[0] + members[1] : members[0]));
    }
    const auto order = descending(group_scores);
    const auto kept = static_cast<std::size_t>(spec.top_groups);
    r.group_gap = group_scores[static_cast<std::size_t>(order[kept - 1])] -
                  group_scores[static_cast<std::size_t>(order[kept])];
    // Groups of the very same score tie exactly; whoever rounds gets the same.
    if (std::isnan(r.group_gap) || r.group_gap == 0) r.group_gap = INFINITY;
    const bool zero = spec.correction_bias && spec.outside_groups == varmoe::OutsideGroups::as_zero;
    for (std::size_t i = kept; i < order.size(); ++i) {
      for (std::size_t e = static_cast<std::size_t>(order[i]) * size;
           e < static_cast<std::size_t>(order[i] + 1) * size; ++e) {
        r.in_groups[e] = false;
        // Below −∞, which candidates may have: the index breaks that tie, so they are moved behind all.
        candidates[e] = zero ? 0.0 : std::numeric_limits<double>::quiet_NaN();
      }
    }
  }
  std::vector<std::int32_t> order;
  for (const std::int32_t e : descending([&] {
         std::vector<double> c = candidates;
         for (double& v : c) v = ranked(v);
         return c;
       }())) {
    if (!std::isnan(candidates[static_cast<std::size_t>(e)])) order.push_back(e);
  }
  r.ids.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(spec.top_k));
  r.choice = std::move(candidates);
  r.weights = weights_of(spec, logits, r.ids);
  return r;
}

/// What is wrong with a result in fp32; empty: nothing. Where choices rest on scores, experts (and groups)
/// whose choice values lie within rounding of each other may stand for one another; equal inputs are equal in
/// any precision, so the lower index comes first.
inline std::string routing_problem(const varmoe::RouterSpec& spec, std::span<const double> logits,
                                   std::span<const double> bias, std::span<const std::int32_t> ids,
                                   std::span<const float> weights) {
  const TokenRouting r = route_token(spec, logits, bias);
  const bool by_score = spec.correction_bias || (spec.num_groups > spec.top_groups &&
                                                 spec.group_score == varmoe::GroupScore::top2_sum);
  double largest = 1;
  for (const double c : r.choice)
    if (std::isfinite(c)) largest = std::max(largest, std::abs(c));
  const double tolerance = by_score ? 4e-7 * largest : 0;
  const auto fail = [](const std::string& what) { return what; };
  std::vector<bool> seen(logits.size(), false);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= spec.num_experts) return fail("id " + std::to_string(id) + " is out of range");
    if (seen[static_cast<std::size_t>(id)]) return fail("id " + std::to_string(id) + " twice");
    seen[static_cast<std::size_t>(id)] = true;
  }
  if (!std::equal(ids.begin(), ids.end(), r.ids.begin(), r.ids.end()) && r.group_gap > 2 * tolerance) {
    for (std::size_t j = 0; j < ids.size(); ++j) {
      if (ids[j] == r.ids[j]) continue;
      const auto mine = static_cast<std::size_t>(ids[j]), right = static_cast<std::size_t>(r.ids[j]);
      const double gap = std::abs(r.choice[mine] - r.choice[right]);
      const bool same_input = logits[mine] == logits[right] && (bias.empty() || bias[mine] == bias[right]);
      if (!(gap <= tolerance) || same_input)
        return fail("choice " + std::to_string(j) + " is expert " + std::to_string(ids[j]) + ", not " +
                    std::to_string(r.ids[j]) + "; their choice values are " + std::to_string(r.choice[mine]) +
                    " and " + std::to_string(r.choice[right]));
    }
  }
  const std::vector<double> expected = weights_of(spec, logits, ids);
  for (std::size_t j = 0; j < ids.size(); ++j) {
    if (!(std::abs(static_cast<double>(weights[j]) - expected[j]) <= 1e-5 * std::abs(expected[j]) + 1e-36))
      return fail("weight " + std::to_string(j) + " is " + std::to_string(weights[j]) + ", not " +
                  std::to_string(expected[j]));
  }
  return {};
}

/// moe_align_block_size.
struct AlignedRows {
  std::vector<std::int32_t> sorted_token_ids, expert_ids;
  std::int32_t num_tokens_post_pad = 0;
};

inline AlignedRows align_rows(std::int64_t experts, std::int64_t block_size,
                              std::span<const std::int64_t> ids, std::int64_t sorted_size) {
  AlignedRows a;
  const auto sentinel = static_cast<std::int32_t>(ids.size());
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] == e) a.sorted_token_ids.push_back(static_cast<std::int32_t>(i));
    while (a.sorted_token_ids.size() % static_cast<std::size_t>(block_size) != 0)
      a.sorted_token_ids.push_back(sentinel);
    while (static_cast<std::int64_t>(a.expert_ids.size()) * block_size <
           static_cast<std::int64_t>(a.sorted_token_ids.size()))
      a.expert_ids.push_back(static_cast<std::int32_t>(e));
  }
  a.num_tokens_post_pad = static_cast<std::int32_t>(a.sorted_token_ids.size());
  a.sorted_token_ids.resize(static_cast<std::size_t>(sorted_size), sentinel);
  a.expert_ids.resize(static_cast<std::size_t>((sorted_size + block_size - 1) / block_size), -1);
  return a;
}

}  // namespace oracle
