#include "cpu/route.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "cpu/logits.hpp"
#include "cpu/team.hpp"

namespace varmoe::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// Logits that are worth a further thread.
constexpr std::int64_t kLogitsPerThread = 1 << 15;
constexpr std::int64_t kTokensPerTurn = 16;

/// One product: Σ x·w over H in fp32, sixteen sums side by side.
template <LogitType kX, LogitType kW>
float dot(const void* x, std::int64_t x_at, const void* w, std::int64_t w_at, std::int64_t hidden) {
  constexpr std::int64_t kLanes = 16;
  float sum[kLanes] = {};
  std::int64_t k = 0;
  for (; k + kLanes <= hidden; k += kLanes)
    for (std::int64_t i = 0; i < kLanes; ++i)
      sum[i] += element_at<kX>(x, x_at + k + i) * element_at<kW>(w, w_at + k + i);
  for (std::int64_t i = 0; k + i < hidden; ++i)
    sum[i] += element_at<kX>(x, x_at + k + i) * element_at<kW>(w, w_at + k + i);
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2)
    for (std::int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

using Dot = float (*)(const void*, std::int64_t, const void*, std::int64_t, std::int64_t);

template <LogitType kX>
Dot dot_of(LogitType weight) {
  switch (weight) {
    case LogitType::fp32:
      return dot<kX, LogitType::fp32>;
    case LogitType::bf16:
      return dot<kX, LogitType::bf16>;
    case LogitType::fp16:
      break;
  }
  return dot<kX, LogitType::fp16>;
}

/// One token's logits, from where they lie or from the router's product.
void read_logits(const RouterSpec& spec, const RouteArgs& args, std::int64_t token, float* logits) {
  if (spec.hidden_size == 0) {
    const std::int64_t stride = args.logit_stride != 0 ? args.logit_stride : spec.num_experts;
    for (std::int64_t e = 0; e < spec.num_experts; ++e)
      logits[e] = element_at(spec.logit_type, args.logits, token * stride + e);
    return;
  }
  const Dot multiply = spec.input_type == DType::bf16 ? dot_of<LogitType::bf16>(spec.weight_type)
                                                      : dot_of<LogitType::fp16>(spec.weight_type);
  const std::int64_t x_stride = args.x_stride != 0 ? args.x_stride : spec.hidden_size;
  const std::int64_t weight_stride = args.weight_stride != 0 ? args.weight_stride : spec.hidden_size;
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    logits[e] = multiply(args.x, token * x_stride, args.weight, e * weight_stride, spec.hidden_size);
    if (spec.logit_bias) logits[e] += args.logit_bias[e];
  }
  if (args.logits_out) std::copy_n(logits, spec.num_experts, args.logits_out + token * spec.num_experts);
}

/// NaN ranks as −∞.
float ranked(float value) {
  return std::isnan(value) ? -kInfinity : value;
}

/// e^(logit − greatest), the limit where both are infinite; 0 for NaN, and everywhere when no logit is above
/// −∞.
float exponential(float logit, float greatest) {
  if (!(logit > -kInfinity)) return 0;
  return logit == greatest ? 1.0f : std::exp(logit - greatest);
}

float sigmoid(float logit) {
  return std::isnan(logit) ? 0.0f : 1.0f / (1.0f + std::exp(-logit));
}

float ratio(float part, float whole) {
  return whole > 0 ? part / whole : 0.0f;
}

/// One token: its logits, scores and what its experts are chosen by.
struct Token {
  std::int64_t experts;
  float logit[kMaxExperts], score[kMaxExperts], choice[kMaxExperts];
  bool candidate[kMaxExperts];
  float greatest = -kInfinity;

  void read(const RouterSpec& spec, const RouteArgs& args, std::int64_t token) {
    experts = spec.num_experts;
    float total = 0;
    greatest = -kInfinity;
    read_logits(spec, args, token, logit);
    for (std::int64_t e = 0; e < experts; ++e) greatest = std::max(greatest, ranked(logit[e]));
    for (std::int64_t e = 0; e < experts; ++e) {
      score[e] = spec.scoring == Scoring::sigmoid ? sigmoid(logit[e]) : exponential(logit[e], greatest);
      total += score[e];
    }
    if (spec.scoring == Scoring::softmax)
      for (std::int64_t e = 0; e < experts; ++e) score[e] = ratio(score[e], total);
  }

  void choose_by(const RouterSpec& spec, const float* bias) {
    const bool by_score = chooses_by_score(spec);
    for (std::int64_t e = 0; e < experts; ++e) {
      const float c = !by_score ? logit[e] : spec.correction_bias ? score[e] + bias[e] : score[e];
      choice[e] = std::isnan(logit[e]) ? -kInfinity : ranked(c);
      candidate[e] = true;
    }
    if (spec.num_groups > spec.top_groups) limit_groups(spec);
  }

