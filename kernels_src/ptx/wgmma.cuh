#pragma once

#include "prelude.cuh"

// wgmma: a warpgroup multiplies m64nNk16 from shared memory into registers (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"). Thread t of the group holds, of each 8 columns j, d[4j…]: rows 16·(t/32) + (t%32)/4 and 8 below, columns
// 8j + 2·(t%4) and the next: (r, c), (r, c+1), (r+8, c), (r+8, c+1).
namespace varmoe::ptx {

/// One instruction shape; the emitter writes a specialisation for each N that a kernel uses. `kTransposeA`: A lies with its rows
/// (the weight's outputs) contiguous; `kTransposeB`: B with its columns. `accumulate` 0: the old sum is dropped.
template <int kN, Element kElement, bool kTransposeA, bool kTransposeB = false>
struct Wgmma;

VARMOE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
VARMOE_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

/// Waits until at most kPending of the warpgroup's committed groups are unfinished.
template <int kPending>
VARMOE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

/// Descriptor of a 128-byte swizzled operand at a 1024-byte aligned tile: eight rows of 128 bytes a group, groups 1024 bytes
/// apart.
VARMOE_DEVICE u64 wgmma_descriptor(u32 address) {
  constexpr u64 kGroupStride = 1024 >> 4, kSwizzle128 = 1;
  return (kSwizzle128 << 62) | (kGroupStride << 32) | (u64{1} << 16) | ((address & 0x3ffffu) >> 4);
}

}  // namespace varmoe::ptx
