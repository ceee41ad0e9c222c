#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"

// Stores fragments of 8-column blocks (the layout of mma.m16n8 and of wgmma accumulators) as rows, without shared memory: the four
// lanes that share a row trade registers so that each holds 16 contiguous bytes.
namespace varmoe::epilogue {

/// Lane q of each quad holds columns 2q, 2q+1 of blocks 0…3 in v[0…3]; afterwards it holds all eight columns of block q.
VARMOE_DEVICE void transpose_quad(u32 (&v)[4]) {
  const u32 q = threadIdx.x & 3;
  // Exchange across bit 0 of (block, lane), then across bit 1.
  const bool odd = q & 1, high = q & 2;
  const u32 s0 = odd ? v[0] : v[1], s1 = odd ? v[2] : v[3];
  const u32 r0 = __shfl_xor_sync(0xffffffffu, s0, 1), r1 = __shfl_xor_sync(0xffffffffu, s1, 1);
  const u32 a0 = odd ? r0 : v[0], a1 = odd ? v[1] : r0;  // block (q&1): columns of lanes with bit0 = 0, 1
  const u32 a2 = odd ? r1 : v[2], a3 = odd ? v[3] : r1;  // block 2 + (q&1)
  const u32 t0 = high ? a0 : a2, t1 = high ? a1 : a3;
  const u32 u0 = __shfl_xor_sync(0xffffffffu, t0, 2), u1 = __shfl_xor_sync(0xffffffffu, t1, 2);
  v[0] = high ? u0 : a0;
  v[1] = high ? u1 : a1;
  v[2] = high ? a2 : u0;
  v[3] = high ? a3 : u1;
}

/// Lane q holds columns 2q, 2q+1 of blocks 0 and 1 in v[0], v[1]; afterwards lanes 0, 1 hold the low and high four columns of
/// block 0 and lanes 2, 3 those of block 1.
VARMOE_DEVICE void transpose_pair(u32 (&v)[2]) {
  const u32 q = threadIdx.x & 3;
  const u32 base = (threadIdx.x & 28u) + ((q & 1) << 1);
  const u32 a0 = __shfl_sync(0xffffffffu, v[0], base), a1 = __shfl_sync(0xffffffffu, v[0], base + 1);
  const u32 b0 = __shfl_sync(0xffffffffu, v[1], base), b1 = __shfl_sync(0xffffffffu, v[1], base + 1);
  v[0] = (q & 2) ? b0 : a0;
  v[1] = (q & 2) ? b1 : a1;
}

/// Stores kBlocks neighbouring 8-column blocks of one row. `row`: address of the first block's first column; `columns`: how many
/// columns from there on exist (a multiple of 8; may be ≤ 0); `valid`: whether the row exists. Called by whole warps.
template <int kBlocks>
VARMOE_DEVICE void store_row_blocks(char* row, u32 (&v)[kBlocks], i32 columns, bool valid) {
  const i32 q = static_cast<i32>(threadIdx.x & 3);
  constexpr int kQuads = kBlocks / 4;
#pragma unroll
  for (int g = 0; g < kQuads; ++g) {
    u32 w[4] = {v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]};
    transpose_quad(w);
    const i32 block = 4 * g + q;
    if (valid && block * 8 < columns) ptx::store16(row + block * 16, Vec16{{w[0], w[1], w[2], w[3]}});
  }
  if constexpr (kBlocks % 4 >= 2) {
    constexpr int b = 4 * kQuads;
    u32 w[2] = {v[b], v[b + 1]};
    transpose_pair(w);
    const i32 block = b + (q >> 1);
    if (valid && block * 8 < columns) ptx::store8(row + block * 16 + (q & 1) * 8, w[0], w[1]);
  }
  if constexpr (kBlocks % 2 == 1) {
    constexpr int b = kBlocks - 1;
    if (valid && b * 8 < columns) ptx::store4(row + b * 16 + q * 4, v[b]);
  }
  // Odd block counts need more registers a row: keep the compiler from working on several rows at once.
  if constexpr (kBlocks % 4 != 0) __syncwarp();
}

}  // namespace varmoe::epilogue
