#include "cpu/router_gradient.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/logits.hpp"

namespace varmoe::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// A group's mean score below which group_balance has no gradient.
constexpr double kLeastGroup = 0x1p-100;

/// e^(logit − greatest), the limit where both are infinite; 0 for NaN, and everywhere when no logit is above
/// −∞.
double exponential(double logit, double greatest) {
  if (!(logit > -kInfinity)) return 0;
  return logit == greatest ? 1 : std::exp(logit - greatest);
}

double sigmoid(double logit) {
  return std::isnan(logit) ? 0 : 1 / (1 + std::exp(-logit));
}

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

std::int64_t live_tokens(std::int64_t tokens, const std::int32_t* count) {
  return count ? std::clamp<std::int64_t>(*count, 0, tokens) : tokens;
}

double coefficient(const RouterGradientArgs& args, RouterLoss loss) {
  return static_cast<double>(args.coefficients[static_cast<std::size_t>(loss)]);
}

/// terms[e] = the losses' gradient by the mean score of expert e, divided by tokens. False: no loss of mean
/// scores takes part.
bool loss_terms(const RouterSpec& spec, const RouterGradientArgs& args, double tokens, double* terms) {
  const double balance = coefficient(args, RouterLoss::load_balance),
               grouped = coefficient(args, RouterLoss::group_balance),
               compute = coefficient(args, RouterLoss::compute);
  if (balance == 0 && grouped == 0 && compute == 0) return false;
  const std::int64_t experts = spec.num_experts;
  const auto all = static_cast<double>(experts);
  const auto width = [&](std::int64_t e) { return args.expert_widths ? args.expert_widths[e] : 1; };
  const auto share = [&](std::int64_t e) {
    return args.tokens_per_expert[e] / (tokens * static_cast<double>(spec.top_k));
  };
  double widths = 0;
  for (std::int64_t e = 0; e < experts; ++e) widths += width(e);
  for (std::int64_t e = 0; e < experts; ++e) {
    double term = (balance + compute * width(e) / (widths / all)) * all * share(e);
    if (grouped != 0) {
      double mean = 0, product = 0, members = 0;
      for (std::int64_t o = 0; o < experts; ++o) {
        if (width(o) != width(e)) continue;
        const auto of_expert = static_cast<double>(args.mean_scores[o]);
        mean += of_expert;
        product += share(o) * of_expert;
        members += 1;
      }
      if (mean >= kLeastGroup) term += grouped * members * (share(e) - product / mean) / mean;
    }
    terms[e] = term / tokens;
  }
  return true;
}

/// One token's scores and gradient.
struct Token {
  double logit[kMaxExperts];
  double score[kMaxExperts];  ///< softmax over all experts
  double gradient[kMaxExperts];
  double greatest, total;

  void read(const RouterSpec& spec, const void* logits, std::int64_t at) {
    greatest = -kInfinity;
    total = 0;
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      logit[e] = static_cast<double>(element_at(spec.logit_type, logits, at + e));
      if (logit[e] > greatest) greatest = logit[e];
    }
    for (std::int64_t e = 0; e < spec.num_experts; ++e) total += score[e] = exponential(logit[e], greatest);
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      score[e] = ratio(score[e], total);
      gradient[e] = 0;
    }
  }

  /// Adds what comes through the weights of the slots; ids[j] = −1: none.
  void add_weights(const RouterSpec& spec, const std::int64_t* ids, const float* dweights) {
    const bool softmax = spec.scoring == Scoring::softmax;
    const bool over_chosen = softmax && spec.order == ScoreOrder::after_top_k;
    double share[kMaxTopK], weight[kMaxTopK], d[kMaxTopK];
    double best = -kInfinity, sum = 0;
    for (std::int64_t j = 0; j < spec.top_k; ++j)
      if (ids[j] >= 0 && logit[ids[j]] > best) best = logit[ids[j]];
    for (std::int64_t j = 0; j < spec.top_k; ++j) {
      const std::int64_t e = ids[j];
      share[j] = e < 0         ? 0
                 : over_chosen ? exponential(logit[e], best)
                 : softmax     ? score[e]
                               : sigmoid(logit[e]);
      sum += share[j];
    }
    if (over_chosen) {
      const double whole = sum;
      sum = 0;
      for (std::int64_t j = 0; j < spec.top_k; ++j) sum += share[j] = ratio(share[j], whole);
    }
    const double divisor = sum + static_cast<double>(spec.epsilon);
    const auto given = [&](std::int64_t j) {
      return static_cast<double>(dweights[j]) * static_cast<double>(spec.scaling_factor);
    };
    double mean = 0;  // of what is given, by the weights
    for (std::int64_t j = 0; j < spec.top_k; ++j) {
      weight[j] = spec.renormalize ? ratio(share[j], divisor) : share[j];
      if (spec.renormalize && ids[j] >= 0) mean += given(j) * weight[j];
    }
    double all = 0;
    for (std::int64_t j = 0; j < spec.top_k; ++j) {
      d[j] = ids[j] < 0 ? 0 : weight[j] * (given(j) - mean);
      all += d[j];
    }
    for (std::int64_t j = 0; j < spec.top_k; ++j) {
      if (ids[j] < 0) continue;
      gradient[ids[j]] += !softmax      ? d[j] * sigmoid(-logit[ids[j]])
                          : over_chosen ? d[j] - share[j] * all
                                        : d[j];
    }
    if (softmax && !over_chosen)
      for (std::int64_t e = 0; e < spec.num_experts; ++e) gradient[e] -= score[e] * all;
  }

  void add_z(const RouterSpec& spec, double per_token) {
    const double log_sum = total > 0 ? greatest + std::log(total) : 0;
    if (!std::isfinite(log_sum)) return;
    for (std::int64_t e = 0; e < spec.num_experts; ++e) gradient[e] += 2 * per_token * log_sum * score[e];
  }

  void add_shares(const RouterSpec& spec, const double* terms) {
    const bool softmax = spec.scoring == Scoring::softmax;
    const auto of = [&](std::int64_t e) { return softmax ? score[e] : sigmoid(logit[e]); };
    double sum = 0, mean = 0;
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      sum += of(e);
      mean += of(e) * terms[e];
    }
    mean = ratio(mean, sum);
    for (std::int64_t e = 0; e < spec.num_experts; ++e)
      gradient[e] += ratio(of(e), sum) * (softmax ? 1 : sigmoid(-logit[e])) * (terms[e] - mean);
  }
};

}  // namespace

