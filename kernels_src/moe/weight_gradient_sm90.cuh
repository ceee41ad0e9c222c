#pragma once

#include "epilogue/store_gradient.cuh"
#include "moe/weight_gradient.cuh"
#include "mma/sm90_pipeline.cuh"
#include "prelude.cuh"
#include "ptx/elect.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/warpgroup.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/gradient_tiles.cuh"

// The weights' gradients on Hopper: what moe/weight_gradient.cuh computes, with wgmma, whose operands both lie with the summed dimension
// outermost, in boxes of 64 rows by 64 columns that the copy engine brings. Tokens' operand is a copy by row, so that a box is 64
// consecutive rows of each. One producer thread, which also takes tickets and looks tiles up; two consumer warpgroups, which share a
// tile's columns and split its rows.
//
// An expert's last stage holds rows of the next expert, or beyond the last one's whatever the workspace held: the consumers
// clear those before they multiply, since NaN times zero would stay.
namespace varmoe::moe {

template <class Gradient, class Config>
struct WeightGradientShared {
  static constexpr u32 kBoxBytes = 64 * 128;
  static constexpr u32 kABoxes = Config::kBlockM / 64, kBBoxes = Config::kBlockN / 64;
  static constexpr u32 kStageBytes = (kABoxes + kBBoxes) * kBoxBytes;
  static constexpr int kTileSlots = 2;
  static constexpr u32 kSlots = Config::kStages * kStageBytes;
  static constexpr u32 kFull = kSlots + kTileSlots * sizeof(schedule::GradientTile) + 8 - kTileSlots * sizeof(schedule::GradientTile) % 8;
  static constexpr u32 kEmpty = kFull + Config::kStages * 8;
  static constexpr u32 kTileFull = kEmpty + Config::kStages * 8;
  static constexpr u32 kTileEmpty = kTileFull + kTileSlots * 8;
  static constexpr u32 kBytes = kTileEmpty + kTileSlots * 8;
  static constexpr int kThreads = 384;
};

template <class Gradient, class Config>
class WeightGradientSm90 {
  using Shared = WeightGradientShared<Gradient, Config>;
  static constexpr Element kElement = Gradient::kElement;
  static constexpr int kBlockM = Config::kBlockM, kBlockN = Config::kBlockN;
  static_assert(kBlockM % 128 == 0 && kBlockN % 64 == 0, "two warpgroups, boxes of 64");
  static constexpr int kMBlocks = kBlockM / 128;  // of 64 rows, of one warpgroup
  using Instruction = ptx::Wgmma<kBlockN, kElement, true, true>;
  using Accumulator = float[kMBlocks][kBlockN / 2];
  using Ring = mma::RingCursor<Config::kStages>;
  using Slots = mma::RingCursor<Shared::kTileSlots>;

  // Of a thread: looking tiles up takes the producer more than 40.
  static constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters == Shared::kThreads * 168, "setmaxnreg waits for registers that nobody gives");

 public:
  VARMOE_DEVICE WeightGradientSm90(const abi::WeightGradientParams& params, char* memory)
      : p(params), memory_(memory), shared_(ptx::shared_address(memory)) {}

