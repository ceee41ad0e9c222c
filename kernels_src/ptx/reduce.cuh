#pragma once

#include "prelude.cuh"

// Reductions over a warp in one instruction (PTX ISA, "redux.sync"; sm_80 and newer). All 32 lanes take part.
namespace varmoe::ptx {

VARMOE_DEVICE u32 warp_max(u32 value) {
  u32 result;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;\n" : "=r"(result) : "r"(value));
  return result;
}

VARMOE_DEVICE u32 warp_min(u32 value) {
  u32 result;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;\n" : "=r"(result) : "r"(value));
  return result;
}

/// In a fixed tree, the same in every lane and on every run.
VARMOE_DEVICE float warp_sum(float value) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(0xffffffffu, value, d);
  return value;
}

}  // namespace varmoe::ptx
