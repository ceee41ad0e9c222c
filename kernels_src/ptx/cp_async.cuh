#pragma once

#include "prelude.cuh"

// cp.async: 16-byte copies from global to shared memory that bypass registers (PTX ISA, "Data Movement: cp.async").
namespace varmoe::ptx {

VARMOE_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

/// Copies 16 bytes, or writes 16 zero bytes when `valid` is false: `src` is then not read and may point anywhere. Cached in L2 only.
VARMOE_DEVICE void cp_async_16(u32 dst, const void* src, bool valid) {
  const u32 bytes = valid ? 16u : 0u;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

/// The same for a source that is there.
VARMOE_DEVICE void cp_async_16(u32 dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(dst), "l"(src) : "memory");
}

VARMOE_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

/// Waits until at most `Pending` of this thread's groups are unfinished.
template <int Pending>
VARMOE_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace varmoe::ptx
