#pragma once

#include "epilogue/activation_backward.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// dz = dh ∘ activation'(z) of a caller's rows by expert, where dh lies in memory: what moe/dh.cuh does with its product while it is in
// registers. Columns from the width to the next multiple of 64 get zeroes.
namespace varmoe::moe {

/// Columns of a row that a block takes at a time.
inline constexpr i32 kSliceColumns = 512;

/// Layer (emitted): see epilogue/activation_backward.cuh, with kStoresH = false, and kSlices of the widest row.
template <class Layer, int kThreads>
VARMOE_DEVICE void activation_gradient(const abi::GemmParams& p) {
  using Backward = epilogue::ActivationBackward<Layer, 0>;
  ptx::follow_earlier_kernels();
  const i32 items = p.tile_counts->fc2_begin[p.classes] * Layer::kSlices;
  for (i32 item = static_cast<i32>(blockIdx.x); item < items; item += static_cast<i32>(gridDim.x)) {
    const abi::RowTile t = p.tiles[item / Layer::kSlices];
    const i32 first = item % Layer::kSlices * kSliceColumns, width = p.experts[t.expert].width;
    const i32 chunks = min_of(kSliceColumns, Backward::whole(width) - first) / 8;
    if (chunks <= 0) continue;
#pragma unroll 2
    for (i32 i = static_cast<i32>(threadIdx.x); i < t.rows * chunks; i += kThreads) {
      const i32 row = t.row_begin + i / chunks, column = first + i % chunks * 8;
      const bool there = column < width;
      const Vec16 dh = ptx::load16_streaming(static_cast<const char*>(p.a) + (row * p.a_stride + column) * 2, there);
      Backward backward(p, t.expert, row, column, width);
      typename Backward::Z z;
      backward.load(z, there);
      float g[8], unused = 0.0f;
#pragma unroll
      for (int c = 0; c < 4; ++c) ptx::unpack2<Backward::kElement>(g[2 * c], g[2 * c + 1], dh.v[c]);
      backward.store(g, z, 1.0f, unused, true);
    }
  }
}

}  // namespace varmoe::moe
