#pragma once

#include "prelude.cuh"

// Bulk tensor copies by the copy engine (PTX ISA, "cp.async.bulk.tensor"). Boxes are those of the tensor map; what lies outside
// the tensor arrives as zero and counts among the bytes all the same.
namespace varmoe::ptx {

VARMOE_DEVICE void tma_load_2d(u32 dst, const abi::TensorMap* map, u32 barrier, i32 c0, i32 c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::"r"(dst),
               "l"(map), "r"(barrier), "r"(c0), "r"(c1)
               : "memory");
}

VARMOE_DEVICE void tma_load_3d(u32 dst, const abi::TensorMap* map, u32 barrier, i32 c0, i32 c1, i32 c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

VARMOE_DEVICE void tma_load_4d(u32 dst, const abi::TensorMap* map, u32 barrier, i32 c0, i32 c1, i32 c2, i32 c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(dst),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

}  // namespace varmoe::ptx
