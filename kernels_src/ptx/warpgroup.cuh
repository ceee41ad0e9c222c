#pragma once

#include "prelude.cuh"

// What the warps of a specialised kernel do to each other beside mbarriers: trade registers and meet by name.
namespace varmoe::ptx {

/// Gives registers back to, or takes them from, the block's pool; by a whole warpgroup.
template <int kRegisters>
VARMOE_DEVICE void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
VARMOE_DEVICE void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

/// Named barrier; 0 is __syncthreads.
VARMOE_DEVICE void named_barrier(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
/// The same; whether any of them said so.
VARMOE_DEVICE bool named_barrier_any(u32 id, u32 threads, bool mine) {
  u32 any;
  asm volatile(
      "{.reg .pred p, q; setp.ne.u32 p, %3, 0; bar.red.or.pred q, %1, %2, p; selp.u32 %0, 1, 0, q;}\n"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<u32>(mine))
      : "memory");
  return any != 0;
}

}  // namespace varmoe::ptx
