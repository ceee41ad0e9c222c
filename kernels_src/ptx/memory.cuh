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

VARMOE_DEVICE u32 load_shared4(u32 address) {
  u32 d;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(d) : "r"(address) : "memory");
  return d;
}

/// A counter in global memory that other blocks change: what they wrote before a release is visible after this.
VARMOE_DEVICE i32 load_acquire(const i32* p) {
  i32 v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
  return v;
}
/// Adds to such a counter, after everything that this thread wrote or has seen written.
VARMOE_DEVICE void add_release(i32* p, i32 v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}
VARMOE_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }

VARMOE_DEVICE void store16(void* p, const Vec16& d) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(d.v[0]), "r"(d.v[1]), "r"(d.v[2]), "r"(d.v[3])
               : "memory");
}

VARMOE_DEVICE void store8(void* p, u32 a, u32 b) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};\n" ::"l"(p), "r"(a), "r"(b) : "memory");
}

VARMOE_DEVICE void store4(void* p, u32 a) { asm volatile("st.global.u32 [%0], %1;\n" ::"l"(p), "r"(a) : "memory"); }

}  // namespace varmoe::ptx
