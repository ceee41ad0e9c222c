#pragma once

#include "moe/route.cuh"
#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/reduce.cuh"

// What a router did with its tokens: slots and mean score of each expert, and the losses of varmoe/router_statistics.hpp, in two launches: sums over
// each block's tokens, then over blocks. Every sum has one order; the atomics count slots in integers, whose order is of no consequence.
namespace varmoe::moe {

template <class Router, int kThreads>
struct RouterStatistics {
  using R = Route<Router, kThreads>;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kExperts = Router::kExperts;

  struct Shared {
    float scores[kWarps][kExperts];
    float z[kWarps];
    i32 counts[kExperts];
  };

  VARMOE_DEVICE static i64 tokens_of(const abi::RouterStatisticsParams& p) {
    return p.token_count == nullptr ? p.tokens : max_of(0, min_of(p.tokens, *p.token_count));
  }

  /// Adds one token's scores, as shares of their sum, and returns its squared log-sum-exp.
  VARMOE_DEVICE static float add_token(float (&sum)[R::kValues], const abi::RouterStatisticsParams& p, i64 token) {
    const void* row = static_cast<const char*>(p.logits) + token * p.logit_stride * R::kElementBytes;
    float value[R::kValues];
    R::load_logits(value, row, p.wide_loads != 0);
    u32 top = kNoCandidate;
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      const u32 key = rank_key(__float_as_uint(value[i]));
      top = key > top ? key : top;
    }
    const float greatest = __uint_as_float(rank_value(ptx::warp_max(top)));
    float total = 0, share = 0;
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      const float term = R::exponential(value[i], greatest);
      total += term;
      value[i] = Router::kSigmoid ? (R::exists(i) ? R::sigmoid(value[i]) : 0.0f) : term;
      share += value[i];
    }
    total = ptx::warp_sum(total);
    share = Router::kSigmoid ? ptx::warp_sum(share) : total;
    if (share > 0.0f) {
#pragma unroll
      for (int i = 0; i < R::kValues; ++i) sum[i] += value[i] / share;
    }
    const float log_sum = total > 0.0f ? greatest + logf(total) : 0.0f;
    return log_sum * log_sum;
  }

  VARMOE_DEVICE static void blocks(const abi::RouterStatisticsParams& p, Shared& s) {
    const i32 thread = static_cast<i32>(threadIdx.x);
    for (i32 e = thread; e < kExperts; e += kThreads) s.counts[e] = 0;
    ptx::follow_earlier_kernels();
    const i64 tokens = tokens_of(p);
    const i64 begin = static_cast<i64>(blockIdx.x) * p.tokens_per_block;
    const i64 end = begin + p.tokens_per_block < tokens ? begin + p.tokens_per_block : tokens;
    __syncthreads();
    for (i64 slot = begin * Router::kTopK + thread; slot < end * Router::kTopK; slot += kThreads) {
      const i64 id = p.ids_are_64bit != 0 ? static_cast<const i64*>(p.topk_ids)[slot] : static_cast<const i32*>(p.topk_ids)[slot];
      if (id >= 0 && id < kExperts) atomicAdd(&s.counts[id], 1);
    }
    float sum[R::kValues] = {}, z = 0;
    for (i64 token = begin + R::warp(); token < end; token += kWarps) z += add_token(sum, p, token);
#pragma unroll
    for (int i = 0; i < R::kValues; ++i) {
      if (R::exists(i)) s.scores[R::warp()][R::expert_at(i)] = sum[i];
    }
    if (R::lane() == 0) s.z[R::warp()] = z;
    __syncthreads();
    const i64 to = static_cast<i64>(blockIdx.x) * kExperts;
    for (i32 e = thread; e < kExperts; e += kThreads) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += s.scores[w][e];
      p.block_scores[to + e] = all;
      p.block_counts[to + e] = s.counts[e];
    }
    if (thread == 0) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += s.z[w];
      p.block_z[blockIdx.x] = all;
    }
  }
};

/// One block: each thread an expert and a share of the blocks.
template <class Router, int kThreads>
struct RouterTotals {
  static constexpr int kExperts = Router::kExperts;
  static constexpr int kParts = kThreads / (ceil_div(kExperts, 32) * 32);
  static_assert(kParts >= 1);

