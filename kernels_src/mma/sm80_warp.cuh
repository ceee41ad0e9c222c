#pragma once

#include "prelude.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma_sync.cuh"
#include "tile/swizzle.cuh"

// One warp's share of a block tile: fragments from swizzled shared memory, products into registers.
//
// Accumulators are held as pairs of 8-column blocks. With kSplit (gated fc1: gate columns in the tile's first half, up columns in
// its second) a pair is one gate block and the up block of the same columns, so the activation finds both in one thread; otherwise
// a pair is 16 neighbouring columns.
namespace varmoe::mma {

template <class Config, Element kElement, bool kKn, bool kSplit>
struct Sm80Warp {
  static constexpr int kWarpM = Config::kBlockM / Config::kWarpsM;
  static constexpr int kWarpN = Config::kBlockN / Config::kWarpsN;
  static_assert(Config::kBlockK % 32 == 0, "a stage has an even number of 16-wide steps");
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "a warp tile is made of 16 x 16 pieces");
  static constexpr int kRowBlocks = kWarpM / 16;
  static constexpr int kPairs = kWarpN / 16;
  static constexpr int kSteps = Config::kBlockK / 16;

  using Accumulator = float[kRowBlocks][kPairs][2][4];

  /// A is held once: a row block is dead as soon as its products are issued, and the next step's is loaded into its place. B serves
  /// every row block, so it is held twice.
  struct Fragments {
    u32 a[kRowBlocks][4];
    u32 b[2][kPairs][4];
  };

  VARMOE_DEVICE static i32 warp() { return static_cast<i32>(threadIdx.x) / 32; }
  VARMOE_DEVICE static i32 lane() { return static_cast<i32>(threadIdx.x) % 32; }
  /// First row of the warp in the block tile.
  VARMOE_DEVICE static i32 row0() { return (warp() % Config::kWarpsM) * kWarpM; }
  /// First column of the warp: in the block tile, or in each half when split.
  VARMOE_DEVICE static i32 column0() { return (warp() / Config::kWarpsM) * (kSplit ? kWarpN / 2 : kWarpN); }

  VARMOE_DEVICE Sm80Warp() {
    // Lanes 0-15 address the rows of the first 8 columns of k, lanes 16-31 those of the second.
    a_offset_ = tile::swizzled_offset<kKChunks>(row0() + (lane() & 15), lane() >> 4);
    if constexpr (!kKn) {
      // Lanes 0-7 and 8-15: first block of a pair, both halves of k; lanes 16-31: second block.
      const i32 row = column0() + (lane() >> 4) * kSecond + (lane() & 7);
      b_offset_ = tile::swizzled_offset<kKChunks>(row, (lane() >> 3) & 1);
    } else {
      // Lanes 0-15: rows of k of the first block; lanes 16-31: of the second. Transposed while loading.
      b_offset_ = tile::swizzled_offset<kNChunks>(lane() & 15, (column0() + (lane() >> 4) * kSecond) / 8);
    }
  }

  VARMOE_DEVICE void load_a(u32 (&a)[4], u32 a_tile, int row_block, int step) const {
    // A step moves two chunks along a row: the bits that it changes are free of carries, so it commutes with the swizzle.
    ptx::ldmatrix_x4(a, a_tile + ((a_offset_ + row_block * 16 * kKChunks * 16) ^ (static_cast<u32>(step) << 5)));
  }

  VARMOE_DEVICE void load_b(u32 (&b)[kPairs][4], u32 b_tile, int step) const {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if constexpr (!kKn) {
        ptx::ldmatrix_x4(b[j], b_tile + ((b_offset_ + j * kFirst * kKChunks * 16) ^ (static_cast<u32>(step) << 5)));
      } else {
        const u32 row_bytes = step * 16 * kNChunks * 16;
        if constexpr (kAlignedPairs) {
          ptx::ldmatrix_x4_trans(b[j], b_tile + row_bytes + (b_offset_ ^ (j * kFirst / 8 * 16)));
        } else {
          const u32 chunk = (column0() + j * kFirst + (lane() >> 4) * kSecond) / 8;
          ptx::ldmatrix_x4_trans(b[j], b_tile + row_bytes + tile::swizzled_offset<kNChunks>(lane() & 15, chunk));
        }
      }
    }
  }

  /// Products of one 16-row block.
  VARMOE_DEVICE static void multiply(float (&acc)[kPairs][2][4], const u32 (&a)[4], const u32 (&b)[kPairs][4]) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      ptx::mma_m16n8k16<kElement>(acc[j][0], a, b[j][0], b[j][1]);
      ptx::mma_m16n8k16<kElement>(acc[j][1], a, b[j][2], b[j][3]);
    }
  }

 private:
  static constexpr int kKChunks = Config::kBlockK / 8;
  static constexpr int kNChunks = Config::kBlockN / 8;
  static constexpr int kFirst = kSplit ? 8 : 16;                     // columns from one pair to the next
  static constexpr int kSecond = kSplit ? Config::kBlockN / 2 : 8;   // columns from a pair's first block to its second
  /// A warp's pairs span a power of two of chunks and begin at a multiple of it: stepping to a pair sets free bits, so it commutes
  /// with the swizzle.
  static constexpr int kPairChunks = kPairs * kFirst / 8;
  static constexpr bool kAlignedPairs = (kPairChunks & (kPairChunks - 1)) == 0;

  u32 a_offset_;
  u32 b_offset_;
};

}  // namespace varmoe::mma
