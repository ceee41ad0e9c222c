#pragma once

#include "prelude.cuh"

// Programmatic dependent launch (PTX ISA, "griddepcontrol"; sm_90 and newer, nothing before). A kernel of the chain calls
// follow_earlier_kernels() before its first access to memory that the kernel before it writes. Every block does, so that by
// its turn everything before has finished, not only the kernel just before: only then is order transitive along the chain. (fc2
// may put the wait off until its end: mma/sm90_gemm.cuh.)
namespace varmoe::ptx {

/// Waits until the kernels before this one on the stream have finished and their writes are visible (at once without such a
/// launch).
VARMOE_DEVICE void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

/// Lets the next kernel's blocks start once every block of this one has said so, as soon as they find room.
VARMOE_DEVICE void let_later_kernels_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

VARMOE_DEVICE void follow_earlier_kernels() {
  wait_for_earlier_kernels();
  let_later_kernels_start();
}

}  // namespace varmoe::ptx
