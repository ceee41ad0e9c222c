#pragma once

#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// Copies rows of x into expert order: out[r] = x[row_source[r] / k]. One 16-byte chunk a thread and step, several in flight.
namespace varmoe::moe {

template <class Layer, int kThreads>
VARMOE_DEVICE void gather(const abi::GatherParams& p) {
  constexpr i32 kChunks = Layer::kHidden / 8;
  constexpr int kInFlight = 4;
  ptx::follow_earlier_kernels();
  const i64 total = static_cast<i64>(p.tile_counts->rows) * kChunks;
  const i64 step = static_cast<i64>(gridDim.x) * kThreads;
  for (i64 first = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; first < total; first += kInFlight * step) {
    Vec16 v[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const i64 i = first + u * step;
      if (i >= total) continue;
      const i32 row = static_cast<i32>(i / kChunks);
      const i32 chunk = static_cast<i32>(i - static_cast<i64>(row) * kChunks);
      const i32 token = static_cast<i32>(static_cast<u32>(p.row_source[row]) / Layer::kTopK);
      v[u] = ptx::load16_streaming(static_cast<const char*>(p.x) + token * p.x_stride * 2 + static_cast<i64>(chunk) * 16);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const i64 i = first + u * step;
      if (i < total) ptx::store16(static_cast<char*>(p.out) + i * 16, v[u]);
    }
  }
}

}  // namespace varmoe::moe
