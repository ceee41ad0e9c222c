#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"
#include "schedule/tile_map.cuh"

// The gradient of each slot's weight, ⟨g, h⟩ (+ ⟨b2, dout_t⟩), or ⟨dz/w, z⟩ of weight on input: the partial sums that the epilogues of
// g = dout·W2 left for its row, in ascending column. Slots that name no expert here get 0.
namespace varmoe::moe {

/// Layer (emitted): kElement, kHidden, kExperts, kTopK, kSharedExperts, kUniformWidth (0: widths differ), kSharedGate, kBias
/// (fc2's, which a weight multiplies: not of weight on input).
template <class Layer, int kThreads>
class TopkWeightGradient {
  static constexpr int kTopK = Layer::kTopK;
  static constexpr int kRouted = kTopK - Layer::kSharedExperts;
  static constexpr int kLanes = Layer::kBias ? 32 : 1;  // that share a slot: biases are long
  static constexpr int kSlotsPerBlock = kThreads / kLanes;

 public:
  VARMOE_DEVICE explicit TopkWeightGradient(const abi::TopkWeightGradientParams& params) : p(params) {}

  VARMOE_DEVICE void run() const {
    i32 tokens = p.tokens;
    if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count));
    const i32 slots = tokens * kTopK, step = static_cast<i32>(gridDim.x) * kSlotsPerBlock;
    // The lanes of a warp that share a slot go round equally often.
    for (i32 slot = static_cast<i32>(blockIdx.x) * kSlotsPerBlock + static_cast<i32>(threadIdx.x) / kLanes; slot < slots; slot += step) visit(slot);
  }

 private:
  VARMOE_DEVICE void visit(i32 slot) const {
    const i32 token = slot / kTopK, j = slot % kTopK;
    const bool routed = j < kRouted;
    if (routed ? p.topk_gradient == nullptr : !Layer::kSharedGate) return;
    const i32 row = p.slot_row[slot];
    const float sum = row < 0 ? 0.0f : sum_of(row, token);
    if (threadIdx.x % kLanes != 0) return;
    if (routed) {
      p.topk_gradient[static_cast<i64>(token) * kRouted + j] = sum;
    } else if constexpr (Layer::kSharedGate) {
      p.shared_gradient[static_cast<i64>(token) * Layer::kSharedExperts + j - kRouted] = sum;
    }
  }

  VARMOE_DEVICE float sum_of(i32 row, i32 token) const {
    i32 expert = 0, width = Layer::kUniformWidth;
    if constexpr (Layer::kUniformWidth == 0 || Layer::kBias) {
      expert = schedule::upper_position(p.expert_offsets, Layer::kExperts, row);
      width = p.experts[expert].width;
    }
    const float* const partials = p.partials + static_cast<i64>(row) * p.partial_stride;
    const i32 spans = ceil_div(width, p.span);
    float sum = 0.0f;
#pragma unroll 4
    for (i32 i = 0; i < spans; ++i) sum += partials[i];
    if constexpr (Layer::kBias) sum += bias_of(expert, token);
    return sum;
  }

  /// ⟨b2, dout_t⟩.
  VARMOE_DEVICE float bias_of(i32 expert, i32 token) const {
    const char* const dout = static_cast<const char*>(p.dout) + token * p.dout_stride * 2;
    const char* const bias = reinterpret_cast<const char*>(p.biases[expert].down);
    float sum = 0.0f;
    for (i32 c = static_cast<i32>(threadIdx.x) % kLanes * 8; c < Layer::kHidden; c += kLanes * 8) {
      const Vec16 v = ptx::load16(dout + c * 2);
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        float d[2], b[2];
        ptx::unpack2<Layer::kElement>(d[0], d[1], v.v[i / 2]);
        // A bias is aligned to its element.
        ptx::unpack2<Layer::kElement>(b[0], b[1], ptx::load2(bias + (c + i) * 2) | ptx::load2(bias + (c + i + 1) * 2) << 16);
        sum += d[0] * b[0] + d[1] * b[1];
      }
    }
#pragma unroll
    for (int far = kLanes / 2; far > 0; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
    return sum;
  }

  const abi::TopkWeightGradientParams& p;
};

template <class Layer, int kThreads>
VARMOE_DEVICE void topk_weight_gradient(const abi::TopkWeightGradientParams& p) {
  ptx::follow_earlier_kernels();
  TopkWeightGradient<Layer, kThreads>(p).run();
}

}  // namespace varmoe::moe
