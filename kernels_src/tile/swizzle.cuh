#pragma once

#include "prelude.cuh"

// Where the 16-byte chunk (row, chunk) of a shared-memory tile lies, so that the eight rows that one ldmatrix phase reads
// at one chunk fall into eight different bank groups. `kChunks` is the row length in chunks; rows are contiguous.
namespace varmoe::tile {

/// Byte offset. Rows of a multiple of 8 chunks (128 B): xor with row mod 8. Rows of 4 mod 8 chunks (64 B, 192 B, …): two rows
/// make one bank line, so xor the low two bits with row/2 mod 4. Rows of 2 mod 4 chunks: four rows a line, xor one bit.
template <int kChunks>
VARMOE_SHARED_CODE constexpr u32 swizzled_offset(u32 row, u32 chunk) {
  static_assert(kChunks % 2 == 0, "a tile row is a multiple of 32 bytes");
  constexpr u32 n = static_cast<u32>(kChunks);
  if constexpr (kChunks % 8 == 0) {
    return (row * n + (chunk ^ (row & 7u))) * 16u;
  } else if constexpr (kChunks % 4 == 0) {
    return (row * n + (chunk ^ ((row >> 1) & 3u))) * 16u;
  } else {
    return (row * n + (chunk ^ ((row >> 2) & 1u))) * 16u;
  }
}

}  // namespace varmoe::tile