  void limit_groups(const RouterSpec& spec) {
    const std::int64_t size = experts / spec.num_groups;
    float value[kMaxExpertGroups];
    for (std::int64_t g = 0; g < spec.num_groups; ++g) {
      float first = -kInfinity, second = -kInfinity;
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
        second = std::max(second, std::min(first, choice[e]));
        first = std::max(first, choice[e]);
      }
      value[g] = ranked(spec.group_score == GroupScore::top2_sum ? first + second : first);
    }
    const bool zero = spec.correction_bias && spec.outside_groups == OutsideGroups::as_zero;
    for (std::int64_t g = 0; g < spec.num_groups; ++g) {
      std::int64_t better = 0;
      for (std::int64_t o = 0; o < spec.num_groups; ++o)
        better += value[o] > value[g] || (value[o] == value[g] && o < g) ? 1 : 0;
      if (better < spec.top_groups) continue;
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
        choice[e] = 0;
        candidate[e] = zero;
      }
    }
  }

  /// The best candidate, the lower index of equals; it is none from then on.
  std::int64_t take_best() {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < experts; ++e)
      if (candidate[e] && (best < 0 || choice[e] > choice[best])) best = e;
    candidate[best] = false;
    return best;
  }
};

void route_token(const RouterSpec& spec, const RouteArgs& args, std::int64_t token) {
  Token t;
  t.read(spec, args, token);
  if (args.scores) std::copy_n(t.score, t.experts, args.scores + token * t.experts);
  t.choose_by(spec, args.correction_bias);
  std::int32_t* ids = args.topk_ids + token * spec.top_k;
  float* weights = args.topk_weights + token * spec.top_k;
  const bool over_chosen = spec.scoring == Scoring::softmax && spec.order == ScoreOrder::after_top_k;
  float sum = 0;
  for (std::int64_t j = 0; j < spec.top_k; ++j) {
    const std::int64_t e = t.take_best();
    ids[j] = static_cast<std::int32_t>(e);
    weights[j] = over_chosen ? exponential(t.logit[e], t.greatest) : t.score[e];
    sum += weights[j];
  }
  if (over_chosen) {
    const float whole = sum;
    sum = 0;
    for (std::int64_t j = 0; j < spec.top_k; ++j) sum += weights[j] = ratio(weights[j], whole);
  }
  const float divisor = sum + spec.epsilon;
  for (std::int64_t j = 0; j < spec.top_k; ++j)
    weights[j] = (spec.renormalize ? ratio(weights[j], divisor) : weights[j]) * spec.scaling_factor;
}

struct Work {
  const RouterSpec& spec;
  const RouteArgs& args;
  std::int64_t tokens;
  std::atomic<std::int64_t> next{0};

  static void member(void* context, int) noexcept {
    Work& work = *static_cast<Work*>(context);
    for (;;) {
      const std::int64_t first = work.next.fetch_add(kTokensPerTurn, std::memory_order_relaxed);
      if (first >= work.tokens) return;
      for (std::int64_t t = first; t < std::min(first + kTokensPerTurn, work.tokens); ++t)
        route_token(work.spec, work.args, t);
    }
  }
};

}  // namespace

struct CpuRouter::Impl {
  Impl(RouterSpec s, int threads) : spec(s), team(threads) {}
  RouterSpec spec;
  Team team;
};

CpuRouter::CpuRouter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuRouter::~CpuRouter() = default;

Result<std::unique_ptr<CpuRouter>> CpuRouter::create(const RouterSpec& spec, int threads) try {
  if (auto status = spec.validate(); !status) return std::move(status).error();
  const int count = threads > 0 ? std::min(threads, 1024) : available_cores();
  return std::unique_ptr<CpuRouter>(new CpuRouter(std::make_unique<Impl>(spec, count)));
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "no host memory for a CPU router");
}

void CpuRouter::route(const RouteArgs& args) noexcept {
  const std::int64_t tokens =
      args.token_count ? std::clamp<std::int64_t>(*args.token_count, 0, args.tokens) : args.tokens;
  // A product is H times the work of a logit that is there.
  const std::int64_t each = std::max<std::int64_t>(impl_->spec.hidden_size, 1);
  const std::int64_t worth = 1 + tokens * impl_->spec.num_experts * each / kLogitsPerThread;
  Work work{impl_->spec, args, tokens};
  impl_->team.run(static_cast<int>(std::min<std::int64_t>(worth, impl_->team.size())), Work::member, &work);
}

void align_rows(const AlignSpec& spec, const AlignArgs& args) noexcept {
  const auto expert_of = [&](std::int64_t row) {
    return args.id_type == IdType::int64 ? static_cast<const std::int64_t*>(args.topk_ids)[row]
                                         : static_cast<const std::int32_t*>(args.topk_ids)[row];
  };
  std::int64_t next[kMaxExperts + 1] = {};  // rows of each expert, then where its next one goes
  for (std::int64_t r = 0; r < args.rows; ++r)
    if (const std::int64_t e = expert_of(r); e >= 0 && e < spec.num_experts) ++next[e];
  std::int64_t begin = 0;
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    const std::int64_t blocks = (next[e] + spec.block_size - 1) / spec.block_size;
    std::fill_n(args.expert_ids + begin / spec.block_size, blocks, static_cast<std::int32_t>(e));
    next[e] = begin;
    begin += blocks * spec.block_size;
  }
  *args.num_tokens_post_pad = static_cast<std::int32_t>(begin);
  std::fill(args.expert_ids + begin / spec.block_size,
            args.expert_ids + aligned_blocks(spec, args.sorted_size), -1);
  std::fill_n(args.sorted_token_ids, args.sorted_size, static_cast<std::int32_t>(args.rows));
  for (std::int64_t r = 0; r < args.rows; ++r)
    if (const std::int64_t e = expert_of(r); e >= 0 && e < spec.num_experts)
      args.sorted_token_ids[next[e]++] = static_cast<std::int32_t>(r);
}

}  // namespace varmoe::cpu