  VARMOE_DEVICE void run() const {
    if (threadIdx.x == 0) {
      for (u32 s = 0; s < Config::kStages; ++s) {
        ptx::mbarrier_init(shared_ + Shared::kFull + s * 8, 1);
        ptx::mbarrier_init(shared_ + Shared::kEmpty + s * 8, 8);
      }
      for (u32 s = 0; s < Shared::kTileSlots; ++s) {
        ptx::mbarrier_init(shared_ + Shared::kTileFull + s * 8, 1);
        ptx::mbarrier_init(shared_ + Shared::kTileEmpty + s * 8, 256);
      }
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::follow_earlier_kernels();
    if (threadIdx.x < 128) {
      ptx::registers_decrease<kProducerRegisters>();
      if (threadIdx.x < 32 && ptx::elect_one()) produce();
    } else {
      ptx::registers_increase<kConsumerRegisters>();
      consume(static_cast<int>(threadIdx.x) / 128 - 1);
    }
  }

 private:
  VARMOE_DEVICE schedule::GradientTile* slot_of(u32 s) const {
    return reinterpret_cast<schedule::GradientTile*>(memory_ + Shared::kSlots) + s;
  }

  VARMOE_DEVICE void produce() const {
    // Ordinary stores of earlier kernels wrote the operands; the copy engine reads them.
    ptx::fence_async_proxy_global();
    const i32 count = p.tile_prefix[p.experts];
    const ptx::L2Policy policy = ptx::l2_keep_normally();
    Ring ring;
    Slots at;
    for (i32 index = static_cast<i32>(blockIdx.x);;) {
      schedule::GradientTile t = {-1, 0, 0, 0, 0, 0, 0};
      const bool more = index < count;
      if (more)
        t = schedule::gradient_tile<Gradient, kBlockM, kBlockN>(p.tile_prefix, p.expert_order, p.expert_offsets, p.gradients, p.experts, index);
      ptx::mbarrier_wait(shared_ + Shared::kTileEmpty + at.slot * 8, at.parity ^ 1);
      *slot_of(at.slot) = t;
      ptx::mbarrier_arrive(shared_ + Shared::kTileFull + at.slot * 8);
      at.advance();
      if (!more) break;
      index = static_cast<i32>(gridDim.x) + atomicAdd(p.ticket, 1);
      const i32 first = t.half * (ceil_div(t.width, 64) * 64);  // column of dz
      for (i32 k = 0; k < t.rows; k += 64) {
        ptx::mbarrier_wait(shared_ + Shared::kEmpty + ring.slot * 8, ring.parity ^ 1);
        const u32 full = shared_ + Shared::kFull + ring.slot * 8;
        ptx::mbarrier_arrive_expect(full, Shared::kStageBytes);
        const u32 stage = shared_ + ring.slot * Shared::kStageBytes;
        const i32 row = t.row_begin + k;
#pragma unroll
        for (u32 box = 0; box < Shared::kABoxes; ++box) {
          const i32 column = t.m + static_cast<i32>(box) * 64;
          if constexpr (Gradient::kTokensFirst) {
            ptx::tma_load_2d(stage + box * Shared::kBoxBytes, &p.tokens_map, full, policy, column, row);
          } else {
            ptx::tma_load_2d(stage + box * Shared::kBoxBytes, &p.rows_map, full, policy, first + column, row);
          }
        }
#pragma unroll
        for (u32 box = 0; box < Shared::kBBoxes; ++box) {
          const i32 column = t.n + static_cast<i32>(box) * 64;
          if constexpr (Gradient::kTokensFirst) {
            ptx::tma_load_2d(stage + (Shared::kABoxes + box) * Shared::kBoxBytes, &p.rows_map, full, policy, first + column, row);
          } else {
            ptx::tma_load_2d(stage + (Shared::kABoxes + box) * Shared::kBoxBytes, &p.tokens_map, full, policy, column, row);
          }
        }
        ring.advance();
      }
    }
  }

  VARMOE_DEVICE void consume(int group) const {
    Ring ring;
    Slots at;
    while (true) {
      ptx::mbarrier_wait(shared_ + Shared::kTileFull + at.slot * 8, at.parity);
      const schedule::GradientTile t = *slot_of(at.slot);
      ptx::mbarrier_arrive(shared_ + Shared::kTileEmpty + at.slot * 8);
      at.advance();
      if (t.expert < 0) break;
      if (t.rows == 0) {
        clear(t, group);
        continue;
      }
      Accumulator acc;
      multiply(acc, t.rows, group, ring);
      store(t, acc, group);
    }
  }

  VARMOE_DEVICE void multiply(Accumulator& acc, i32 rows, int group, Ring& ring) const {
    // Units of 16 bytes: 16 rows of 128 bytes a step, 64 columns of B a box.
    constexpr u64 kStep = 16 * 128 / 16, kBoxStride = u64{Shared::kBoxBytes / 16 - 1} << 16;
    u32 accumulate = 0, previous = 0;
#pragma unroll 1
    for (i32 k = 0; k < rows; k += 64) {
      ptx::mbarrier_wait(shared_ + Shared::kFull + ring.slot * 8, ring.parity);
      const u32 stage = shared_ + ring.slot * Shared::kStageBytes;
      if (rows - k < 64) clear_tail(stage, rows - k);
      const u64 a = ptx::wgmma_descriptor(stage + group * kMBlocks * Shared::kBoxBytes);
      const u64 b = ptx::wgmma_descriptor(stage + Shared::kABoxes * Shared::kBoxBytes) + kBoxStride;
      ptx::wgmma_fence();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int m = 0; m < kMBlocks; ++m) Instruction::run(acc[m], a + s * kStep + m * (Shared::kBoxBytes / 16), b + s * kStep, accumulate);
        accumulate = 1;
      }
      ptx::wgmma_commit();
      // The stage before this one is read: its group is all that may still have been running.
      ptx::wgmma_wait<1>();
      if (k != 0) release(previous);
      previous = ring.slot;
      ring.advance();
    }
    ptx::wgmma_wait<0>();
    release(previous);
  }

  VARMOE_DEVICE void release(u32 slot) const {
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_ + Shared::kEmpty + slot * 8);
  }

  /// Rows from `valid` on of all boxes of a stage; by both warpgroups, which then go on together.
  VARMOE_DEVICE void clear_tail(u32 stage, i32 valid) const {
    const u32 first = static_cast<u32>(valid) * 128, bytes = Shared::kBoxBytes - first;
    const u32 thread = threadIdx.x - 128;
#pragma unroll 1
    for (u32 box = 0; box < Shared::kABoxes + Shared::kBBoxes; ++box) {
#pragma unroll 1
      for (u32 i = thread * 16; i < bytes; i += 256 * 16) ptx::store_shared16(stage + box * Shared::kBoxBytes + first + i, Vec16{{0, 0, 0, 0}});
    }
    ptx::fence_async_proxy();
    ptx::named_barrier(1, 256);
  }

  template <class Value>
  VARMOE_DEVICE void store_rows(const schedule::GradientTile& t, int group, bool accumulate, Value value) const {
    i64 stride;
    char* const base = gradient_base<Gradient>(p.gradients[t.expert], t.half, stride);
    constexpr i32 kBytesPer = Gradient::kFp32 ? 4 : 2;
    const i32 m_end = Gradient::kTokensFirst ? Gradient::kHidden : t.width, n_end = Gradient::kTokensFirst ? t.width : Gradient::kHidden;
    const i32 lane = static_cast<i32>(threadIdx.x) % 32, warp = static_cast<i32>(threadIdx.x) / 32 % 4;
#pragma unroll
    for (int m = 0; m < kMBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const i32 row = t.m + (group * kMBlocks + m) * 64 + warp * 16 + half * 8 + lane / 4;
        char* const line = base + (row * stride + t.n) * kBytesPer;
#pragma unroll
        for (int j = 0; j < kBlockN / 32; ++j) {
          float v[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) v[i] = value(m, (4 * j + i / 2) * 4 + 2 * half + i % 2);
          epilogue::store_gradient<kElement, Gradient::kFp32>(line + j * 32 * kBytesPer, v, n_end - t.n - j * 32, row < m_end, accumulate);
        }
      }
    }
  }
  VARMOE_DEVICE void store(const schedule::GradientTile& t, const Accumulator& acc, int group) const {
    store_rows(t, group, p.accumulate != 0, [&](int m, int i) { return acc[m][i]; });
  }
  /// Of an expert without rows; what is added to stays as it is.
  VARMOE_DEVICE void clear(const schedule::GradientTile& t, int group) const {
    if (p.accumulate == 0) store_rows(t, group, false, [](int, int) { return 0.0f; });
  }

  const abi::WeightGradientParams& p;
  char* memory_;
  u32 shared_;
};

template <class Gradient, class Config>
VARMOE_DEVICE void weight_gradient_sm90(const abi::WeightGradientParams& p) {
  extern __shared__ __align__(1024) char memory[];
  WeightGradientSm90<Gradient, Config>(p, memory).run();
}

}  // namespace varmoe::moe