  struct Shared {
    float scores[kParts][kExperts];
    i32 counts[kParts][kExperts];
    i32 widths[kExperts];
    float sums[kThreads / 32];
  };

  /// The block's sum, in every thread: warps in ascending order.
  VARMOE_DEVICE static float block_sum(float value, Shared& s) {
    const float of_warp = ptx::warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = of_warp;
    __syncthreads();
    float all = 0;
    for (int w = 0; w < kThreads / 32; ++w) all += s.sums[w];
    return all;
  }

  VARMOE_DEVICE static void run(const abi::RouterStatisticsParams& p, Shared& s) {
    constexpr i32 kLanes = kThreads / kParts;
    const i32 thread = static_cast<i32>(threadIdx.x), part = thread / kLanes, lane = thread % kLanes;
    ptx::follow_earlier_kernels();
    const i64 tokens = p.token_count == nullptr ? p.tokens : max_of(0, min_of(p.tokens, *p.token_count));
    if (part < kParts && lane < kExperts) {
      const i32 each = ceil_div(p.blocks, kParts), first = part * each, last = min_of(first + each, p.blocks);
      float score = 0;
      i32 count = 0;
#pragma unroll 4
      for (i32 b = first; b < last; ++b) {
        score += p.block_scores[static_cast<i64>(b) * kExperts + lane];
        count += p.block_counts[static_cast<i64>(b) * kExperts + lane];
      }
      s.scores[part][lane] = score;
      s.counts[part][lane] = count;
      if (part == 0) s.widths[lane] = p.expert_widths != nullptr ? p.expert_widths[lane] : 1;
    }
    __syncthreads();
    // From here on thread e speaks for expert e.
    const bool mine = thread < kExperts;
    float mean = 0;
    i32 count = 0;
    if (mine) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        mean += s.scores[i][thread];
        count += s.counts[i][thread];
      }
      mean = tokens > 0 ? mean / static_cast<float>(tokens) : 0.0f;
      if (p.tokens_per_expert != nullptr) p.tokens_per_expert[thread] = count;
      if (p.mean_scores != nullptr) p.mean_scores[thread] = mean;
    }
    if (p.losses == nullptr) return;
    __syncthreads();
    if (mine) s.scores[0][thread] = mean;
    __syncthreads();
    const i32 width = mine ? s.widths[thread] : 0;
    float group = 0;
    i32 members = 0;
    if (mine) {
      for (i32 e = 0; e < kExperts; ++e) {
        const bool same = s.widths[e] == width;
        group += same ? s.scores[0][e] : 0.0f;
        members += same ? 1 : 0;
      }
    }
    float z = 0;
    for (i32 b = thread; b < p.blocks; b += kThreads) z += p.block_z[b];
    z = block_sum(z, s);
    const float slots = static_cast<float>(tokens) * static_cast<float>(Router::kTopK);
    const float term = tokens > 0 ? static_cast<float>(count) / slots * mean : 0.0f;
    const float widths = block_sum(static_cast<float>(width), s);
    const float balance = block_sum(term, s);
    const float grouped = block_sum(group > 0.0f ? static_cast<float>(members) / group * term : 0.0f, s);
    const float weighed = block_sum(static_cast<float>(width) * term, s);
    if (thread == 0) {
      p.losses[0] = tokens > 0 ? z / static_cast<float>(tokens) : 0.0f;
      p.losses[1] = static_cast<float>(kExperts) * balance;
      p.losses[2] = grouped;
      p.losses[3] = static_cast<float>(kExperts) * (weighed / (widths / static_cast<float>(kExperts)));
    }
  }
};

template <class Router, int kThreads>
VARMOE_DEVICE void statistics_blocks(const abi::RouterStatisticsParams& p) {
  __shared__ typename RouterStatistics<Router, kThreads>::Shared shared;
  RouterStatistics<Router, kThreads>::blocks(p, shared);
}

template <class Router, int kThreads>
VARMOE_DEVICE void statistics_total(const abi::RouterStatisticsParams& p) {
  __shared__ typename RouterTotals<Router, kThreads>::Shared shared;
  RouterTotals<Router, kThreads>::run(p, shared);
}

}  // namespace varmoe::moe
