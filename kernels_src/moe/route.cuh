#pragma once

#include "moe/logit_element.cuh"
#include "moe/rank_key.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/reciprocal.cuh"
#include "ptx/reduce.cuh"

// The router: logits → the top-k experts of each token and their weights (docs/routing.md has the formulas). One warp a token, its
// values in registers; the best expert is found by two warp reductions, k times. The order of sums is fixed, ties go to the lower
// index, and a NaN logit ranks below every number and scores zero.
namespace varmoe::moe {

template <class Router, int kThreads>
struct Route {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kExperts = Router::kExperts;
  static constexpr int kTopK = Router::kTopK;
  static constexpr int kElementBytes = Router::kLogit == LogitElement::fp32 ? 4 : 2;
  static constexpr int kWide = experts_per_load(kExperts, kElementBytes);
  static constexpr int kValues = kWide * ceil_div(kExperts, 32 * kWide);  // of each lane
  static constexpr bool kGrouped = Router::kGroups > 1;
  static constexpr int kGroupSize = kExperts / Router::kGroups;
  /// Softmax: over all experts, or over those chosen alone.
  static constexpr bool kSumAll = !Router::kSigmoid && !Router::kOverChosen;

  /// Choice values of a warp's token, where groups of lanes read those of others.
  struct Shared {
    float choice[kGrouped ? kWarps : 1][kGrouped ? kExperts : 1];
  };

  VARMOE_DEVICE static i32 lane() { return static_cast<i32>(threadIdx.x) % 32; }
  VARMOE_DEVICE static i32 warp() { return static_cast<i32>(threadIdx.x) / 32; }
  /// The expert of a lane's i-th value; ascending in i. At or beyond kExperts: there is none.
  VARMOE_DEVICE static i32 expert_at(i32 i) { return (i / kWide * 32 + lane()) * kWide + i % kWide; }
  VARMOE_DEVICE static bool exists(i32 i) { return kExperts % (32 * kWide) == 0 || expert_at(i) < kExperts; }

  VARMOE_DEVICE static float negative_infinity() { return __uint_as_float(0xff800000u); }

  VARMOE_DEVICE static float load(const void* row, i32 expert) {
    if constexpr (Router::kLogit == LogitElement::fp32) {
      return static_cast<const float*>(row)[expert];
    } else {
      constexpr Element kElement = Router::kLogit == LogitElement::bf16 ? Element::bf16 : Element::fp16;
      float low, high;
      ptx::unpack2<kElement>(low, high, static_cast<const unsigned short*>(row)[expert]);
      return low;
    }
  }

  /// kWide elements at once, from an address that allows it.
  VARMOE_DEVICE static void load_wide(float* out, const void* row, i32 expert) {
    constexpr int kBytes = kWide * kElementBytes;
    const char* at = static_cast<const char*>(row) + static_cast<i64>(expert) * kElementBytes;
    u32 words[ceil_div(kBytes, 4)];
    if constexpr (kBytes == 16) {
      const Vec16 v = *reinterpret_cast<const Vec16*>(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = v.v[i];
    } else if constexpr (kBytes == 8) {
      const u64 v = *reinterpret_cast<const u64*>(at);
      words[0] = static_cast<u32>(v);
      words[1] = static_cast<u32>(v >> 32);
    } else if constexpr (kBytes == 4) {
      words[0] = *reinterpret_cast<const u32*>(at);
    } else {
      words[0] = *reinterpret_cast<const unsigned short*>(at);
    }
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      if constexpr (Router::kLogit == LogitElement::fp32) {
        out[i] = __uint_as_float(words[i]);
      } else {
        constexpr Element kElement = Router::kLogit == LogitElement::bf16 ? Element::bf16 : Element::fp16;
        float pair[2];
        ptx::unpack2<kElement>(pair[0], pair[1], words[i / 2]);
        out[i] = pair[i % 2];
      }
    }
  }

