#pragma once

#include "moe/route.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/reduce.cuh"

// The router's backward pass: gradients of topk_weights and of its losses → those of logits (varmoe/router_gradient.hpp has the formulas). One warp a token, as the
// router itself; before it, where a loss of the mean scores takes part, one block for what that loss means to each expert. Every sum has one order.
namespace varmoe::moe {

/// Tokens that losses are means over.
VARMOE_DEVICE float tokens_of_losses(const abi::RouterGradientParams& p, i64 tokens) {
  return static_cast<float>(p.loss_tokens != 0 ? p.loss_tokens : tokens);
}

VARMOE_DEVICE i64 tokens_of_gradient(const abi::RouterGradientParams& p) {
  return p.token_count == nullptr ? p.tokens : max_of(0, min_of(p.tokens, *p.token_count));
}

template <class Router, int kThreads>
struct RouterGradient {
  using R = Route<Router, kThreads>;
  static constexpr int kExperts = Router::kExperts;
  static constexpr int kTopK = Router::kTopK;
  static constexpr int kValues = R::kValues;
  /// Softmax over all experts enters somewhere.
  static constexpr bool kAll = R::kSumAll || Router::kZLoss || (Router::kShareLosses && !Router::kSigmoid);

  /// One slot of a token, that of the lane's number.
  struct Slot {
    i32 expert;  // −1: none
    float d;     // by its expert's logit
    float all;   // Softmax over all experts: minus what every expert's share of it is multiplied by. The same in all lanes.
  };

  VARMOE_DEVICE static float greatest_of(const float (&value)[kValues]) {
    u32 top = kNoCandidate;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const u32 key = rank_key(__float_as_uint(value[i]));
      top = key > top ? key : top;
    }
    return __uint_as_float(rank_value(ptx::warp_max(top)));
  }

  VARMOE_DEVICE static Slot slot_of(const abi::RouterGradientParams& p, i64 token, const void* row, float greatest, float total) {
    const bool mine = R::lane() < kTopK;
    const i64 at = token * kTopK + R::lane();
    i64 id = -1;
    if (mine) id = p.ids_are_64bit != 0 ? static_cast<const i64*>(p.topk_ids)[at] : static_cast<const i32*>(p.topk_ids)[at];
    const bool there = id >= 0 && id < kExperts;
    Slot slot{there ? static_cast<i32>(id) : -1, 0.0f, 0.0f};
    const float logit = there ? R::load(row, slot.expert) : R::negative_infinity();
    const float g = there ? p.dtopk_weights[at] * __uint_as_float(Router::kScaleBits) : 0.0f;

    float weight;
    if constexpr (Router::kSigmoid) {
      weight = R::sigmoid(logit);
    } else if constexpr (Router::kOverChosen) {
      const float best = __uint_as_float(rank_value(ptx::warp_max(rank_key(__float_as_uint(logit)))));
      weight = R::exponential(logit, best);
      const float sum = ptx::warp_sum(weight);
      weight = sum > 0.0f ? weight / sum : 0.0f;
    } else {
      weight = total > 0.0f ? R::exponential(logit, greatest) / total : 0.0f;
    }
    const float share = weight;
    if constexpr (Router::kRenormalize) {
      const float divisor = ptx::warp_sum(weight) + __uint_as_float(Router::kEpsilonBits);
      weight = divisor > 0.0f ? weight / divisor : 0.0f;
      slot.d = weight * (g - ptx::warp_sum(g * weight));
    } else {
      slot.d = weight * g;
    }
    if constexpr (Router::kSigmoid) {
      slot.d *= R::sigmoid(-logit);
    } else {
      const float sum = ptx::warp_sum(slot.d);
      if constexpr (Router::kOverChosen) {
        slot.d -= share * sum;
      } else {
        slot.all = sum;
      }
    }
    return slot;
  }

  VARMOE_DEVICE static void store(void* row, i32 expert, float value) {
    if constexpr (Router::kGradient == LogitElement::fp32) {
      static_cast<float*>(row)[expert] = value;
    } else {
      constexpr Element kElement = Router::kGradient == LogitElement::bf16 ? Element::bf16 : Element::fp16;
      static_cast<unsigned short*>(row)[expert] = static_cast<unsigned short>(ptx::pack2<kElement>(value, 0.0f) & 0xffffu);
    }
  }

