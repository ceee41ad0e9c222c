#pragma once

#include "prelude.cuh"

// mma.sync.m16n8k8 on tf32 with fp32 accumulators (PTX ISA, "Matrix Fragments for mma.m16n8k8"). Thread lane holds, of A, rows lane/4 and lane/4 + 8 at
// k = lane%4 (a[0], a[1]) and k = lane%4 + 4 (a[2], a[3]); of B, column lane/4 at the same two; D as in mma.m16n8k16.
namespace varmoe::ptx {

VARMOE_DEVICE void mma_tf32_m16n8k8(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The nearest tf32 (ties away from zero), as the bits of a float; those that a tf32 lacks are zero, so that the rest can be computed.
VARMOE_DEVICE u32 to_tf32(float value) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits & 0xffffe000u;
}

}  // namespace varmoe::ptx
