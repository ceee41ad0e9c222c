#pragma once

#include "prelude.cuh"

// Bulk tensor copies by the copy engine (PTX ISA, "cp.async.bulk.tensor"). Boxes are those of the tensor map; what lies outside
// the tensor arrives as zero and counts among the bytes all the same. kCluster > 1: the box goes to the same place in every block of the
// cluster, and each one's barrier is told.
namespace varmoe::ptx {

/// How long L2 keeps what a copy reads: an opaque word of createpolicy.
using L2Policy = u64;

VARMOE_DEVICE L2Policy l2_keep_normally() {
  L2Policy policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}
/// The first to go: what is read once.
VARMOE_DEVICE L2Policy l2_evict_first() {
  L2Policy policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

template <int kCluster = 1>
VARMOE_DEVICE void tma_load_2d(u32 dst, const abi::TensorMap* map, u32 barrier, L2Policy policy, i32 c0, i32 c1) {
  if constexpr (kCluster > 1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
        "[%0], [%1, {%4, %5}], [%2], %6, %3;\n" ::"r"(dst),
        "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1), "h"(static_cast<unsigned short>((1u << kCluster) - 1u))
        : "memory");
  } else {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%4, %5}], [%2], %3;\n" ::"r"(dst),
                 "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1)
                 : "memory");
  }
}

template <int kCluster = 1>
VARMOE_DEVICE void tma_load_3d(u32 dst, const abi::TensorMap* map, u32 barrier, L2Policy policy, i32 c0, i32 c1, i32 c2) {
  if constexpr (kCluster > 1) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
        "[%0], [%1, {%4, %5, %6}], [%2], %7, %3;\n" ::"r"(dst),
        "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1), "r"(c2), "h"(static_cast<unsigned short>((1u << kCluster) - 1u))
        : "memory");
  } else {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%4, %5, %6}], [%2], %3;\n" ::"r"(dst),
                 "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
  }
}

template <int kCluster = 1>
VARMOE_DEVICE void tma_load_4d(u32 dst, const abi::TensorMap* map, u32 barrier, L2Policy policy, i32 c0, i32 c1, i32 c2, i32 c3) {
  if constexpr (kCluster > 1) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
        "[%0], [%1, {%4, %5, %6, %7}], [%2], %8, %3;\n" ::"r"(dst),
        "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"(static_cast<unsigned short>((1u << kCluster) - 1u))
        : "memory");
  } else {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%4, %5, %6, %7}], [%2], %3;\n" ::"r"(dst),
                 "l"(map), "r"(barrier), "l"(policy), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
  }
}

}  // namespace varmoe::ptx
