#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// From dout to the rows that the combine added up, and to their weights: dy[r] = w·dout[t], ⟨dout[t], y[r]⟩. A warp a slot; sums in one
// order. Slots without a row have a gradient of 0.
namespace varmoe::moe {

template <class Layer, int kThreads>
VARMOE_DEVICE void combine_gradient(const abi::CombineGradientParams& p) {
  constexpr int kTopK = Layer::kTopK, kRouted = kTopK - Layer::kSharedExperts, kWarps = kThreads / 32;
  ptx::follow_earlier_kernels();
  i32 tokens = p.tokens;
  if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count));
  const i32 lane = static_cast<i32>(threadIdx.x) % 32;
  const i64 slots = static_cast<i64>(tokens) * kTopK, step = static_cast<i64>(gridDim.x) * kWarps;
  for (i64 s = static_cast<i64>(blockIdx.x) * kWarps + static_cast<i32>(threadIdx.x) / 32; s < slots; s += step) {
    const i64 token = s / kTopK;
    const i32 slot = static_cast<i32>(s - token * kTopK), row = p.slot_row[s];
    const bool routed = slot < kRouted;
    float* gradient = routed ? p.topk_gradient : p.shared_gradient;
    if (gradient != nullptr) gradient += routed ? token * kRouted + slot : token * Layer::kSharedExperts + slot - kRouted;
    float sum = 0.0f;
    if (row >= 0 && (gradient != nullptr || p.dy != nullptr)) {
      const float* const weights = routed ? p.topk_weights : p.shared_weight;
      const float weight = weights == nullptr ? 1.0f : weights[routed ? token * kRouted + slot : token];
      const char* const dout = static_cast<const char*>(p.dout) + token * p.dout_stride * 2;
      const char* const y = static_cast<const char*>(p.y) + static_cast<i64>(row) * (Layer::kHidden * 2);
      char* const dy = static_cast<char*>(p.dy) + static_cast<i64>(row) * (Layer::kHidden * 2);
      for (i32 c = lane * 8; c < Layer::kHidden; c += 256) {
        const Vec16 d = ptx::load16(dout + c * 2);
        Vec16 v{{0, 0, 0, 0}}, out;
        if (gradient != nullptr) v = ptx::load16_streaming(y + c * 2);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float a[2], b[2];
          ptx::unpack2<Layer::kElement>(a[0], a[1], d.v[i]);
          ptx::unpack2<Layer::kElement>(b[0], b[1], v.v[i]);
          sum += a[0] * b[0];
          sum += a[1] * b[1];
          out.v[i] = ptx::pack2<Layer::kElement>(weight * a[0], weight * a[1]);
        }
        if (p.dy != nullptr) ptx::store16(dy + c * 2, out);
      }
    }
    if (gradient == nullptr) continue;
#pragma unroll
    for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
    if (lane == 0) *gradient = sum;
  }
}

}  // namespace varmoe::moe
