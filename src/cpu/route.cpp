#include "cpu/route.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "cpu/team.hpp"

namespace varmoe::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// Logits that are worth a further thread.
constexpr std::int64_t kLogitsPerThread = 1 << 15;
constexpr std::int64_t kTokensPerTurn = 16;

float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

float logit_at(const RouterSpec& spec, const RouteArgs& args, std::int64_t token, std::int64_t expert) {
  const std::int64_t stride = args.logit_stride != 0 ? args.logit_stride : spec.num_experts;
  const std::int64_t at = token * stride + expert;
  switch (spec.logit_type) {
    case LogitType::fp32:
      return static_cast<const float*>(args.logits)[at];
    case LogitType::bf16:
      return std::bit_cast<float>(
          static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(args.logits)[at]) << 16);
    case LogitType::fp16:
      return half_to_float(static_cast<const std::uint16_t*>(args.logits)[at]);
  }
  return 0;
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
    for (std::int64_t e = 0; e < experts; ++e) {
      logit[e] = logit_at(spec, args, token, e);
      greatest = std::max(greatest, ranked(logit[e]));
    }
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
  const std::int64_t worth = 1 + tokens * impl_->spec.num_experts / kLogitsPerThread;
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
