#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"

// How the blocks of one whole-layer launch agree, in memory whose contents nobody vouches for.
//
// `state` is at rest (any value but two), being set up (the launch's nonce), or running (nonce + 1). The first block to see it at rest takes the
// setting up by compare-and-swap, zeroes the counters and lets the others go on; the last block to leave puts it at rest. The nonce is 64
// random bits, so what the workspace held before is neither state by chance; a launch that ended left 0.
//
// Nobody waits for a block that may not have started: shares of fc1 are claimed, a block that has done its own takes those that nobody has
// claimed, and then waits only for claimed ones, whose blocks are at work and wait for nothing. So the launch ends however few of its
// blocks are resident at a time.
//
// By one whole warp of the block.
namespace varmoe::moe {

class LayerControl {
 public:
  VARMOE_DEVICE LayerControl(abi::LayerControl* control, u64 nonce) : c_(control), nonce_(nonce) {}

  /// Returns once the counters are set up.
  VARMOE_DEVICE void enter() const {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    i32 set_up = 0;
    if (lane == 0) {
      u64 seen = ptx::load_acquire(&c_->state);
      while (seen != nonce_ + 1) {
        if (seen == nonce_) {
          seen = ptx::load_acquire(&c_->state);
          continue;
        }
        const u64 found = atomicCAS(reinterpret_cast<unsigned long long*>(&c_->state), seen, nonce_);
        if (found == seen) {
          set_up = 1;
          break;
        }
        seen = found;
      }
    }
    if (__shfl_sync(0xffffffffu, set_up, 0) == 0) return;
    for (i32 i = lane; i < static_cast<i32>(gridDim.x); i += 32) c_->claimed[i] = 0;
    if (lane == 0) c_->units_done = c_->blocks_done = 0;
    __syncwarp();
    if (lane == 0) ptx::store_release(&c_->state, nonce_ + 1);
    __syncwarp();
  }

  /// Whether this block may have share `share` of fc1.
  VARMOE_DEVICE bool claim(i32 share) const {
    i32 before = 0;
    if (threadIdx.x % 32 == 0) before = atomicExch(&c_->claimed[share], 1);
    return __shfl_sync(0xffffffffu, before, 0) == 0;
  }

  /// A share that nobody had claimed when it was looked at, or −1.
  VARMOE_DEVICE i32 unclaimed() const {
    constexpr int kLooks = abi::kMaxLayerBlocks / 32;
    bool is_free[kLooks];  // all looks at once: each takes as long as all
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const i32 share = i * 32 + static_cast<i32>(threadIdx.x) % 32;
      is_free[i] = share < static_cast<i32>(gridDim.x) && *const_cast<volatile i32*>(&c_->claimed[share]) == 0;
    }
#pragma unroll
    for (int i = 0; i < kLooks; ++i) {
      const u32 found = __ballot_sync(0xffffffffu, is_free[i]);
      if (found != 0) return i * 32 + __ffs(static_cast<i32>(found)) - 1;
    }
    return -1;
  }

  /// Units whose h is stored; what the units' warps stored before is visible to this thread.
  VARMOE_DEVICE i32 units_done() const { return ptx::load_acquire(&c_->units_done); }

  /// By a block that will not look at the counters again, and whose every unit was counted.
  VARMOE_DEVICE void leave() const {
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    ptx::fence_device();
    if (atomicAdd(&c_->blocks_done, 1) == static_cast<i32>(gridDim.x) - 1) ptx::store_release(&c_->state, 0);
  }

 private:
  abi::LayerControl* c_;
  u64 nonce_;
};

}  // namespace varmoe::moe
