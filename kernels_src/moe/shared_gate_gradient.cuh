#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// Of a layer whose shared experts have one gate σ(x·w_g): with s_t = σ(1 − σ)·Σ dw over the token's shared rows, dw_g = Σ s_t·x_t and
// dx_t += s_t·w_g. The first blocks sum 64 columns of dw_g each, in one order; the others add to rows of dx.
namespace varmoe::moe {

template <class Gradient, int kThreads>
class SharedGateGradient {
  static constexpr Element kElement = Gradient::kElement;
  static constexpr i32 kColumns = 64, kGroups = kThreads / 8;
  static constexpr i32 kColumnBlocks = ceil_div(Gradient::kHidden, kColumns);

 public:
  VARMOE_DEVICE explicit SharedGateGradient(const abi::SharedGateGradientParams& params) : p(params) {}

  VARMOE_DEVICE void run(float (&sums)[kGroups][kColumns]) const {
    i32 tokens = p.tokens;
    if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count));
    const i32 block = static_cast<i32>(blockIdx.x);
    if (block < kColumnBlocks) {
      if (p.gradient != nullptr) gradient(block * kColumns, tokens, sums);
    } else if (p.dx != nullptr) {
      add(block - kColumnBlocks, static_cast<i32>(gridDim.x) - kColumnBlocks, tokens);
    }
  }

 private:
  VARMOE_DEVICE float slope(i32 token) const {
    const float gate = p.shared_weight[token];
    float sum = 0.0f;
    for (int s = 0; s < Gradient::kSharedExperts; ++s) sum += p.shared_gradient[static_cast<i64>(token) * Gradient::kSharedExperts + s];
    return gate * (1.0f - gate) * sum;
  }

  VARMOE_DEVICE void gradient(i32 first, i32 tokens, float (&sums)[kGroups][kColumns]) const {
    const i32 lane = static_cast<i32>(threadIdx.x) % 8, group = static_cast<i32>(threadIdx.x) / 8;
    const i32 column = first + lane * 8;
    float sum[8] = {};
    if (column < Gradient::kHidden) {
      for (i32 t = group; t < tokens; t += kGroups) {
        const float s = slope(t);
        const Vec16 v = ptx::load16_streaming(static_cast<const char*>(p.x) + (t * p.x_stride + column) * 2);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float lo, hi;
          ptx::unpack2<kElement>(lo, hi, v.v[c]);
          sum[2 * c] += s * lo;
          sum[2 * c + 1] += s * hi;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) sums[group][lane * 8 + c] = sum[c];
    __syncthreads();
    const i32 c = static_cast<i32>(threadIdx.x);
    if (c >= kColumns || first + c >= Gradient::kHidden) return;
    float total = 0.0f;
    for (i32 g = 0; g < kGroups; ++g) total += sums[g][c];
    if constexpr (Gradient::kFp32) {
      float* out = reinterpret_cast<float*>(*p.gradient) + first + c;
      *out = p.accumulate != 0 ? *out + total : total;
    } else {
      char* out = reinterpret_cast<char*>(*p.gradient) + (first + c) * 2;
      if (p.accumulate != 0) {
        float lo, hi;
        ptx::unpack2<kElement>(lo, hi, ptx::load2(out));
        total += lo;
      }
      ptx::store2(out, ptx::pack2<kElement>(total, 0.0f));
    }
  }

  VARMOE_DEVICE void add(i32 block, i32 blocks, i32 tokens) const {
    constexpr i32 kChunks = Gradient::kHidden / 8;
    const i64 total = static_cast<i64>(tokens) * kChunks;
    const char* const gate = reinterpret_cast<const char*>(*p.shared_gate);
    for (i64 i = static_cast<i64>(block) * kThreads + threadIdx.x; i < total; i += static_cast<i64>(blocks) * kThreads) {
      const i32 token = static_cast<i32>(i / kChunks), chunk = static_cast<i32>(i % kChunks);
      const float s = slope(token);
      char* const at = static_cast<char*>(p.dx) + (token * p.dx_stride + chunk * 8) * 2;
      const Vec16 w = ptx::load16(gate + chunk * 16), old = ptx::load16(at);
      Vec16 d;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float a[2], b[2];
        ptx::unpack2<kElement>(a[0], a[1], old.v[c]);
        ptx::unpack2<kElement>(b[0], b[1], w.v[c]);
        d.v[c] = ptx::pack2<kElement>(a[0] + s * b[0], a[1] + s * b[1]);
      }
      ptx::store16(at, d);
    }
  }

  const abi::SharedGateGradientParams& p;
};

template <class Gradient, int kThreads>
VARMOE_DEVICE void shared_gate_gradient(const abi::SharedGateGradientParams& p) {
  __shared__ float sums[kThreads / 8][64];
  ptx::follow_earlier_kernels();
  SharedGateGradient<Gradient, kThreads>(p).run(sums);
}

}  // namespace varmoe::moe
