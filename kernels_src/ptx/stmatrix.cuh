#pragma once

#include "prelude.cuh"

// stmatrix: fragments of four 8×8 matrices of two-byte elements to shared memory, transposed (PTX ISA, "stmatrix").
namespace varmoe::ptx {

/// Lane l's `address`: where row l%8 of the transposed matrix l/8 (column l%8 of the fragments) goes; 16 bytes.
VARMOE_DEVICE void stmatrix_x4_trans(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

}  // namespace varmoe::ptx
