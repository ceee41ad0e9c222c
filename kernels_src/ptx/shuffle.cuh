#pragma once

#include "prelude.cuh"

// Shuffles that stay where they are written: the compiler would gather an epilogue's shuffles at its start, each with a
// register of its own.
namespace varmoe::ptx {

VARMOE_DEVICE float shuffle_xor_in_place(float value, u32 lanes) {
  float result;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;\n" : "=f"(result) : "f"(value), "r"(lanes));
  return result;
}

VARMOE_DEVICE u32 shuffle_in_place(u32 value, u32 source_lane) {
  u32 result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;\n" : "=r"(result) : "r"(value), "r"(source_lane));
  return result;
}

}  // namespace varmoe::ptx