  /// This lane's logits; where there is no expert, −∞.
  VARMOE_DEVICE static void load_logits(float (&logit)[kValues], const void* row, bool wide) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) logit[i] = negative_infinity();
    if (wide) {
#pragma unroll
      for (int i = 0; i < kValues; i += kWide) {
        if (exists(i)) load_wide(logit + i, row, expert_at(i));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (exists(i)) logit[i] = load(row, expert_at(i));
      }
    }
  }

  /// The logits of a router that multiplies itself: partial sums of its product, added in their order, and the bias.
  VARMOE_DEVICE static void load_sums(float (&logit)[kValues], const float* row, const abi::RouteParams& p) {
    // Rows of partial sums that are asked for at once.
    constexpr int kAhead = kValues <= 8 ? 5 : 1;
    const i64 stride = static_cast<i64>(p.tokens) * kExperts;
    load_logits(logit, row, p.wide_loads != 0);
#pragma unroll 1
    for (i32 s = 1; s < p.partials; s += kAhead) {
      float next[kAhead][kValues];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (s + a < p.partials) {
          load_logits(next[a], row + (s + a) * stride, p.wide_loads != 0);
        } else {
#pragma unroll
          for (int i = 0; i < kValues; ++i) next[a][i] = -0.0f;
        }
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) logit[i] += next[a][i];
      }
    }
    if (p.logit_bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (exists(i)) logit[i] += p.logit_bias[expert_at(i)];
      }
    }
  }

  /// One expert's logit again, by the same sum.
  VARMOE_DEVICE static float logit_of(const void* row, i32 expert, const abi::RouteParams& p) {
    float logit = load(row, expert);
    if constexpr (Router::kFromProduct) {
      const i64 stride = static_cast<i64>(p.tokens) * kExperts;
      for (i32 s = 1; s < p.partials; ++s) logit += static_cast<const float*>(row)[s * stride + expert];
      if (p.logit_bias != nullptr) logit += p.logit_bias[expert];
    }
    return logit;
  }

  /// 0 for NaN, and where the score would be below 2^-125.
  VARMOE_DEVICE static float sigmoid(float logit) {
    constexpr float kLeast = -86.6f;
    const float score = ptx::reciprocal_of_normal(1.0f + expf(-fmaxf(logit, kLeast)));
    return logit >= kLeast ? score : 0.0f;
  }

  /// e^(logit − greatest), the limit where both are infinite; 0 for NaN, and everywhere when no logit is above −∞.
  VARMOE_DEVICE static float exponential(float logit, float greatest) {
    const float ratio = expf(fminf(logit - greatest, 0.0f));  // of NaN, and so of ∞ − ∞: 1
    return logit > negative_infinity() ? ratio : 0.0f;
  }

  /// Which groups are candidates: bit g. Kept are the kTopGroups best, ties to the lower index.
  VARMOE_DEVICE static u32 best_groups(const float* choice) {
    // kParts lanes share a group; they begin at different places, so that their reads fall into different banks.
    constexpr int kGroups = Router::kGroups;
    constexpr int kParts = kGroups > 16 ? 1 : kGroups > 8 ? 2 : kGroups > 4 ? 4 : kGroups > 2 ? 8 : 16;
    constexpr int kSteps = ceil_div(kGroupSize, kParts);
    const i32 group = lane() / kParts, part = lane() % kParts;
    float first = negative_infinity(), second = negative_infinity();
    if (group < Router::kGroups) {
#pragma unroll 8
      for (int step = 0; step < kSteps; ++step) {
        const i32 at = part + kParts * ((step + group) % kSteps);
        const float c = at < kGroupSize ? choice[group * kGroupSize + at] : negative_infinity();
        second = fmaxf(second, fminf(first, c));
        first = fmaxf(first, c);
      }
    }
#pragma unroll
    for (int d = 1; d < kParts; d *= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, first, d), other_second = __shfl_xor_sync(0xffffffffu, second, d);
      second = fmaxf(fminf(first, other), fmaxf(second, other_second));
      first = fmaxf(first, other);
    }
    const float score = Router::kGroupTop2 ? first + second : first;
    // From here on lane g speaks for group g.
    const u32 key = __shfl_sync(0xffffffffu, rank_key(__float_as_uint(score)), lane() * kParts % 32);
    i32 better = 0;
