#include "cpu/router_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/logits.hpp"

namespace varmoe::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Adds one token's scores, as shares of their sum, and returns its squared log-sum-exp.
double add_token(const RouterStatisticsSpec& spec, const void* logits, std::int64_t at, double* sums) {
  double value[kMaxExperts];
  double greatest = -kInfinity;
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    value[e] = static_cast<double>(element_at(spec.logit_type, logits, at + e));
    if (value[e] > greatest) greatest = value[e];
  }
  double total = 0, share = 0;
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    const double logit = value[e];
    const double term = !(logit > -kInfinity) ? 0 : logit == greatest ? 1 : std::exp(logit - greatest);
    total += term;
    value[e] = spec.scoring == Scoring::softmax ? term : std::isnan(logit) ? 0 : 1 / (1 + std::exp(-logit));
    share += value[e];
  }
  if (share > 0)
    for (std::int64_t e = 0; e < spec.num_experts; ++e) sums[e] += value[e] / share;
  const double log_sum = total > 0 ? greatest + std::log(total) : 0;
  return log_sum * log_sum;
}

}  // namespace

void router_statistics(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& args) noexcept {
  const std::int64_t experts = spec.num_experts;
  const std::int64_t tokens =
      args.token_count ? std::clamp<std::int64_t>(*args.token_count, 0, args.tokens) : args.tokens;
  const std::int64_t stride = args.logit_stride != 0 ? args.logit_stride : experts;
  double mean[kMaxExperts] = {}, z = 0;
  std::int64_t count[kMaxExperts] = {};
  for (std::int64_t t = 0; t < tokens; ++t) {
    z += add_token(spec, args.logits, t * stride, mean);
    for (std::int64_t slot = t * spec.top_k; slot < (t + 1) * spec.top_k; ++slot) {
      const std::int64_t id = args.id_type == IdType::int64
                                  ? static_cast<const std::int64_t*>(args.topk_ids)[slot]
                                  : static_cast<const std::int32_t*>(args.topk_ids)[slot];
      if (id >= 0 && id < experts) ++count[id];
    }
  }
  const double per_token = tokens > 0 ? 1 / static_cast<double>(tokens) : 0;
  const auto width = [&](std::int64_t e) { return args.expert_widths ? args.expert_widths[e] : 1; };
  double balance = 0, grouped = 0, weighed = 0, widths = 0;
  for (std::int64_t e = 0; e < experts; ++e) mean[e] *= per_token;
  for (std::int64_t e = 0; e < experts; ++e) {
    double group = 0, members = 0;
    for (std::int64_t other = 0; other < experts; ++other) {
      if (width(other) != width(e)) continue;
      group += mean[other];
      members += 1;
    }
    const double term = static_cast<double>(count[e]) * per_token / static_cast<double>(spec.top_k) * mean[e];
    balance += term;
    if (group > 0) grouped += members / group * term;
    weighed += width(e) * term;
    widths += width(e);
    if (args.tokens_per_expert) args.tokens_per_expert[e] = static_cast<std::int32_t>(count[e]);
    if (args.mean_scores) args.mean_scores[e] = static_cast<float>(mean[e]);
  }
  if (!args.losses) return;
  const auto set = [&](RouterLoss loss, double value) {
    args.losses[static_cast<std::size_t>(loss)] = static_cast<float>(value);
  };
  set(RouterLoss::z, z * per_token);
  set(RouterLoss::load_balance, static_cast<double>(experts) * balance);
  set(RouterLoss::group_balance, grouped);
  set(RouterLoss::compute, static_cast<double>(experts) * weighed / (widths / static_cast<double>(experts)));
}

}  // namespace varmoe::cpu
