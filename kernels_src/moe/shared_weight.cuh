#pragma once

#include "epilogue/activation.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"
#include "ptx/reduce.cuh"

// The weight that a token gives its shared experts where these have a gate: sigmoid(x·w_g) in fp32. A warp a token: lane l sums the
// 16-byte chunks l, l + 32, … in that order, then a fixed tree, so that a token's weight depends on its own x alone.
namespace varmoe::moe {

/// Tokens block, block + blocks, …, dealt to the block's warps.
template <class Layer, int kThreads>
VARMOE_DEVICE void shared_weights(const abi::SortParams& p, i32 tokens, i32 block, i32 blocks) {
  constexpr i32 kChunks = Layer::kHidden / 8;
  const i32 lane = static_cast<i32>(threadIdx.x) % 32, warp = static_cast<i32>(threadIdx.x) / 32;
  const char* gate = reinterpret_cast<const char*>(*p.shared_gate);
  for (i64 token = block + static_cast<i64>(warp) * blocks; token < tokens; token += static_cast<i64>(kThreads / 32) * blocks) {
    const char* x = static_cast<const char*>(p.x) + token * p.x_stride * 2;
    float sum = 0.0f;
#pragma unroll 4
    for (i32 chunk = lane; chunk < kChunks; chunk += 32) {
      const Vec16 a = ptx::load16_streaming(x + static_cast<i64>(chunk) * 16);
      const Vec16 b = ptx::load16(gate + static_cast<i64>(chunk) * 16);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float a_lo, a_hi, b_lo, b_hi;
        ptx::unpack2<Layer::kElement>(a_lo, a_hi, a.v[c]);
        ptx::unpack2<Layer::kElement>(b_lo, b_hi, b.v[c]);
        sum = __fmaf_rn(a_lo, b_lo, sum);
        sum = __fmaf_rn(a_hi, b_hi, sum);
      }
    }
    sum = ptx::warp_sum(sum);
    if (lane == 0) p.shared_weight[token] = activation::sigmoid(sum);
  }
}

}  // namespace varmoe::moe
