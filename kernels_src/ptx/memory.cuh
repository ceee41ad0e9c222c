#pragma once

#include "prelude.cuh"

// Wide accesses: global memory with cache hints, shared memory by its 32-bit address.
namespace varmoe::ptx {

/// Read once: do not keep in L1.
VARMOE_DEVICE Vec16 load16_streaming(const void* p) {
  Vec16 d;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3])
               : "l"(p)
               : "memory");
  return d;
}

VARMOE_DEVICE Vec16 load_shared16(u32 address) {
  Vec16 d;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3])
               : "r"(address)
               : "memory");
  return d;
}

VARMOE_DEVICE void store16(void* p, const Vec16& d) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(d.v[0]), "r"(d.v[1]), "r"(d.v[2]), "r"(d.v[3])
               : "memory");
}

VARMOE_DEVICE void store8(void* p, u32 a, u32 b) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};\n" ::"l"(p), "r"(a), "r"(b) : "memory");
}

VARMOE_DEVICE void store4(void* p, u32 a) { asm volatile("st.global.u32 [%0], %1;\n" ::"l"(p), "r"(a) : "memory"); }

}  // namespace varmoe::ptx
