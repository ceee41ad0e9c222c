#pragma once

#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"
#include "schedule/gradient_tiles.cuh"

// Experts by their number of rows, most first (ties by index), into how many parts each one's rows are cut, and how many parts of output
// tiles of the weights' gradients come before each: long sums start first, so that the last are short. One block.
namespace varmoe::moe {

template <int kThreads, bool kSegments>
VARMOE_DEVICE void gradient_schedule(const abi::GradientScheduleParams& p) {
  constexpr i32 kMost = 1024 + 16;  // routed and shared experts
  __shared__ i32 rows[kMost];
  __shared__ i32 order[kMost];
  __shared__ i32 tiles[2][kMost];
  ptx::follow_earlier_kernels();
  const i32 n = p.experts_count;
  for (i32 i = static_cast<i32>(threadIdx.x); i < 4 * abi::kGradientSlots; i += kThreads) p.arrivals[i] = 0;
  for (i32 e = static_cast<i32>(threadIdx.x); e < n; e += kThreads) {
    rows[e] = schedule::gradient_rows<kSegments>(p.expert_offsets, n, e);
    const i32 width = p.experts[e].width;
    tiles[0][e] = ceil_div(width * p.fc1_width_scale, p.fc1_width_block) * p.fc1_tiles_per_width;
    tiles[1][e] = ceil_div(width, p.fc2_width_block) * p.fc2_tiles_per_width;
  }
  __syncthreads();
  for (i32 e = static_cast<i32>(threadIdx.x); e < n; e += kThreads) {
    const i32 mine = rows[e];
    i32 rank = 0;
    for (i32 other = 0; other < n; ++other) rank += rows[other] > mine || (rows[other] == mine && other < e);
    order[rank] = e;
    p.expert_order[rank] = e;
  }
  __syncthreads();
  // One warp sums each prefix, 32 experts at a time.
  const i32 lane = static_cast<i32>(threadIdx.x) % 32, g = static_cast<i32>(threadIdx.x) / 32;
  if (g >= 2) return;
  i32* const prefix = g == 0 ? p.fc1_prefix : p.fc2_prefix;
  abi::GradientSplit* const splits = g == 0 ? p.fc1_splits : p.fc2_splits;
  if (lane == 0) p.tickets[g] = 0;
  i64 work = 0;
  for (i32 e = lane; e < n; e += 32) work += static_cast<i64>(rows[e]) * tiles[g][e];
#pragma unroll
  for (int far = 16; far > 0; far /= 2) work += __shfl_xor_sync(0xffffffffu, work, far);
  i32 items = 0, slots = 0;
  for (i32 first = 0; first < n; first += 32) {
    const i32 i = first + lane;
    i32 mine = 0, mine_split = 0, part_rows = 0;
    if (i < n) {
      const i32 e = order[i];
      part_rows = schedule::gradient_part_rows(work, rows[e]);
      mine = tiles[g][e] * schedule::gradient_parts(part_rows, rows[e]);
      mine_split = part_rows == 0 ? 0 : mine;
    }
    i32 before = mine, split_before = mine_split;
#pragma unroll
    for (int far = 1; far < 32; far *= 2) {
      const i32 a = __shfl_up_sync(0xffffffffu, before, far), b = __shfl_up_sync(0xffffffffu, split_before, far);
      if (lane >= far) {
        before += a;
        split_before += b;
      }
    }
    if (i < n) {
      prefix[i] = items + before - mine;
      splits[i] = {part_rows, slots + split_before - mine_split};
    }
    items += __shfl_sync(0xffffffffu, before, 31);
    slots += __shfl_sync(0xffffffffu, split_before, 31);
  }
  if (lane == 0) prefix[n] = items;
}

}  // namespace varmoe::moe
