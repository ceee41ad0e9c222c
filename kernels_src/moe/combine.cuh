#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// out[t] (+)= Σ_slot weight[t·k + slot]·y[slot_row[t·k + slot]] in fp32, ascending slot. Deterministic: one thread sums
// one 16-byte chunk of one token. Slots without a row (an id of −1 or ≥ E) add nothing; a token with none gets zeroes, or is passed
// over on request. Weight on input (emitted: kWeightOnInput): fc1 has applied the weights, so each row counts once.
// The last kSharedExperts of the kTopK slots are those of shared experts: their weight is 1, or the token's of p.shared_weight.
namespace varmoe::moe {

template <class Layer, int kThreads>
VARMOE_DEVICE void combine(const abi::CombineParams& p) {
  constexpr i32 kChunks = Layer::kHidden / 8;
  constexpr int kTopK = Layer::kTopK;
  constexpr int kRouted = kTopK - Layer::kSharedExperts;
  // Eight routed and a shared one or two go in one pass.
  constexpr int kMostInFlight = Layer::kSharedExperts > 0 && kTopK <= 10 ? 10 : 8;
  constexpr int kInFlight = kTopK < kMostInFlight ? kTopK : kMostInFlight;
  ptx::follow_earlier_kernels();
  i32 tokens = p.tokens;
  if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count - p.token_begin));
  const i64 total = static_cast<i64>(tokens) * kChunks;
  const i64 step = static_cast<i64>(gridDim.x) * kThreads;
  for (i64 i = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; i < total; i += step) {
    const i32 token = static_cast<i32>(i / kChunks);
    const i32 chunk = static_cast<i32>(i - static_cast<i64>(token) * kChunks);
    const i32* slots = p.slot_row + static_cast<i64>(token) * kTopK;
    const float* weights = p.topk_weights + static_cast<i64>(token) * kRouted;
    float shared_weight = 1.0f;
    if constexpr (Layer::kSharedGate) shared_weight = p.shared_weight[token];
    const char* column = static_cast<const char*>(p.y) + static_cast<i64>(chunk) * 16;
    float sum[8] = {};
    i32 any = -1;  // negative: no slot of the token has a row
    // No full unrolling over large k: kInFlight rows are read ahead, then added in order.
#pragma unroll 1
    for (int s0 = 0; s0 < kTopK; s0 += kInFlight) {
      Vec16 v[kInFlight];
      float weight[kInFlight];
#pragma unroll
      for (int s = 0; s < kInFlight; ++s) {
        const i32 row = kTopK % kInFlight == 0 || s0 + s < kTopK ? slots[s0 + s] : -1;
        v[s] = Vec16{{0, 0, 0, 0}};
        any &= row;
        // Slots without a row may carry any weight, NaN too.
        if constexpr (Layer::kSharedExperts > 0) {
          const float routed = s0 + s >= kRouted ? shared_weight : Layer::kWeightOnInput ? 1.0f : weights[s0 + s];
          weight[s] = row < 0 ? 0.0f : routed;
        } else if constexpr (Layer::kWeightOnInput) {
          weight[s] = row >= 0 ? 1.0f : 0.0f;
        } else {
          weight[s] = row >= 0 ? weights[s0 + s] : 0.0f;
        }
        if (row >= 0) v[s] = ptx::load16_streaming(column + static_cast<i64>(row) * (Layer::kHidden * 2));
      }
#pragma unroll
      for (int s = 0; s < kInFlight; ++s) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float lo, hi;
          ptx::unpack2<Layer::kElement>(lo, hi, v[s].v[c]);
          sum[2 * c] += weight[s] * lo;
          sum[2 * c + 1] += weight[s] * hi;
        }
      }
    }
    if (p.keep_absent && any < 0) continue;
    char* out = static_cast<char*>(p.out) + (static_cast<i64>(token) * p.out_stride + chunk * 8) * 2;
    if (p.accumulate) {
      const Vec16 old = ptx::load16_streaming(out);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float lo, hi;
        ptx::unpack2<Layer::kElement>(lo, hi, old.v[c]);
        sum[2 * c] += lo;
        sum[2 * c + 1] += hi;
      }
    }
    Vec16 d;
#pragma unroll
    for (int c = 0; c < 4; ++c) d.v[c] = ptx::pack2<Layer::kElement>(sum[2 * c], sum[2 * c + 1]);
    ptx::store16(out, d);
  }
}

}  // namespace varmoe::moe
