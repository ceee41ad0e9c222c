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

/// From the lane that has this one's bits of kKept and kSource's others: no register for a lane's number.
template <u32 kKept, u32 kSource>
VARMOE_DEVICE u32 shuffle_among(u32 value) {
  u32 result;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, 0xffffffff;\n" : "=r"(result) : "r"(value), "n"(kSource), "n"(kKept << 8 | 0x1f));
  return result;
}

}  // namespace varmoe::ptx
