#pragma once

#include "epilogue/store_gradient.cuh"
#include "epilogue/sum_parts.cuh"
#include "moe/weight_gradient.cuh"
#include "mma/sm90_pipeline.cuh"
#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/elect.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/warpgroup.cuh"
#include "ptx/wgmma.cuh"
#include "schedule/gradient_tiles.cuh"

// The weights' gradients on Hopper: what moe/weight_gradient.cuh computes, with wgmma, whose operands both lie with the summed dimension
// outermost, in boxes of 64 rows by 64 columns. The copy engine brings those of dz or w·h, whose rows lie one after another; rows of x or
// dout are named by the sort, and three warps gather them by cp.async, or they too come by boxes from a copy by row (Config::kGather). One
// producer thread, which also takes tickets and looks tiles up; two consumer warpgroups, which share a tile's columns and split its rows.
//
// An expert's last stage holds rows of the next expert, or beyond the last one's whatever the workspace held: the consumers
// clear those before they multiply, since NaN times zero would stay.
namespace varmoe::moe {

template <class Gradient, class Config>
struct WeightGradientShared {
  static constexpr u32 kBoxBytes = 64 * 128;
  static constexpr u32 kABoxes = Config::kBlockM / 64, kBBoxes = Config::kBlockN / 64;
  static constexpr u32 kStageBytes = (kABoxes + kBBoxes) * kBoxBytes;
  static constexpr int kTileSlots = 3;  // the consumers give a tile back when they have stored it
  static constexpr u32 kSlots = Config::kStages * kStageBytes;
  static constexpr u32 kFull = kSlots + kTileSlots * sizeof(schedule::GradientTile) + 8 - kTileSlots * sizeof(schedule::GradientTile) % 8;
  static constexpr u32 kEmpty = kFull + Config::kStages * 8;
  static constexpr u32 kTileFull = kEmpty + Config::kStages * 8;
  static constexpr u32 kTileEmpty = kTileFull + kTileSlots * 8;
  static constexpr u32 kBytes = kTileEmpty + kTileSlots * 8;
  static constexpr int kThreads = 384;
  static constexpr int kGatherWarps = Config::kGather ? 3 : 0;
  /// What the copy engine brings of a stage.
  static constexpr u32 kBoxesBytes = (Config::kGather ? (Gradient::kTokensFirst ? kBBoxes : kABoxes) : kABoxes + kBBoxes) * kBoxBytes;
};

template <class Gradient, class Config>
class WeightGradientSm90 {
  using Shared = WeightGradientShared<Gradient, Config>;
  static constexpr Element kElement = Gradient::kElement;
  static constexpr int kBlockM = Config::kBlockM, kBlockN = Config::kBlockN;
  static_assert(kBlockM % 128 == 0 && kBlockN % 64 == 0, "two warpgroups, boxes of 64");
  static_assert(!Gradient::kSegments || !Config::kGather, "there is no map from rows to tokens");
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
        ptx::mbarrier_init(shared_ + Shared::kFull + s * 8, 1 + 32 * Shared::kGatherWarps);
        ptx::mbarrier_init(shared_ + Shared::kEmpty + s * 8, 8);
      }
      for (u32 s = 0; s < Shared::kTileSlots; ++s) {
        ptx::mbarrier_init(shared_ + Shared::kTileFull + s * 8, 1);
        ptx::mbarrier_init(shared_ + Shared::kTileEmpty + s * 8, 256 + 32 * Shared::kGatherWarps);
      }
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::follow_earlier_kernels();
    if (threadIdx.x < 128) {
      ptx::registers_decrease<kProducerRegisters>();
      if (threadIdx.x < 32) {
        if (ptx::elect_one()) produce();
      } else if constexpr (Config::kGather) {
        gather();
      }
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
      schedule::GradientTile t = {-1, 0, 0, 0, 0, 0, 0, 0, 1, 0};
      const bool more = index < count;
      if (more)
        t = schedule::gradient_tile<Gradient, kBlockM, kBlockN>(p.tile_prefix, p.expert_order, p.splits, p.expert_offsets, p.gradients, p.experts,
                                                                 index);
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
        ptx::mbarrier_arrive_expect(full, Shared::kBoxesBytes);
        const u32 stage = shared_ + ring.slot * Shared::kStageBytes;
        const i32 row = t.row_begin + k;
#pragma unroll
        for (u32 box = 0; box < Shared::kABoxes; ++box) {
          const i32 column = t.m + static_cast<i32>(box) * 64;
          if constexpr (Gradient::kTokensFirst) {
            if constexpr (!Config::kGather) ptx::tma_load_2d(stage + box * Shared::kBoxBytes, &p.tokens_map, full, policy, column, row);
          } else {
            ptx::tma_load_2d(stage + box * Shared::kBoxBytes, &p.rows_map, full, policy, first + column, row);
          }
        }
#pragma unroll
        for (u32 box = 0; box < Shared::kBBoxes; ++box) {
          const i32 column = t.n + static_cast<i32>(box) * 64;
          if constexpr (Gradient::kTokensFirst) {
            ptx::tma_load_2d(stage + (Shared::kABoxes + box) * Shared::kBoxBytes, &p.rows_map, full, policy, first + column, row);
          } else if constexpr (!Config::kGather) {
            ptx::tma_load_2d(stage + (Shared::kABoxes + box) * Shared::kBoxBytes, &p.tokens_map, full, policy, column, row);
          }
        }
        ring.advance();
      }
    }
  }

  // Gathered rows: 64 a stage, whose columns a warp copies row by row, or two or four rows at a time.
  static constexpr i32 kChunks = (Gradient::kTokensFirst ? kBlockM : kBlockN) / 8;  // of 16 bytes, of a row
  static constexpr i32 kRowsAtOnce = 32 / min_of(kChunks, 32), kCopies = 64 / kRowsAtOnce;
  static constexpr u32 kNoRow = 0xffffffffu;

  /// Rows of x or dout; those beyond the expert's become zero.
  VARMOE_DEVICE void gather() const {
    static_assert(kChunks == 8 || kChunks == 16 || kChunks == 32, "a warp copies whole rows");
    constexpr u32 kFirst = Gradient::kTokensFirst ? 0 : Shared::kABoxes * Shared::kBoxBytes;
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    const i32 chunk = lane % kChunks;
    const u32 box = kFirst + static_cast<u32>(chunk / 8) * Shared::kBoxBytes;
    Ring ring;
    Slots at;
    while (true) {
      ptx::mbarrier_wait(shared_ + Shared::kTileFull + at.slot * 8, at.parity);
      const schedule::GradientTile t = *slot_of(at.slot);
      ptx::mbarrier_arrive(shared_ + Shared::kTileEmpty + at.slot * 8);
      at.advance();
      if (t.expert < 0) break;
      const i32 first = Gradient::kTokensFirst ? t.m : t.n;
      const bool there = first + chunk * 8 < Gradient::kHidden;
      const bool all_there = first + kChunks * 8 <= Gradient::kHidden;
      const char* const from = static_cast<const char*>(p.tokens) + static_cast<i64>(first + chunk * 8) * 2;
      const i32* const sources = p.row_source + t.row_begin;
      // Where a stage's rows begin, two a lane, is asked for some stages before its copies: a load takes as long as a stage or two.
      constexpr int kAhead = 3;
      u32 low[kAhead + 1], high[kAhead + 1];
#pragma unroll
      for (int s = 0; s < kAhead; ++s) {
        low[s] = offset_of(sources, s * 64 + lane, t.rows);
        high[s] = offset_of(sources, s * 64 + 32 + lane, t.rows);
      }
#pragma unroll 1
      for (i32 k = 0; k < t.rows; k += 64) {
        low[kAhead] = offset_of(sources, k + kAhead * 64 + lane, t.rows);
        high[kAhead] = offset_of(sources, k + kAhead * 64 + 32 + lane, t.rows);
        ptx::mbarrier_wait(shared_ + Shared::kEmpty + ring.slot * 8, ring.parity ^ 1);
        __syncwarp();
        const u32 stage = shared_ + ring.slot * Shared::kStageBytes + box;
        if (all_there && t.rows - k >= 64) {
          copy_rows<true>(stage, from, low[0], high[0], true);
        } else {
          copy_rows<false>(stage, from, low[0], high[0], there);
        }
        ptx::mbarrier_arrive_cp_async(shared_ + Shared::kFull + ring.slot * 8);
        ring.advance();
#pragma unroll
        for (int s = 0; s < kAhead; ++s) {
          low[s] = low[s + 1];
          high[s] = high[s + 1];
        }
      }
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }

  /// This warp's copies of a stage. No branch between them: shuffles and address arithmetic of several overlap.
  template <bool kWhole>
  VARMOE_DEVICE void copy_rows(u32 stage, const char* from, u32 low, u32 high, bool there) const {
    const i32 warp = static_cast<i32>(threadIdx.x) / 32 - 1;
    constexpr int kEach = kCopies / max_of(Shared::kGatherWarps, 1), kLeft = kCopies - kEach * Shared::kGatherWarps;
#pragma unroll 6
    for (int n = 0; n < kEach; ++n) copy_row<kWhole>(stage, from, low, high, there, warp + n * Shared::kGatherWarps);
    if (warp < kLeft) copy_row<kWhole>(stage, from, low, high, there, warp + kEach * Shared::kGatherWarps);
  }

  template <bool kWhole>
  VARMOE_DEVICE static void copy_row(u32 stage, const char* from, u32 low, u32 high, bool there, i32 copy) {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    const u32 chunk = static_cast<u32>(lane % kChunks) % 8;
    const u32 row = static_cast<u32>(copy * kRowsAtOnce + lane / min_of(kChunks, 32));
    const u32 units = __shfl_sync(0xffffffffu, copy * kRowsAtOnce < 32 ? low : high, static_cast<int>(row % 32));
    const u32 to = stage + row * 128u + ((chunk ^ (row & 7u)) << 4);
    const char* const source = from + static_cast<u64>(units) * 16u;
    if constexpr (kWhole) {
      ptx::cp_async_16(to, source);
    } else {
      ptx::cp_async_16(to, source, there && units != kNoRow);
    }
  }

  /// In units of 16 bytes.
  VARMOE_DEVICE u32 offset_of(const i32* sources, i32 row, i32 rows) const {
    return row < rows ? static_cast<u32>(sources[row]) / Gradient::kTopK * static_cast<u32>(p.tokens_stride / 8) : kNoRow;
  }

  VARMOE_DEVICE void consume(int group) const {
    Ring ring;
    Slots at;
    while (true) {
      ptx::mbarrier_wait(shared_ + Shared::kTileFull + at.slot * 8, at.parity);
      // Left where it is: its fields would take registers beside the accumulators.
      const schedule::GradientTile& t = *slot_of(at.slot);
      if (t.expert < 0) break;
      if (t.rows == 0) {
        clear(t, group);
      } else {
        Accumulator acc;
        multiply(acc, t.rows, group, ring);
        if (t.parts == 1) {
          store(t, acc, group);
        } else {
          store_part(t, acc, group);
        }
      }
      ptx::mbarrier_arrive(shared_ + Shared::kTileEmpty + at.slot * 8);
      at.advance();
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
      if (rows - k < 64) {
        clear_tail(stage, rows - k);
      } else if constexpr (Config::kGather) {
        // Rows that cp.async brought were written through another proxy than wgmma reads through.
        ptx::fence_async_proxy();
      }
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

  /// Rows from `valid` on of the boxes that the copy engine brought (gathered rows are zero there); by both warpgroups, which then go on
  /// together.
  static constexpr u32 kFirstBox = Config::kGather && Gradient::kTokensFirst ? Shared::kABoxes : 0;
  static constexpr u32 kLastBox = Config::kGather && !Gradient::kTokensFirst ? Shared::kABoxes : Shared::kABoxes + Shared::kBBoxes;
  VARMOE_DEVICE void clear_tail(u32 stage, i32 valid) const {
    const u32 first = static_cast<u32>(valid) * 128, bytes = Shared::kBoxBytes - first;
    const u32 thread = threadIdx.x - 128;
#pragma unroll 1
    for (u32 box = kFirstBox; box < kLastBox; ++box) {
#pragma unroll 1
      for (u32 i = thread * 16; i < bytes; i += 256 * 16) ptx::store_shared16(stage + box * Shared::kBoxBytes + first + i, Vec16{{0, 0, 0, 0}});
    }
    ptx::fence_async_proxy();
    ptx::named_barrier(1, 256);
  }

  static constexpr i32 kBytesPer = Gradient::kFp32 ? 4 : 2;
  static constexpr int kColumnUnits = kBlockN / 32;

  /// Of rows 8·half … of block m of this group: the first one's address in the tile's columns, whether this lane's is there, and how many columns are.
  struct Line {
    char* first;
    i32 columns;
    bool valid;
  };
  VARMOE_DEVICE Line line(const schedule::GradientTile& t, int group, int m, int half) const {
    i64 stride;
    char* const base = gradient_base<Gradient>(p.gradients[t.expert], t.half, stride);
    const i32 m_end = Gradient::kTokensFirst ? Gradient::kHidden : t.width, n_end = Gradient::kTokensFirst ? t.width : Gradient::kHidden;
    const i32 row = t.m + (group * kMBlocks + m) * 64 + static_cast<i32>(threadIdx.x) / 32 % 4 * 16 + half * 8 + static_cast<i32>(threadIdx.x) % 32 / 4;
    return {base + (row * stride + t.n) * kBytesPer, n_end - t.n, row < m_end};
  }

  /// Columns 32·j … of a Line: what a lane has of them.
  VARMOE_DEVICE static void fragment(float (&v)[8], const Accumulator& acc, int m, int half, int j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = acc[m][(4 * j + i / 2) * 4 + 2 * half + i % 2];
  }
  VARMOE_DEVICE void store_columns(const Line& to, int j, float (&v)[8]) const {
    epilogue::store_gradient<kElement, Gradient::kFp32>(to.first + j * 32 * kBytesPer, v, to.columns - j * 32, to.valid, p.accumulate != 0);
  }

  VARMOE_DEVICE void store(const schedule::GradientTile& t, const Accumulator& acc, int group) const {
#pragma unroll
    for (int m = 0; m < kMBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Line to = line(t, group, m, half);
#pragma unroll
        for (int j = 0; j < kColumnUnits; ++j) {
          float v[8];
          fragment(v, acc, m, half, j);
          store_columns(to, j, v);
        }
      }
    }
  }

  /// This part's sum, for the group of whichever block comes last, which stores the whole. acc is not written here: it belongs to wgmma.
  VARMOE_DEVICE void store_part(const schedule::GradientTile& t, const Accumulator& acc, int group) const {
    constexpr i64 kSlot = kBlockM * kBlockN;
    constexpr int kAtOnce = min_of(kColumnUnits, 4);
    const u32 thread = threadIdx.x % 128;
    float* const first = p.partials + t.slot * kSlot + group * (kSlot / 2);
    float* const own = first + t.part * kSlot;
#pragma unroll
    for (int m = 0; m < kMBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kColumnUnits; ++j) {
          float v[8];
          fragment(v, acc, m, half, j);
          epilogue::store_part<128>(own, (2 * m + half) * kColumnUnits + j, thread, v);
        }
      }
    }
    if (!epilogue::is_last_part<128>(p.arrivals + 2 * t.slot + group, t.parts, thread, 2 + static_cast<u32>(group))) return;
#pragma unroll 1
    for (int i = 0; i < 2 * kMBlocks; ++i) {
      const Line to = line(t, group, i / 2, i % 2);
#pragma unroll 1
      for (int j = 0; j < kColumnUnits; j += kAtOnce) {
        float sum[kAtOnce][8];
        epilogue::add_parts<kAtOnce, 128>(sum, first, kSlot, t.parts, i * kColumnUnits + j, thread);
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) store_columns(to, j + u, sum[u]);
      }
    }
  }

  /// Of an expert without rows; what is added to stays as it is. Loops: rare, and unrolled they would take registers from the rest.
  VARMOE_DEVICE void clear(const schedule::GradientTile& t, int group) const {
    if (p.accumulate != 0) return;
#pragma unroll 1
    for (int i = 0; i < 2 * kMBlocks; ++i) {
      const Line to = line(t, group, i / 2, i % 2);
#pragma unroll 1
      for (int j = 0; j < kColumnUnits; ++j) {
        float v[8] = {};
        epilogue::store_gradient<kElement, Gradient::kFp32>(to.first + j * 32 * kBytesPer, v, to.columns - j * 32, to.valid, false);
      }
    }
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