#pragma unroll
    for (int g = 0; g < Router::kGroups; ++g) {
      const u32 other = __shfl_sync(0xffffffffu, key, g);
      better += other > key || (other == key && g < lane()) ? 1 : 0;
    }
    return __ballot_sync(0xffffffffu, lane() < Router::kGroups && better < Router::kTopGroups);
  }

  VARMOE_DEVICE static void run(const abi::RouteParams& p, Shared& s) {
    const i64 token = static_cast<i64>(blockIdx.x) * kWarps + warp();
    ptx::follow_earlier_kernels();
    i64 tokens = p.tokens;
    if (p.token_count != nullptr) tokens = min_of(p.tokens, *p.token_count);
    if (token >= tokens) return;

    const void* row = static_cast<const char*>(p.logits) + token * p.logit_stride * kElementBytes;
    float value[kValues];
    if constexpr (Router::kFromProduct) {
      load_sums(value, static_cast<const float*>(row), p);
    } else {
      load_logits(value, row, p.wide_loads != 0);
    }
    // Asked for with the logits, not when they have come.
    float bias[Router::kBias ? kValues : 1];
    if constexpr (Router::kBias) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) bias[i] = exists(i) ? p.correction_bias[expert_at(i)] : 0.0f;
    }

    if constexpr (Router::kFromProduct) {
      if (p.logits_out != nullptr) {
        for (int i = 0; i < kValues; ++i) {
          if (exists(i)) p.logits_out[token * kExperts + expert_at(i)] = value[i];
        }
      }
    }

    // Softmax's exponent is taken from the greatest logit.
    float greatest = 0, total = 0;
    if constexpr (!Router::kSigmoid) {
      u32 top = kNoCandidate;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const u32 key = rank_key(__float_as_uint(value[i]));
        top = key > top ? key : top;
      }
      greatest = __uint_as_float(rank_value(ptx::warp_max(top)));
      if (kSumAll || p.scores != nullptr) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) total += exponential(value[i], greatest);
        total = ptx::warp_sum(total);
      }
    }
    const auto score = [&](float logit) {
      if constexpr (Router::kSigmoid) return sigmoid(logit);
      return total > 0.0f ? exponential(logit, greatest) / total : 0.0f;
    };
    if (p.scores != nullptr) {
      for (int i = 0; i < kValues; ++i) {
        if (exists(i)) p.scores[token * kExperts + expert_at(i)] = score(value[i]);
      }
    }

    // What experts are chosen by: logits, whose order is that of the scores, or scores with a bias.
    if constexpr (Router::kChooseByScore) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        float c = score(value[i]);
        if constexpr (Router::kBias) c += bias[i];
        value[i] = value[i] == value[i] && c == c ? c : negative_infinity();
      }
    }
    u32 groups = 0xffffffffu;
    if constexpr (kGrouped) {
      float* choice = s.choice[warp()];
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (exists(i)) choice[expert_at(i)] = value[i] == value[i] ? value[i] : negative_infinity();
      }
      __syncwarp();
      groups = best_groups(choice);
    }
    u32 key[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      key[i] = rank_key(__float_as_uint(value[i]));
      if constexpr (kGrouped) {
        constexpr u32 kOutside = Router::kOutsideIsZero ? 0x80000000u : kNoCandidate;
        if (((groups >> (expert_at(i) / kGroupSize % 32)) & 1u) == 0) key[i] = kOutside;
      }
      if (!exists(i)) key[i] = kNoCandidate;
    }

    // Lane j keeps the j-th choice.
    u32 best = kNoCandidate;
    i32 best_expert = 0;
    const auto find_best = [&] {
      best = kNoCandidate;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const bool better = key[i] > best;
        best = better ? key[i] : best;
        best_expert = better ? expert_at(i) : best_expert;
      }
    };
    find_best();
    i32 chosen = 0;
    u32 chosen_key = kNoCandidate;
#pragma unroll 1
    for (int j = 0; j < kTopK; ++j) {
      const u32 top = ptx::warp_max(best);
      const i32 expert = static_cast<i32>(ptx::warp_min(best == top ? static_cast<u32>(best_expert) : 0xffffffffu));
      if (lane() == j) {
        chosen = expert;
        chosen_key = top;
      }
      if (best == top && best_expert == expert) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          if (expert_at(i) == expert) key[i] = kNoCandidate;
        }
        find_best();
      }
    }

    const bool mine = lane() < kTopK;
    float weight = 0;
    if constexpr (Router::kSigmoid) {
      if constexpr (Router::kChooseByScore) {
        if (mine) weight = sigmoid(logit_of(row, chosen, p));
      } else {
        if (mine) weight = sigmoid(__uint_as_float(rank_value(chosen_key)));
      }
    } else {
      const float logit = Router::kChooseByScore ? (mine ? logit_of(row, chosen, p) : 0.0f) : __uint_as_float(rank_value(chosen_key));
      weight = mine ? exponential(logit, greatest) : 0.0f;
      float sum = total;
      if constexpr (Router::kOverChosen) sum = ptx::warp_sum(weight);
      weight = sum > 0.0f ? weight / sum : 0.0f;
    }
    if constexpr (Router::kRenormalize) {
      const float sum = ptx::warp_sum(weight) + __uint_as_float(Router::kEpsilonBits);
      weight = sum > 0.0f ? weight / sum : 0.0f;
    }
    if (mine) {
      p.topk_ids[token * kTopK + lane()] = chosen;
      p.topk_weights[token * kTopK + lane()] = weight * __uint_as_float(Router::kScaleBits);
    }
  }
};

template <class Router, int kThreads>
VARMOE_DEVICE void route(const abi::RouteParams& p) {
  __shared__ typename Route<Router, kThreads>::Shared shared;
  Route<Router, kThreads>::run(p, shared);
}

}  // namespace varmoe::moe
