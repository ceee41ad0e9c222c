#pragma once

#include "prelude.cuh"

// Numbers as unsigned keys of the same order, so that one integer instruction compares them. Host code as well: tests hold it
// against the order of floats.
namespace varmoe::moe {

/// Below every number: an expert that is no candidate (any more).
inline constexpr u32 kNoCandidate = 0;
/// −∞, and with it NaN: below every other number, above kNoCandidate.
inline constexpr u32 kLowestKey = 0x007fffffu;

/// The key of a number, given as its bits. −0 equals +0; NaN counts as −∞.
VARMOE_SHARED_CODE constexpr u32 rank_key(u32 bits) {
  // Without branches: a lane has many of them to make.
  const u32 turned = bits ^ (static_cast<u32>(static_cast<i32>(bits) >> 31) | 0x80000000u);
  const u32 key = turned == 0x7fffffffu ? 0x80000000u : turned;
  return (bits & 0x7fffffffu) > 0x7f800000u ? kLowestKey : key;
}

/// The bits of a key's number.
VARMOE_SHARED_CODE constexpr u32 rank_value(u32 key) { return (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key; }

/// Experts that a lane holds side by side, so that one load of at most 16 bytes brings them: the largest power of two that divides
/// `experts` and leaves as few places empty as any smaller one.
VARMOE_SHARED_CODE constexpr i32 experts_per_load(i32 experts, i32 element_bytes) {
  i32 best = 1;
  for (i32 wide = 2; wide * element_bytes <= 16 && experts % wide == 0; wide *= 2) {
    if (wide * ceil_div(experts, 32 * wide) <= best * ceil_div(experts, 32 * best)) best = wide;
  }
  return best;
}

}  // namespace varmoe::moe
