#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"
#include "ptx/stmatrix.cuh"
#include "ptx/warpgroup.cuh"
#include "tile/swizzle.cuh"

// Stores accumulators whose columns are routed rows (mma/sm90_warpgroup.cuh) as rows: 16 or 32 of them at a time through shared
// memory, each row's columns together, so that every global store is 16 bytes of a contiguous row.
namespace varmoe::epilogue {

/// One warpgroup's staging: two buffers of kRows rows of kColumns two-byte elements, 4 KiB at most: what they take, the ring of stages
/// has not.
template <int kColumns>
class TransposedRows {
 public:
  static constexpr int kChunks = kColumns / 8;
  static constexpr int kRows = kColumns > 64 ? 16 : 32;
  static constexpr u32 kBufferBytes = kRows * kColumns * 2;
  static constexpr u32 kBytes = 2 * kBufferBytes;

  VARMOE_DEVICE TransposedRows(u32 staging, int group) : first_(staging), barrier_(static_cast<u32>(group) + 1), buffer_(staging) {}

  /// Writes four 8×8 fragments as 8 columns (chunk `chunk`) of 32 rows: fragment i holds rows 8i….
  VARMOE_DEVICE void put32(int chunk, u32 a, u32 b, u32 c, u32 d) const {
    static_assert(kRows == 32, "a buffer of 32 rows");
    const u32 lane = threadIdx.x % 32;
    ptx::stmatrix_x4_trans(buffer_ + tile::swizzled_offset<kChunks>(lane, static_cast<u32>(chunk)), a, b, c, d);
  }
  /// Writes four fragments as 16 columns (chunks `chunk` and the next) of rows first… and first + 8…: (rows, chunk).
  VARMOE_DEVICE void put16(int chunk, u32 first, u32 a, u32 b, u32 c, u32 d) const {
    const u32 lane = threadIdx.x % 32;
    const u32 row = first + (lane / 16) * 8 + lane % 8;
    ptx::stmatrix_x4_trans(buffer_ + tile::swizzled_offset<kChunks>(row, static_cast<u32>(chunk) + (lane / 8) % 2), a, b, c, d);
  }

  /// Writes rows [kRows·pass, kRows·(pass + 1)) of accumulators whose every row is a column of the output: kBlocks blocks of 64, of
  /// which warp `warp` of the group holds 16. `pack` makes two elements of two values.
  template <int kBlocks, int kRows2, class Pack>
  VARMOE_DEVICE void put_columns(const float (&acc)[kBlocks][kRows2], int warp, int pass, Pack pack) const {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int q = 0; q < kRows / 16; ++q) {
        u32 v[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* d = acc[b] + 4 * min_of(kRows / 8 * pass + 2 * q + i, kRows2 / 4 - 1);
          v[2 * i] = pack(d[0], d[1]);
          v[2 * i + 1] = pack(d[2], d[3]);
        }
        put16(b * 8 + 2 * warp, q * 16, v[0], v[1], v[2], v[3]);
      }
    }
  }

  /// Turns to the other buffer. One object serves all tiles of a group: buffers alternate across tiles too.
  VARMOE_DEVICE void begin() { buffer_ ^= first_ ^ (first_ + kBufferBytes); }

  /// Copies the buffer's first `rows` rows, `columns` columns of each (a multiple of 8), to `out`; by all 128 threads.
  VARMOE_DEVICE void flush(char* out, i64 stride_bytes, i32 rows, i32 columns) const {
    // One barrier a pass: the other buffer's readers have all passed the barrier of the pass after theirs.
    ptx::named_barrier(barrier_, 128);
    const i32 thread = static_cast<i32>(threadIdx.x) % 128;
#pragma unroll
    for (int i = 0; i < kRows * kChunks / 128; ++i) {
      const i32 row = (thread + i * 128) / kChunks, chunk = (thread + i * 128) % kChunks;
      if (row < rows && chunk * 8 < columns) {
        const Vec16 v = ptx::load_shared16(buffer_ + tile::swizzled_offset<kChunks>(static_cast<u32>(row), static_cast<u32>(chunk)));
        ptx::store16(out + row * stride_bytes + chunk * 16, v);
      }
    }
  }

 private:
  u32 first_, barrier_, buffer_;
};

}  // namespace varmoe::epilogue