  VARMOE_DEVICE static void run(const abi::RouterGradientParams& p) {
    const i64 token = static_cast<i64>(blockIdx.x) * R::kWarps + R::warp();
    ptx::follow_earlier_kernels();
    const i64 tokens = tokens_of_gradient(p);
    if (token >= tokens) return;
    const void* row = static_cast<const char*>(p.logits) + token * p.logit_stride * R::kElementBytes;
    float value[kValues];
    R::load_logits(value, row, p.wide_loads != 0);

    float greatest = 0, total = 0;
    if constexpr (kAll) {
      greatest = greatest_of(value);
#pragma unroll
      for (int i = 0; i < kValues; ++i) total += R::exponential(value[i], greatest);
      total = ptx::warp_sum(total);
    }
    Slot slot{-1, 0.0f, 0.0f};
    if (p.dtopk_weights != nullptr) slot = slot_of(p, token, row, greatest, total);

    // What an expert's share of the softmax over all is multiplied by.
    float of_share = -slot.all;
    if constexpr (Router::kZLoss) {
      const float log_sum = total > 0.0f ? greatest + logf(total) : 0.0f;
      const float z = 2.0f * p.coefficients[0] / tokens_of_losses(p, tokens) * log_sum;
      of_share += fabsf(log_sum) < __uint_as_float(0x7f800000u) ? z : 0.0f;
    }
    // Shares that the mean scores are means of, and the mean of their terms.
    float mean_term = 0, share_sum = total;
    if constexpr (Router::kShareLosses) {
      if (p.terms != nullptr) {
        if constexpr (Router::kSigmoid) {
          share_sum = 0;
#pragma unroll
          for (int i = 0; i < kValues; ++i) share_sum += R::exists(i) ? R::sigmoid(value[i]) : 0.0f;
          share_sum = ptx::warp_sum(share_sum);
        }
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const float score = Router::kSigmoid ? R::sigmoid(value[i]) : R::exponential(value[i], greatest);
          if (R::exists(i)) mean_term += score * p.terms[R::expert_at(i)];
        }
        mean_term = share_sum > 0.0f ? ptx::warp_sum(mean_term) / share_sum : 0.0f;
      }
    }

    float gradient[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      gradient[i] = 0;
      if constexpr (kAll) {
        const float share = total > 0.0f ? R::exponential(value[i], greatest) / total : 0.0f;
        gradient[i] = share * of_share;
      }
      if constexpr (Router::kShareLosses) {
        if (p.terms != nullptr && share_sum > 0.0f && R::exists(i)) {
          float share = Router::kSigmoid ? R::sigmoid(value[i]) : R::exponential(value[i], greatest);
          share /= share_sum;
          if constexpr (Router::kSigmoid) share *= R::sigmoid(-value[i]);
          gradient[i] += share * (p.terms[R::expert_at(i)] - mean_term);
        }
      }
    }
    if (p.dtopk_weights != nullptr) {
#pragma unroll 1
      for (int j = 0; j < kTopK; ++j) {
        const i32 expert = __shfl_sync(0xffffffffu, slot.expert, j);
        const float d = __shfl_sync(0xffffffffu, slot.d, j);
#pragma unroll
        for (int i = 0; i < kValues; ++i) gradient[i] += R::expert_at(i) == expert ? d : 0.0f;
      }
    }
    constexpr i64 kBytes = Router::kGradient == LogitElement::fp32 ? 4 : 2;
    void* to = static_cast<char*>(p.dlogits) + token * p.dlogit_stride * kBytes;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (R::exists(i)) store(to, R::expert_at(i), gradient[i]);
    }
  }
};

/// One block, a thread an expert: the gradient of the losses of mean scores by an expert's mean, divided by tokens.
template <class Router, int kThreads>
struct RouterLossTerms {
  static constexpr int kExperts = Router::kExperts;
  static_assert(kThreads >= kExperts);

  struct Shared {
    float means[kExperts];
    float products[kExperts];
    i32 widths[kExperts];
  };

  VARMOE_DEVICE static void run(const abi::RouterGradientParams& p, Shared& s) {
    const i32 e = static_cast<i32>(threadIdx.x);
    ptx::follow_earlier_kernels();
    const i64 tokens = tokens_of_gradient(p);
    const float of_losses = tokens_of_losses(p, tokens);
    const bool mine = e < kExperts;
    float share = 0;
    if (mine) {
      share = of_losses > 0.0f ? static_cast<float>(p.tokens_per_expert[e]) / (of_losses * static_cast<float>(Router::kTopK)) : 0.0f;
      s.means[e] = p.mean_scores != nullptr ? p.mean_scores[e] : 0.0f;
      s.products[e] = share * s.means[e];
      s.widths[e] = p.expert_widths != nullptr ? p.expert_widths[e] : 1;
    }
    __syncthreads();
    if (!mine) return;
    const i32 width = s.widths[e];
    float all_widths = 0, mean = 0, product = 0, members = 0;
    for (i32 o = 0; o < kExperts; ++o) {
      const bool same = s.widths[o] == width;
      all_widths += static_cast<float>(s.widths[o]);
      mean += same ? s.means[o] : 0.0f;
      product += same ? s.products[o] : 0.0f;
      members += same ? 1.0f : 0.0f;
    }
    constexpr float kAll = static_cast<float>(kExperts);
    float term = p.coefficients[1] * kAll * share;
    // Below 2^-100 a quotient could overflow.
    if (p.coefficients[2] != 0.0f && mean >= __uint_as_float(0x0d800000u)) term += p.coefficients[2] * (members * (share - product / mean) / mean);
    term += p.coefficients[3] * kAll * (static_cast<float>(width) / (all_widths / kAll)) * share;
    p.terms[e] = of_losses > 0.0f ? term / of_losses : 0.0f;
  }
};

template <class Router, int kThreads>
VARMOE_DEVICE void router_dlogits(const abi::RouterGradientParams& p) {
  RouterGradient<Router, kThreads>::run(p);
}

template <class Router, int kThreads>
VARMOE_DEVICE void router_loss_terms(const abi::RouterGradientParams& p) {
  __shared__ typename RouterLossTerms<Router, kThreads>::Shared shared;
  RouterLossTerms<Router, kThreads>::run(p, shared);
}

}  // namespace varmoe::moe
