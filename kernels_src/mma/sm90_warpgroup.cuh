#pragma once

#include "mma/sm90_pipeline.cuh"
#include "prelude.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"

// One consumer warpgroup's share of an output tile: 64·kBlocks weight columns (wgmma's M) by up to kBlockM routed rows (its N).
// Weights are wgmma's first operand, so that N follows the tile's rows in steps of kRowStep and no row is padded beyond that.
namespace varmoe::mma {

template <class Config, Element kElement, bool kKn>
class Sm90Warpgroup {
  using Shared = Sm90Shared<Config>;
  static constexpr int kStages = Config::kStages;

 public:
  static constexpr int kBlocks = Config::kBlockN / (64 * (Config::kPingPong ? 1 : Shared::kConsumers));
  static constexpr int kMaxRows = Config::kBlockM;
  /// [block][4·(column group of 8 rows) + element], the layout of ptx/wgmma.cuh.
  using Accumulator = float[kBlocks][kMaxRows / 2];

  /// `first_block`: this group's first 64-column block in the weight tile.
  VARMOE_DEVICE Sm90Warpgroup(u32 shared, int first_block)
      : shared_(shared), weights_(shared + first_block * kBlockBytes), released_(released_barriers(shared)) {}

  /// acc = the products of `stages` stages, the rows rounded up to a multiple of kRowStep.
  VARMOE_DEVICE void multiply(Accumulator& acc, i32 rows, i32 stages) { choose<Config::kRowStep>(acc, rows, stages); }

  /// Passes over the stages of a tile that another group computes.
  VARMOE_DEVICE void skip(i32 stages) { cursor_.advance(static_cast<u32>(stages)); }

 private:
  static constexpr int kStepsPerStage = Shared::kBlockK / 16;
  static constexpr u32 kBlockBytes = 64 * Shared::kBlockK * 2;
  /// Descriptor units of 16 bytes from one k step of 16 to the next: inside the swizzled 128 bytes, or 16 rows of 128 bytes on.
  static constexpr u32 kWeightStep = kKn ? 16 * 128 / 16 : 32 / 16;
  static constexpr u32 kRowStepK = 32 / 16;

  template <int kRows>
  VARMOE_DEVICE void choose(Accumulator& acc, i32 rows, i32 stages) {
    if constexpr (kRows >= kMaxRows) {
      multiply_rows<kMaxRows>(acc, stages);
    } else if (rows <= kRows) {
      multiply_rows<kRows>(acc, stages);
    } else {
      choose<kRows + Config::kRowStep>(acc, rows, stages);
    }
  }

  template <int kRows>
  VARMOE_DEVICE void multiply_rows(Accumulator& acc, i32 stages) {
    using Instruction = ptx::Wgmma<kRows, kElement, kKn>;
    u32 accumulate = 0;
    u32 previous = 0;
#pragma unroll 1
    for (i32 stage_index = 0; stage_index < stages; ++stage_index) {
      ptx::mbarrier_wait(shared_ + Shared::kFull + cursor_.slot * 8, cursor_.parity);
      // Rows that cp.async brought were written through another proxy than wgmma reads through.
      if constexpr (Config::kGatherRows) ptx::fence_async_proxy();
      const u32 stage = cursor_.slot * Shared::kStageBytes;
      const u64 w = ptx::wgmma_descriptor(weights_ + stage);
      const u64 r = ptx::wgmma_descriptor(shared_ + stage + Shared::kWeightBytes);
      ptx::wgmma_fence();
#pragma unroll
      for (int s = 0; s < kStepsPerStage; ++s) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          Instruction::run(acc[b], w + s * kWeightStep + b * (kBlockBytes / 16), r + s * kRowStepK, accumulate);
        }
        accumulate = 1;
      }
      ptx::wgmma_commit();
      // The stage before this one is read: its group is all that may still have been running.
      ptx::wgmma_wait<1>();
      if (stage_index != 0) release(previous);
      previous = cursor_.slot;
      cursor_.advance();
    }
    ptx::wgmma_wait<0>();
    release(previous);
  }

  /// A stage whose weights another block brings is empty when it is so in all blocks: a lane tells each.
  VARMOE_DEVICE void release(u32 slot) {
    if constexpr (Config::kCluster > 1) {
      if (threadIdx.x % 32 < Config::kCluster) ptx::mbarrier_arrive_cluster(released_ + slot * 8);
    } else {
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(released_ + slot * 8);
    }
  }
  VARMOE_DEVICE static u32 released_barriers(u32 shared) {
    if constexpr (Config::kCluster > 1) {
      return ptx::cluster_address(shared + Shared::kEmpty, threadIdx.x % 32 % Config::kCluster);
    } else {
      return shared + Shared::kEmpty;
    }
  }

  u32 shared_, weights_;
  u32 released_;  // the stages' empty barriers: of the block that this lane tells
  RingCursor<kStages> cursor_;
};

}  // namespace varmoe::mma
