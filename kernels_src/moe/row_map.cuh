#pragma once

#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// A caller's map from rows to token·k + slot (or to tokens), with padding: entries that are negative, or not below the limit, are no rows,
// which are neither read nor written.
namespace varmoe::moe {

VARMOE_DEVICE i32 mapped_rows(const abi::RowMapParams& p) { return p.row_count == nullptr ? p.rows : max_of(0, min_of(p.rows, *p.row_count)); }

/// out[r] = x[token of row_map[r]]: one 16-byte chunk a thread and step, several in flight.
template <class Layer, int kThreads>
VARMOE_DEVICE void block_gather(const abi::RowMapParams& p) {
  constexpr i32 kChunks = Layer::kHidden / 8;
  constexpr int kInFlight = 4;
  ptx::follow_earlier_kernels();
  const i64 total = static_cast<i64>(mapped_rows(p)) * kChunks;
  const i64 step = static_cast<i64>(gridDim.x) * kThreads;
  for (i64 begin = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; begin < total; begin += kInFlight * step) {
    Vec16 v[kInFlight];
    bool is_row[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const i64 i = begin + u * step;
      is_row[u] = false;
      if (i >= total) continue;
      const i32 row = static_cast<i32>(i / kChunks);
      const i32 chunk = static_cast<i32>(i - static_cast<i64>(row) * kChunks);
      const u32 named = static_cast<u32>(p.row_map[row]);
      is_row[u] = named < static_cast<u32>(p.limit);
      const i64 token = p.names_tokens ? named : named / Layer::kTopK;
      if (is_row[u]) v[u] = ptx::load16_streaming(static_cast<const char*>(p.x) + token * p.x_stride * 2 + static_cast<i64>(chunk) * 16);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (is_row[u]) ptx::store16(static_cast<char*>(p.out) + (begin + u * step) * 16, v[u]);
    }
  }
}

/// Without a map: slot_row[s] = −1 for all slots. With one, behind that: slot_row[row_map[r]] = r.
template <int kThreads>
VARMOE_DEVICE void block_slot_rows(const abi::RowMapParams& p) {
  ptx::follow_earlier_kernels();
  if (p.row_map == nullptr) {
    for (i64 s = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; s < p.limit; s += static_cast<i64>(gridDim.x) * kThreads) p.slot_row[s] = -1;
    return;
  }
  const i32 rows = mapped_rows(p);
  for (i64 r = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x; r < rows; r += static_cast<i64>(gridDim.x) * kThreads) {
    const u32 slot = static_cast<u32>(p.row_map[r]);
    if (slot < static_cast<u32>(p.limit)) p.slot_row[slot] = static_cast<i32>(r);
  }
}

}  // namespace varmoe::moe
