#pragma once

#include "prelude.cuh"

// 16-byte global accesses with cache hints, and reads of values that an earlier launch wrote.
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

/// A load that stays where it is written: the compiler neither hoists nor batches it, so it holds one register for a short time.
VARMOE_DEVICE float load_in_place(const float* p) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];\n" : "=f"(v) : "l"(p) : "memory");
  return v;
}

VARMOE_DEVICE void prefetch_l1(const void* p) { asm volatile("prefetch.global.L1 [%0];\n" ::"l"(p)); }

VARMOE_DEVICE void store16(void* p, const Vec16& d) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(d.v[0]), "r"(d.v[1]), "r"(d.v[2]), "r"(d.v[3])
               : "memory");
}

VARMOE_DEVICE void store8(void* p, u32 a, u32 b) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};\n" ::"l"(p), "r"(a), "r"(b) : "memory");
}

VARMOE_DEVICE void store4(void* p, u32 a) { asm volatile("st.global.u32 [%0], %1;\n" ::"l"(p), "r"(a) : "memory"); }

}  // namespace varmoe::ptx
