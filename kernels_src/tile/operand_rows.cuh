#pragma once

#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "tile/swizzle.cuh"

// Copies [kRows, kBlockK] tiles of a matrix whose K is contiguous (x, h, nk weights) into swizzled shared memory. Each thread owns
// a fixed set of 16-byte chunks: one chunk column, every kRowStep-th row.
namespace varmoe::tile {

template <int kRows, int kBlockK, int kThreads>
struct RowChunks {
  static constexpr int kChunksPerRow = kBlockK / 8;
  static_assert(kThreads % kChunksPerRow == 0, "threads walk whole rows");
  static constexpr int kRowStep = kThreads / kChunksPerRow;
  static constexpr int kPerThread = ceil_div(kRows, kRowStep);
  /// False where the last pass runs past the tile (few rows, many threads).
  static constexpr bool kExact = kRows % kRowStep == 0;

  VARMOE_DEVICE static i32 chunk() { return static_cast<i32>(threadIdx.x) % kChunksPerRow; }
  VARMOE_DEVICE static i32 row(int i) { return static_cast<i32>(threadIdx.x) / kChunksPerRow + i * kRowStep; }
  VARMOE_DEVICE static bool owned(int i) { return kExact || row(i) < kRows; }
  VARMOE_DEVICE static u32 offset(int i) {
    // Eight rows on, the swizzle repeats.
    if constexpr (kRowStep % 8 == 0) {
      return swizzled_offset<kChunksPerRow>(row(0), chunk()) + i * kRowStep * kChunksPerRow * 16;
    } else {
      return swizzled_offset<kChunksPerRow>(row(i), chunk());
    }
  }
};

/// Rows named by an index list: fc1 reading x through the sort (fused gather). The rows' tokens are kept in shared memory, kRows
/// words behind the stages, since the products need every register; each warp writes and reads its own rows alone.
template <int kRows, int kBlockK, int kThreads, int kTopK>
class GatheredRows {
  using Chunks = RowChunks<kRows, kBlockK, kThreads>;

 public:
  VARMOE_DEVICE void point_at(const void* base, i64 stride, const i32* row_source, i32 row_begin, i32 rows, i32* tokens) {
    base_ = static_cast<const char*>(base) + Chunks::chunk() * 16;
    stride_bytes_ = stride * 2;
    tokens_ = tokens;
    __syncwarp();
    if (Chunks::chunk() == 0) {
#pragma unroll 1
      for (i32 r = Chunks::row(0); r < kRows; r += Chunks::kRowStep) {
        tokens[r] = r < rows ? static_cast<i32>(static_cast<u32>(row_source[row_begin + r]) / kTopK) : -1;
      }
    }
    __syncwarp();
  }

  /// Starts copying columns [k, k + kBlockK); those at and beyond `k_end` become zero.
  VARMOE_DEVICE void copy(u32 tile, i32 k, i32 k_end) const {
    const bool in_k = k + Chunks::chunk() * 8 < k_end;
#pragma unroll
    for (int i = 0; i < Chunks::kPerThread; ++i) {
      if (!Chunks::owned(i)) continue;
      const i32 token = tokens_[Chunks::row(i)];
      const char* src = base_ + token * stride_bytes_ + static_cast<i64>(k) * 2;
      ptx::cp_async_16(tile + Chunks::offset(i), src, in_k && token >= 0);
    }
  }

 private:
  const char* base_;
  const i32* tokens_;
  i64 stride_bytes_;
};

/// Consecutive rows, in up to two halves of the tile that lie apart (gate rows, then up rows).
template <int kRows, int kBlockK, int kThreads, bool kTwoHalves>
class StridedRows {
  using Chunks = RowChunks<kRows, kBlockK, kThreads>;
  static constexpr int kHalf = kTwoHalves ? kRows / 2 : kRows;
  /// Whether each pass over the tile stays within one half, so that the half is known when the code is compiled.
  static constexpr bool kPassInHalf = kHalf % Chunks::kRowStep == 0;

 public:
  /// `first` and `second`: row 0 of each half; `rows`: how many rows of each half exist.
  VARMOE_DEVICE void point_at(const void* first, const void* second, i64 stride, i32 rows) {
    const i32 r = Chunks::row(0);
    const bool upper = kTwoHalves && !kPassInHalf && r >= kHalf;
    const i32 in_half = upper ? r - kHalf : r;
    const i64 skip = in_half * stride * 2 + Chunks::chunk() * 16;
    first_ = static_cast<const char*>(upper ? second : first) + skip;
    second_ = static_cast<const char*>(second) + (kPassInHalf ? skip : Chunks::chunk() * 16);
    stride_bytes_ = static_cast<u32>(stride * 2);
    rows_left_ = rows - in_half;
  }

  VARMOE_DEVICE void copy(u32 tile, i32 k, i32 k_end) const {
    const i32 rows_left = k + Chunks::chunk() * 8 < k_end ? rows_left_ : 0;
    const i64 k_bytes = static_cast<i64>(k) * 2;
    const char* src = first_ + k_bytes;
#pragma unroll
    for (int i = 0; i < Chunks::kPerThread; ++i) {
      if (!Chunks::owned(i)) continue;
      i32 ahead = i * Chunks::kRowStep;  // of this thread's first row in the half
      if constexpr (kTwoHalves && kPassInHalf) {
        if (ahead == kHalf) src = second_ + k_bytes;
        if (ahead >= kHalf) ahead -= kHalf;
      } else if constexpr (kTwoHalves) {
        const i32 r = Chunks::row(i);
        if (i > 0 && r >= kHalf) {
          const i32 in_half = r - kHalf;
          src = second_ + static_cast<i64>(in_half) * stride_bytes_ + k_bytes;
          const i32 first_row = Chunks::row(0);
          ahead = in_half - (first_row >= kHalf ? first_row - kHalf : first_row);
        }
      }
      ptx::cp_async_16(tile + Chunks::offset(i), src, ahead < rows_left);
      src += static_cast<u64>(stride_bytes_) * Chunks::kRowStep;
    }
  }

 private:
  const char* first_;   // this thread's first row and chunk
  const char* second_;  // the same in the second half (not kPassInHalf: its row 0)
  u32 stride_bytes_;    // bind keeps strides below 2^31 bytes
  i32 rows_left_;       // rows that exist from this thread's first on
};

}  // namespace varmoe::tile
