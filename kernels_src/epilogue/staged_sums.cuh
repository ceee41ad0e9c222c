#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"
#include "ptx/warpgroup.cuh"

// Turns accumulators whose columns are routed rows (mma/sm90_warpgroup.cuh) so that a thread has eight neighbouring columns of one row, in
// fp32: a few rows at a time through shared memory. What a thread then reads and writes in global memory is 16 bytes of two-byte elements.
namespace varmoe::epilogue {

/// One warpgroup's staging: two buffers of 1024 sums, eight a thread.
template <int kColumns>
class StagedSums {
 public:
  static constexpr int kChunks = kColumns / 8;  // of a row
  static constexpr int kRows = 128 / kChunks;   // of a pass
  static constexpr u32 kRowBytes = kColumns * 4, kBufferBytes = kRows * kRowBytes;
  static constexpr u32 kBytes = 2 * kBufferBytes;
  static_assert(kRows % 8 == 0, "accumulators hold rows by eight");

  VARMOE_DEVICE StagedSums(u32 staging, int group) : first_(staging), barrier_(static_cast<u32>(group) + 1) {}

  /// This thread's part of each pass.
  VARMOE_DEVICE static i32 row() { return static_cast<i32>(threadIdx.x) % 128 / kChunks; }
  VARMOE_DEVICE static i32 chunk() { return static_cast<i32>(threadIdx.x) % kChunks; }

  /// Turns to the other buffer. One object serves all tiles of a group: buffers alternate across tiles too.
  VARMOE_DEVICE void begin() { buffer_ ^= kBufferBytes; }

  /// Writes rows [kRows·pass, kRows·(pass + 1)); of rows beyond the accumulators, others.
  template <int kBlocks, int kSums>
  VARMOE_DEVICE void put(const float (&acc)[kBlocks][kSums], int pass) const {
    static_assert(kBlocks * 64 == kColumns, "one row of accumulators a column");
    // Lane 4·r + q of warp w has rows 2q and 2q + 1 of each eight, columns 16w + r and 16w + 8 + r of each block.
    const u32 thread = threadIdx.x % 128, q = thread % 4, column = thread / 32 * 16 + thread % 32 / 4;
    const u32 to = first_ + buffer_ + place(2 * q, column / 8, column / 4 % 2) + column % 4 * 4;
#pragma unroll
    for (int eight = 0; eight < kRows / 8; ++eight) {
      constexpr int kLast = kSums / 4 - 1;
      const int group = min_of(pass * (kRows / 8) + eight, kLast);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          // The next chunk, eight columns on: the lowest bit of where it lies.
          const u32 at = (e < 2 ? to : to ^ 16u) + static_cast<u32>(eight * 8 + e % 2) * kRowBytes + static_cast<u32>(b) * 128u;
          ptx::store_shared4(at, acc[b][4 * group + e]);
        }
      }
    }
  }

  /// Waits for what all threads of the group have put. One barrier a pass: the other buffer's readers have all passed the barrier of the
  /// pass after theirs.
  VARMOE_DEVICE void meet() const { ptx::named_barrier(barrier_, 128); }

  /// This thread's eight sums of the pass.
  VARMOE_DEVICE void take(float (&sums)[8]) const {
    const u32 from = first_ + buffer_ + place(static_cast<u32>(row()), static_cast<u32>(chunk()), 0);
    const Vec16 low = ptx::load_shared16(from), high = ptx::load_shared16((from ^ 16u) + kRowBytes / 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] = __uint_as_float(low.v[i]);
      sums[4 + i] = __uint_as_float(high.v[i]);
    }
  }

 private:
  /// Where half `half` of a chunk lies: all chunks' low halves of a row, then the high ones. Eight lanes of one row read eight banks' quads;
  /// the lanes of a store, of four rows and both halves, write eight.
  VARMOE_DEVICE static u32 place(u32 row, u32 chunk, u32 half) {
    return row * kRowBytes + half * (kRowBytes / 2) + (chunk ^ (half + 2 * (row / 2 % 4))) * 16u;
  }

  u32 first_, barrier_;
  u32 buffer_ = 0;
};

}  // namespace varmoe::epilogue
