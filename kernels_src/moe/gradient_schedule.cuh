#pragma once

#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"

// Experts by their number of rows, most first (ties by index), and how many output tiles of the weights' gradients come before each: long
// sums start first, so that the last tiles are short. One block.
namespace varmoe::moe {

template <int kThreads>
VARMOE_DEVICE void gradient_schedule(const abi::GradientScheduleParams& p) {
  constexpr i32 kMost = 1024 + 16;  // routed and shared experts
  __shared__ i32 rows[kMost];
  __shared__ i32 order[kMost];
  ptx::follow_earlier_kernels();
  const i32 n = p.experts_count;
  for (i32 e = static_cast<i32>(threadIdx.x); e < n; e += kThreads) rows[e] = p.expert_offsets[e + 1] - p.expert_offsets[e];
  __syncthreads();
  for (i32 e = static_cast<i32>(threadIdx.x); e < n; e += kThreads) {
    const i32 mine = rows[e];
    i32 rank = 0;
    for (i32 other = 0; other < n; ++other) rank += rows[other] > mine || (rows[other] == mine && other < e);
    order[rank] = e;
    p.expert_order[rank] = e;
  }
  __syncthreads();
  // One warp sums both prefixes, 32 experts at a time.
  if (threadIdx.x >= 32) return;
  const i32 lane = static_cast<i32>(threadIdx.x);
  if (lane < 2) p.tickets[lane] = 0;
  i32 fc1 = 0, fc2 = 0;
  for (i32 first = 0; first < n; first += 32) {
    const i32 i = first + lane;
    i32 one = 0, two = 0;
    if (i < n) {
      const i32 width = p.experts[order[i]].width;
      one = ceil_div(width * p.fc1_width_scale, p.fc1_width_block) * p.fc1_tiles_per_width;
      two = ceil_div(width, p.fc2_width_block) * p.fc2_tiles_per_width;
    }
    i32 before_one = one, before_two = two;
#pragma unroll
    for (int far = 1; far < 32; far *= 2) {
      const i32 a = __shfl_up_sync(0xffffffffu, before_one, far), b = __shfl_up_sync(0xffffffffu, before_two, far);
      if (lane >= far) {
        before_one += a;
        before_two += b;
      }
    }
    if (i < n) {
      p.fc1_prefix[i] = fc1 + before_one - one;
      p.fc2_prefix[i] = fc2 + before_two - two;
    }
    fc1 += __shfl_sync(0xffffffffu, before_one, 31);
    fc2 += __shfl_sync(0xffffffffu, before_two, 31);
  }
  if (lane == 0) {
    p.fc1_prefix[n] = fc1;
    p.fc2_prefix[n] = fc2;
  }
}

}  // namespace varmoe::moe
