#pragma once

#include "prelude.cuh"

// stmatrix: fragments of four 8×8 matrices of two-byte elements to shared memory, transposed (PTX ISA, "stmatrix").
namespace varmoe::ptx {

/// Lane l's `address`: where row l%8 of the transposed matrix l/8 (column l%8 of the fragments) goes; 16 bytes.
VARMOE_DEVICE void stmatrix_x4_trans(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

VARMOE_DEVICE Vec16 load_shared16(u32 address) {
  Vec16 d;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3])
               : "r"(address)
               : "memory");
  return d;
}

}  // namespace varmoe::ptx
