#pragma once

#include "mma/sm80_warp.cuh"
#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "schedule/tile_map.cuh"

// The portable main loop: a persistent grouped GEMM on mma.sync with a cp.async ring.
//
// The ring never drains between tiles: the producer side (all threads) walks the same tile sequence as the consumer side, stages
// ahead, so that the next tile's first stages arrive while this tile's last products and its epilogue run.
//
// `Problem` (moe/fc1.cuh, moe/fc2.cuh) supplies: Config, kElement, kKn, kSplit, tile_count(), tile(index), k_extent(index),
// k_extent_of(tile), class Operands {point_at(problem, tile), copy_a(smem, k, k_end), copy_b(smem, k, k_end)}, epilogue(tile, accumulator).
namespace varmoe::mma {

/// Shared memory of the ring; what a problem needs for itself lies behind it.
template <class Config>
VARMOE_SHARED_CODE constexpr u32 sm80_ring_bytes() {
  return Config::kStages * (Config::kBlockM + Config::kBlockN) * Config::kBlockK * 2;
}

template <class Problem>
class Sm80Gemm {
  using Config = typename Problem::Config;
  using Warp = Sm80Warp<Config, Problem::kElement, Problem::kKn, Problem::kSplit>;
  static constexpr int kBlockK = Config::kBlockK;
  static constexpr int kStages = Config::kStages;
  static constexpr u32 kABytes = Config::kBlockM * kBlockK * 2;
  static constexpr u32 kStageBytes = (Config::kBlockM + Config::kBlockN) * kBlockK * 2;
  static_assert(kStages >= 2, "loads overlap products from two stages on");

 public:
  VARMOE_DEVICE Sm80Gemm(const Problem& problem, u32 shared)
      : problem_(problem), shared_(shared), load_index_(static_cast<i32>(blockIdx.x)) {}

  VARMOE_DEVICE void run() {
    if (load_index_ >= problem_.tile_count()) return;
    start_tile();
#pragma unroll 1
    for (u32 s = 0; s < kStages - 1; ++s) load_stage(s);
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();

    for (i32 index = static_cast<i32>(blockIdx.x); index < problem_.tile_count(); index += static_cast<i32>(gridDim.x)) {
      typename Warp::Accumulator acc = {};
      multiply_tile(acc, ceil_div(problem_.k_extent(index), kBlockK));
      // Looked up again (the loads did it a tile ago, so it is in L1): nothing of it occupies registers during the products.
      problem_.epilogue(problem_.tile(index), acc);
    }
    ptx::cp_async_wait<0>();
  }

 private:
  VARMOE_DEVICE void multiply_tile(typename Warp::Accumulator& acc, i32 k_tiles) {
    typename Warp::Fragments fragments;
    warp_.load_b(fragments.b[0], read_tile() + kABytes, 0);
#pragma unroll
    for (int i = 0; i < Warp::kRowBlocks; ++i) warp_.load_a(fragments.a[i], read_tile(), i, 0);
    for (i32 kt = 0; kt < k_tiles; ++kt) multiply_steps<0>(acc, fragments, kt + 1 < k_tiles);
  }

  /// The steps of one stage from kStep on: products of a step while the next one's fragments load; `more`: the next stage is of this
  /// tile too (else its fragments are left to its own tile, so that they are not alive in the epilogue). A recursion, not a loop:
  /// whether a loop is unrolled is the compiler's choice, and fragments indexed at run time would live in local memory.
  template <int kStep>
  VARMOE_DEVICE void multiply_steps(typename Warp::Accumulator& acc, typename Warp::Fragments& fragments, bool more) {
    constexpr bool kLast = kStep == Warp::kSteps - 1;
    constexpr int kNext = kLast ? 0 : kStep + 1;
    if constexpr (kLast) {
      // The stage after this one has landed, and every warp has read its last fragments of this one.
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      read_stage_ = read_stage_ + 1 == kStages ? 0 : read_stage_ + 1;
    }
    // Addresses first: they need registers that the next step's fragments would hold.
    if constexpr (kStep == 0) load_stage(read_stage_ == 0 ? kStages - 1 : read_stage_ - 1);
    if (!kLast || more) warp_.load_b(fragments.b[(kStep + 1) & 1], read_tile() + kABytes, kNext);
#pragma unroll
    for (int i = 0; i < Warp::kRowBlocks; ++i) {
      Warp::multiply(acc[i], fragments.a[i], fragments.b[kStep & 1]);
      if (!kLast || more) warp_.load_a(fragments.a[i], read_tile(), i, kNext);
    }
    if constexpr (!kLast) multiply_steps<kStep + 1>(acc, fragments, more);
  }

  /// Points the loads at tile load_index_.
  VARMOE_DEVICE void start_tile() {
    const schedule::OutputTile tile = problem_.tile(load_index_);
    operands_.point_at(problem_, tile);
    load_k_ = 0;
    load_k_end_ = problem_.k_extent_of(tile);
  }

  /// Fills a stage of the ring, or commits an empty group when all tiles are loaded.
  VARMOE_DEVICE void load_stage(u32 stage) {
    if (load_index_ >= 0) {
      const u32 tile = shared_ + stage * kStageBytes;
      operands_.copy_a(tile, load_k_, load_k_end_);
      operands_.copy_b(tile + kABytes, load_k_, load_k_end_);
      load_k_ += kBlockK;
      if (load_k_ >= load_k_end_) {
        load_index_ += static_cast<i32>(gridDim.x);
        // The count is read again (from L1) rather than kept in a register that the products need.
        if (load_index_ < problem_.tile_count()) {
          start_tile();
        } else {
          load_index_ = -1;
        }
      }
    }
    ptx::cp_async_commit();
  }

  VARMOE_DEVICE u32 read_tile() const { return shared_ + read_stage_ * kStageBytes; }

  const Problem& problem_;
  typename Problem::Operands operands_;
  Warp warp_;
  u32 shared_;
  i32 load_index_;  // the tile that the loads are at; −1 after the last
  i32 load_k_ = 0;
  i32 load_k_end_ = 0;
  u32 read_stage_ = 0;
};

}  // namespace varmoe::mma