void router_gradient(const RouterGradientSpec& of, const RouterGradientArgs& args) noexcept {
  const RouterSpec& spec = of.router;
  const std::int64_t experts = spec.num_experts, tokens = live_tokens(args.tokens, args.token_count);
  if (tokens == 0) return;
  const std::int64_t stride = args.logit_stride != 0 ? args.logit_stride : experts;
  const std::int64_t out_stride = args.dlogit_stride != 0 ? args.dlogit_stride : experts;
  const auto loss_tokens = static_cast<double>(args.loss_tokens != 0 ? args.loss_tokens : tokens);
  double terms[kMaxExperts];
  const bool shares = loss_terms(spec, args, loss_tokens, terms);
  const double z = coefficient(args, RouterLoss::z) / loss_tokens;
  Token t;
  for (std::int64_t token = 0; token < tokens; ++token) {
    t.read(spec, args.logits, token * stride);
    if (args.dtopk_weights) {
      std::int64_t ids[kMaxTopK];
      for (std::int64_t j = 0; j < spec.top_k; ++j) {
        const std::int64_t at = token * spec.top_k + j;
        const std::int64_t id = args.id_type == IdType::int64
                                    ? static_cast<const std::int64_t*>(args.topk_ids)[at]
                                    : static_cast<const std::int32_t*>(args.topk_ids)[at];
        ids[j] = id >= 0 && id < experts ? id : -1;
      }
      t.add_weights(spec, ids, args.dtopk_weights + token * spec.top_k);
    }
    if (z != 0) t.add_z(spec, z);
    if (shares) t.add_shares(spec, terms);
    for (std::int64_t e = 0; e < experts; ++e)
      set_element(of.dlogit_type, args.dlogits, token * out_stride + e, static_cast<float>(t.gradient[e]));
  }
}

namespace {

/// Columns that are summed side by side.
constexpr std::int64_t kColumns = 256;

/// One row of sums, of columns [first, first + count): to[c] = (accumulate: to[c] +) sums[c].
void write(LogitType type, void* to, std::int64_t at, const double* sums, std::int64_t count,
           bool accumulate) {
  for (std::int64_t c = 0; c < count; ++c) {
    const double before = accumulate ? static_cast<double>(element_at(type, to, at + c)) : 0;
    set_element(type, to, at + c, static_cast<float>(before + sums[c]));
  }
}

/// sums[c] += factor · row[at + c].
void add_row(LogitType type, const void* row, std::int64_t at, std::int64_t count, double factor,
             double* sums) {
  for (std::int64_t c = 0; c < count; ++c)
    sums[c] += factor * static_cast<double>(element_at(type, row, at + c));
}

}  // namespace

void router_product_gradient(const RouterGradientSpec& of, const RouterProductGradientArgs& args) noexcept {
  const RouterSpec& spec = of.router;
  const std::int64_t experts = spec.num_experts, hidden = spec.hidden_size;
  const std::int64_t tokens = live_tokens(args.tokens, args.token_count);
  const LogitType input = spec.input_type == DType::bf16 ? LogitType::bf16 : LogitType::fp16;
  const auto stride = [](std::int64_t given, std::int64_t least) { return given != 0 ? given : least; };
  const std::int64_t dlogit_stride = stride(args.dlogit_stride, experts),
                     x_stride = stride(args.x_stride, hidden),
                     weight_stride = stride(args.weight_stride, hidden),
                     dx_stride = stride(args.dx_stride, hidden),
                     dweight_stride = stride(args.dweight_stride, hidden);
  const auto dlogit = [&](std::int64_t t, std::int64_t e) {
    return static_cast<double>(args.dlogits[t * dlogit_stride + e]);
  };
  for (std::int64_t first = 0; first < hidden; first += kColumns) {
    const std::int64_t count = std::min(kColumns, hidden - first);
    for (std::int64_t t = 0; args.dx && t < tokens; ++t) {
      double sums[kColumns] = {};
      for (std::int64_t e = 0; e < experts; ++e)
        add_row(spec.weight_type, args.weight, e * weight_stride + first, count, dlogit(t, e), sums);
      write(input, args.dx, t * dx_stride + first, sums, count, args.accumulate_dx);
    }
    for (std::int64_t e = 0; args.dweight && e < experts; ++e) {
      double sums[kColumns] = {};
      for (std::int64_t t = 0; t < tokens; ++t)
        add_row(input, args.x, t * x_stride + first, count, dlogit(t, e), sums);
      write(of.dweight_type, args.dweight, e * dweight_stride + first, sums, count, args.accumulate_weight);
    }
  }
  for (std::int64_t e = 0; args.dlogit_bias && e < experts; ++e) {
    double sum = 0;
    for (std::int64_t t = 0; t < tokens; ++t) sum += dlogit(t, e);
    write(LogitType::fp32, args.dlogit_bias, e, &sum, 1, args.accumulate_weight);
  }
}

}  // namespace varmoe::cpu
