#pragma once

#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "tile/swizzle.cuh"

// Copies [kBlockK, kColumns] tiles of a matrix whose output columns are contiguous (kn weights) into swizzled shared memory.
namespace varmoe::tile {

template <int kColumns, int kBlockK, int kThreads, bool kTwoHalves>
class StridedColumns {
  static constexpr int kChunksPerRow = kColumns / 8;
  static constexpr int kHalfChunks = kTwoHalves ? kChunksPerRow / 2 : kChunksPerRow;
  static constexpr int kTotal = kChunksPerRow * kBlockK;
  static constexpr int kPerThread = ceil_div(kTotal, kThreads);

  /// A thread keeps its chunk column from pass to pass, a fixed number of rows apart.
  static constexpr bool kFixedColumn = kThreads % kChunksPerRow == 0;
  static constexpr int kRowStep = kFixedColumn ? kThreads / kChunksPerRow : 1;

 public:
  /// `first` and `second`: column 0 of each half at k = 0; `columns`: how many columns of each half exist (a multiple of 8).
  VARMOE_DEVICE void point_at(const void* first, const void* second, i64 stride, i32 columns) {
    stride_bytes_ = static_cast<u32>(stride * 2);
    chunks_ = columns / 8;
    if constexpr (kFixedColumn) {
      const i32 chunk = chunk_of(0);
      const bool upper = kTwoHalves && chunk >= kHalfChunks;
      const i32 in_half = upper ? chunk - kHalfChunks : chunk;
      first_ = static_cast<const char*>(upper ? second : first) + in_half * 16 + static_cast<i64>(row_of(0)) * stride_bytes_;
      // Folded into the count, so that copy() compares rows alone.
      chunks_ = in_half < chunks_ ? 1 : 0;
    } else {
      first_ = static_cast<const char*>(first);
      second_ = static_cast<const char*>(second);
    }
  }

  /// Starts copying rows [k, k + kBlockK); those at and beyond `k_end` become zero.
  VARMOE_DEVICE void copy(u32 tile, i32 k, i32 k_end) const {
    if constexpr (kFixedColumn) {
      const char* src = first_ + static_cast<i64>(k) * stride_bytes_;
      const i32 rows_left = chunks_ != 0 ? k_end - k - row_of(0) : 0;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        if (kTotal % kThreads != 0 && row_of(i) >= kBlockK) continue;
        const bool valid = i * kRowStep < rows_left;
        ptx::cp_async_16(tile + offset(i), src, valid);
        src += static_cast<u64>(stride_bytes_) * kRowStep;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const i32 row = row_of(i), chunk = chunk_of(i);
        if (kTotal % kThreads != 0 && row >= kBlockK) continue;
        const bool upper = kTwoHalves && chunk >= kHalfChunks;
        const i32 in_half = upper ? chunk - kHalfChunks : chunk;
        const char* half = upper ? second_ : first_;
        const bool valid = k + row < k_end && in_half < chunks_;
        const char* src = half + static_cast<i64>(k + row) * stride_bytes_ + in_half * 16;
        ptx::cp_async_16(tile + swizzled_offset<kChunksPerRow>(row, chunk), src, valid);
      }
    }
  }

 private:
  VARMOE_DEVICE static i32 row_of(int i) { return (static_cast<i32>(threadIdx.x) + i * kThreads) / kChunksPerRow; }
  VARMOE_DEVICE static i32 chunk_of(int i) { return (static_cast<i32>(threadIdx.x) + i * kThreads) % kChunksPerRow; }
  VARMOE_DEVICE static u32 offset(int i) {
    // Eight rows on, the swizzle repeats.
    if constexpr (kRowStep % 8 == 0) {
      return swizzled_offset<kChunksPerRow>(row_of(0), chunk_of(0)) + i * kRowStep * kChunksPerRow * 16;
    } else {
      return swizzled_offset<kChunksPerRow>(row_of(i), chunk_of(0));
    }
  }

  const char* first_;   // kFixedColumn: this thread's chunk of its first row
  const char* second_;
  u32 stride_bytes_;    // bind keeps strides below 2^31 bytes
  i32 chunks_;
};

}  // namespace varmoe::tile
