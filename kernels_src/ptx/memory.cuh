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

/// The same where `there`, else zeroes; without a branch.
VARMOE_DEVICE Vec16 load16_streaming(const void* p, bool there) {
  Vec16 d;
  asm volatile(
      "{.reg .pred there; setp.ne.u32 there, %5, 0;\n mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@there ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}\n"
      : "=&r"(d.v[0]), "=&r"(d.v[1]), "=&r"(d.v[2]), "=&r"(d.v[3])
      : "l"(p), "r"(static_cast<u32>(there))
      : "memory");
  return d;
}

VARMOE_DEVICE Vec16 load16(const void* p) {
  Vec16 d;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3]) : "l"(p) : "memory");
  return d;
}

/// Asks for the line of an address; nothing waits for it.
VARMOE_DEVICE void prefetch_l1(const void* p) { asm volatile("prefetch.global.L1 [%0];\n" ::"l"(p)); }

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
VARMOE_DEVICE u64 load_acquire(const u64* p) {
  u64 v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(v) : "l"(p) : "memory");
  return v;
}
/// Sets such a word, after everything that this thread wrote or has seen written.
VARMOE_DEVICE void store_release(u64* p, u64 v) { asm volatile("st.release.gpu.global.u64 [%0], %1;\n" ::"l"(p), "l"(v) : "memory"); }
/// Adds to such a counter, after everything that this thread wrote or has seen written.
VARMOE_DEVICE void add_release(i32* p, i32 v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}
VARMOE_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }

VARMOE_DEVICE void store16(void* p, const Vec16& d) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(d.v[0]), "r"(d.v[1]), "r"(d.v[2]), "r"(d.v[3])
               : "memory");
}

VARMOE_DEVICE void store_shared16(u32 address, const Vec16& d) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(d.v[0]), "r"(d.v[1]), "r"(d.v[2]), "r"(d.v[3])
               : "memory");
}

/// An accumulator: as a float, or the compiler copies it and takes the copy for a use of it before its product has ended.
VARMOE_DEVICE void store_shared4(u32 address, float v) { asm volatile("st.shared.f32 [%0], %1;\n" ::"r"(address), "f"(v) : "memory"); }

VARMOE_DEVICE void store8(void* p, u32 a, u32 b) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};\n" ::"l"(p), "r"(a), "r"(b) : "memory");
}

VARMOE_DEVICE void load8(const void* p, u32& a, u32& b) {
  asm volatile("ld.global.v2.u32 {%0,%1}, [%2];\n" : "=r"(a), "=r"(b) : "l"(p) : "memory");
}
VARMOE_DEVICE u32 load4(const void* p) {
  u32 d;
  asm volatile("ld.global.u32 %0, [%1];\n" : "=r"(d) : "l"(p) : "memory");
  return d;
}

/// The same where `there`, else 0; without a branch.
VARMOE_DEVICE u32 load4(const void* p, bool there) {
  u32 d;
  asm volatile("{.reg .pred there; setp.ne.u32 there, %2, 0;\n mov.u32 %0, 0;\n @there ld.global.u32 %0, [%1];}\n"
               : "=&r"(d)
               : "l"(p), "r"(static_cast<u32>(there))
               : "memory");
  return d;
}

VARMOE_DEVICE void store4(void* p, u32 a) { asm volatile("st.global.u32 [%0], %1;\n" ::"l"(p), "r"(a) : "memory"); }

VARMOE_DEVICE void store2(void* p, u32 low_half) {
  asm volatile("{.reg .b16 v; cvt.u16.u32 v, %1; st.global.b16 [%0], v;}\n" ::"l"(p), "r"(low_half) : "memory");
}

VARMOE_DEVICE u32 load2(const void* p) {
  u32 d;
  asm volatile("{.reg .u16 v; ld.global.u16 v, [%1]; cvt.u32.u16 %0, v;}\n" : "=r"(d) : "l"(p) : "memory");
  return d;
}

}  // namespace varmoe::ptx
