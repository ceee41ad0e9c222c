#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// What a backward pass of the building blocks does with weights of rows, a warp a row; sums have one order.
namespace varmoe::moe {

/// Calls visit(tile, row) with whole warps. Tiles are shared out in parts of kThreads / 32 rows, kParts of them at a time: few tall tiles
/// keep many blocks busy.
template <int kThreads, class Visit>
VARMOE_DEVICE void walk_rows(const abi::RowTile* tiles, i32 count, const Visit& visit) {
  constexpr i32 kWarps = kThreads / 32, kParts = 8;
  const i32 warp = static_cast<i32>(threadIdx.x) / 32;
  for (i32 item = static_cast<i32>(blockIdx.x); item < count * kParts; item += static_cast<i32>(gridDim.x)) {
    const abi::RowTile t = tiles[item / kParts];
    for (i32 r = item % kParts * kWarps + warp; r < t.rows; r += kParts * kWarps) visit(t, t.row_begin + r);
  }
}

/// Over the lanes of a warp.
VARMOE_DEVICE float warp_sum(float part) {
#pragma unroll
  for (int far = 16; far > 0; far /= 2) part += __shfl_xor_sync(0xffffffffu, part, far);
  return part;
}

/// The gradients of the weights of down's rows, ⟨g, h⟩ (+ ⟨b2, dy⟩): the partial sums that the epilogue of g = dy·W2 left.
/// Layer (emitted): kElement, kHidden, kBias.
template <class Layer, int kThreads>
VARMOE_DEVICE void row_weight_gradient(const abi::BlockRowsParams& p) {
  ptx::follow_earlier_kernels();
  const i32 lane = static_cast<i32>(threadIdx.x) % 32;
  walk_rows<kThreads>(p.tiles, p.tile_counts->fc2_begin[p.classes], [&](const abi::RowTile& t, i32 row) {
    const float* const partials = p.partials + static_cast<i64>(row) * p.partial_stride;
    const i32 spans = ceil_div(p.experts[t.expert].width, p.span);
    float sum = 0.0f;
    for (i32 i = lane; i < spans; i += 32) sum += partials[i];
    if constexpr (Layer::kBias) {
      const char* const dy = static_cast<const char*>(p.a) + row * p.a_stride * 2;
      const char* const bias = reinterpret_cast<const char*>(p.biases[t.expert].down);
      for (i32 c = lane * 8; c < Layer::kHidden; c += 32 * 8) {
        const Vec16 v = ptx::load16(dy + c * 2);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          float d[2], b[2];
          ptx::unpack2<Layer::kElement>(d[0], d[1], v.v[i / 2]);
          // A bias is aligned to its element.
          ptx::unpack2<Layer::kElement>(b[0], b[1], ptx::load2(bias + (c + i) * 2) | ptx::load2(bias + (c + i + 1) * 2) << 16);
          sum += d[0] * b[0] + d[1] * b[1];
        }
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) p.dots[row] = sum;
  });
}

/// out[r] = w_r·a[r], rounded, which may be a itself, and dots[r] = ⟨a[r], b[r]⟩ if b is there. Layer (emitted): kElement, kHidden.
template <class Layer, int kThreads>
VARMOE_DEVICE void weigh_rows(const abi::BlockRowsParams& p) {
  ptx::follow_earlier_kernels();
  const i32 lane = static_cast<i32>(threadIdx.x) % 32;
  walk_rows<kThreads>(p.tiles, p.tile_counts->fc2_begin[p.classes], [&](const abi::RowTile&, i32 row) {
    const char* const a = static_cast<const char*>(p.a) + row * p.a_stride * 2;
    const char* const b = static_cast<const char*>(p.b) + row * p.b_stride * 2;
    char* const out = static_cast<char*>(p.out) + row * p.out_stride * 2;
    const float weight = p.weights[row];
    float sum = 0.0f;
    for (i32 c = lane * 8; c < Layer::kHidden; c += 32 * 8) {
      const Vec16 v = ptx::load16(a + c * 2), with = p.b != nullptr ? ptx::load16(b + c * 2) : Vec16{{0, 0, 0, 0}};
      Vec16 weighed;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x[2], y[2];
        ptx::unpack2<Layer::kElement>(x[0], x[1], v.v[i]);
        ptx::unpack2<Layer::kElement>(y[0], y[1], with.v[i]);
        sum += x[0] * y[0] + x[1] * y[1];
        weighed.v[i] = ptx::pack2<Layer::kElement>(weight * x[0], weight * x[1]);
      }
      ptx::store16(out + c * 2, weighed);
    }
    if (p.b == nullptr) return;
    sum = warp_sum(sum);
    if (lane == 0) p.dots[row] = sum;
  });
}

}  // namespace varmoe::moe
