#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"

// What the epilogues of g = dout·W2 (moe/dh.cuh, moe/dh_sm90.cuh) know of a routed row. From g they make dz and w·h
// (epilogue/activation_backward.cuh), and of the gradient of the row's weight a partial sum over each span of columns that one warp or
// warpgroup has; moe/topk_weight_gradient.cuh adds those up.
namespace varmoe::moe {

/// Layer (emitted): kTopK, kSharedExperts, kSharedGate, kExperts, kWeighsRows (else every row counts once).
template <class Layer>
struct DhRow {
  /// The row's weight, 0 unless `there`: shared experts' are 1, or their token's gate. Without branches: they would stand between
  /// accumulators and their next product.
  VARMOE_DEVICE static float weight(const abi::GemmParams& p, i32 expert, i32 row, bool there) {
    if constexpr (!Layer::kWeighsRows) return there ? 1.0f : 0.0f;
    const float* from = p.row_weight + row;
    if constexpr (Layer::kSharedGate) {
      const bool shared = expert >= Layer::kExperts - Layer::kSharedExperts;
      const u32 source = ptx::load4(p.row_source + row, there && shared);
      from = shared ? p.shared_weight + source / Layer::kTopK : from;
    }
    return __uint_as_float(ptx::load4(from, there));
  }

  /// Adds up `part` over the kLanes lanes that share a row (a power of two, neighbours) by halves, and stores it. Called by whole warps.
  template <int kLanes>
  VARMOE_DEVICE static void store_partial(const abi::GemmParams& p, i32 row, i32 span, float part, bool valid) {
#pragma unroll
    for (int far = kLanes / 2; far > 0; far /= 2) part += __shfl_xor_sync(0xffffffffu, part, far);
    if (valid && threadIdx.x % kLanes == 0) p.partials[static_cast<i64>(row) * p.partial_stride + span] = part;
  }
};

}  // namespace varmoe::moe
