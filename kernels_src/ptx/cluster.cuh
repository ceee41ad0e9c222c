#pragma once

#include "prelude.cuh"

// Blocks of a cluster and each other's shared memory (PTX ISA, "mapa", "barrier.cluster", "st.async"; sm_90 and newer).
namespace varmoe::ptx {

/// Which block of its cluster this is.
VARMOE_DEVICE u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

/// The address that block `rank` of the cluster has for what lies at `address` in it.
VARMOE_DEVICE u32 cluster_address(u32 address, u32 rank) {
  u32 mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

/// All threads of all blocks of the cluster meet, each warp as one; what they wrote to shared memory before is then visible.
VARMOE_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

/// An arrival at an mbarrier of any block of the cluster: what this thread has read (wgmma's reads that it waited for, too) may be
/// overwritten. It publishes no ordinary store of this thread to other blocks: a release of that scope costs a fence of all of the
/// GPU's memory a stage (+20 % time, measured).
VARMOE_DEVICE void mbarrier_arrive_cluster(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Writes four bytes into a block of the cluster and announces them at its mbarrier as delivered.
VARMOE_DEVICE void store_async(u32 address, u32 value, u32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];\n" ::"r"(address), "r"(value), "r"(barrier)
               : "memory");
}

}  // namespace varmoe::ptx
