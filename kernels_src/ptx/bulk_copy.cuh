#pragma once

#include "prelude.cuh"
#include "ptx/tma.cuh"

// Bulk copies of contiguous bytes by the copy engine (PTX ISA, "cp.async.bulk"); no tensor map. Both addresses and the count are multiples of 16.
namespace varmoe::ptx {

VARMOE_DEVICE void bulk_load(u32 dst, const void* src, u32 bytes, u32 barrier, L2Policy policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;\n" ::"r"(dst), "l"(src),
               "r"(bytes), "r"(barrier), "l"(policy)
               : "memory");
}

/// Asks L2 for `bytes` bytes, a multiple of 16, from a 16-byte aligned address on; nothing waits for them.
VARMOE_DEVICE void bulk_prefetch_l2(const void* p, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(p), "r"(bytes) : "memory");
}

/// Asks L2 for the line at an address; nothing waits for it.
VARMOE_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p)); }

}  // namespace varmoe::ptx
