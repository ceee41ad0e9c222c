#pragma once

#include "prelude.cuh"

// mbarriers in shared memory (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier"). A barrier's phase
// ends when its arrivals and its announced bytes are all in; `parity` is that of the phase waited for, 0 for the first.
namespace varmoe::ptx {

VARMOE_DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the copy engine; by the initialising thread, before the block's barrier.
VARMOE_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }

/// Orders what ordinary stores and cp.async wrote to shared memory, and this thread has seen, before what wgmma and bulk
/// copies then read.
VARMOE_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

/// The same for global memory: what other blocks stored, and this thread has seen, before bulk copies of this thread.
VARMOE_DEVICE void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;\n" ::: "memory"); }

VARMOE_DEVICE void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// As so many arrivals.
VARMOE_DEVICE void mbarrier_arrive(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Arrives, and announces `bytes` that bulk copies will deliver in this phase.
VARMOE_DEVICE void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

/// An arrival of this thread once all its cp.async so far have landed; counts among the barrier's arrivals.
VARMOE_DEVICE void mbarrier_arrive_cp_async(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}

VARMOE_DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "waiting:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra waiting;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace varmoe::ptx
