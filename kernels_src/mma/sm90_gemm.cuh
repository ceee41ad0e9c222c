#pragma once

#include "mma/sm90_pipeline.cuh"
#include "mma/sm90_warpgroup.cuh"
#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/tma.cuh"
#include "ptx/warpgroup.cuh"
#include "schedule/row_tiles.cuh"
#include "schedule/tile_map.cuh"

// The Hopper main loop: a persistent grouped GEMM whose warps have roles.
//
//   warpgroup 0   warp 0   copy engine: weights, and rows that lie one after another
//                 warp 1   scheduler: takes tickets, looks tiles up, tells the others through a ring of slots
//                 warps 2, 3   gather: rows named by the sort, by cp.async
//   warpgroups 1, 2   products and epilogue: both of one tile, or (kPingPong) each of every other tile, so that one stores while
//                 the other multiplies
//
// Neither ring drains between tiles. A block waits only for its own warps.
//
// `Problem` (moe/fc1_sm90.cuh, moe/fc2_sm90.cuh) supplies: Config, kElement, kKn, tile_count(), tile(index), k_extent(width),
// up_first(expert), load_weights(stage, barrier, tile, k), Staging and store(tile, accumulator, staging, first block); kTopK
// (slots that a row of a has) and kWholeStages (K is a multiple of 64) where it gathers.
namespace varmoe::mma {

template <class Problem>
class Sm90Gemm {
  using Config = typename Problem::Config;
  using Shared = Sm90Shared<Config>;
  using Group = Sm90Warpgroup<Config, Problem::kElement, Problem::kKn>;
  static constexpr int kBlockK = Shared::kBlockK;
  static constexpr int kGatherWarps = Config::kGatherRows ? 2 : 0;
  static constexpr int kFirstGatherWarp = 2;
  static constexpr int kRowBox = schedule::row_box(Config::kBlockM);
  using Ring = RingCursor<Config::kStages>;
  using Slots = RingCursor<Shared::kTileSlots>;

 public:
  VARMOE_DEVICE Sm90Gemm(const abi::GemmParams& p, char* memory)
      : problem_(p), p_(p), memory_(memory), shared_(ptx::shared_address(memory)) {}

  VARMOE_DEVICE void run() {
    if (threadIdx.x == 0) init_barriers();
    __syncthreads();
    ptx::follow_earlier_kernels();
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
      ptx::registers_decrease<kProducerRegisters>();
      const int warp = static_cast<int>(threadIdx.x) / 32;
      if (warp == 0) {
        if (threadIdx.x == 0) copy();
      } else if (warp == 1) {
        schedule_tiles();
      } else if (Config::kGatherRows) {
        gather();
      }
    } else {
      ptx::registers_increase<kConsumerRegisters>();
      consume(group - 1);
    }
  }

 private:
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  VARMOE_DEVICE void init_barriers() {
    constexpr u32 kGroups = Config::kPingPong ? 1 : Shared::kConsumers;
    for (u32 s = 0; s < Config::kStages; ++s) {
      ptx::mbarrier_init(shared_ + Shared::kFull + s * 8, 1 + 32 * kGatherWarps);
      ptx::mbarrier_init(shared_ + Shared::kEmpty + s * 8, 4 * kGroups);
    }
    for (u32 s = 0; s < Shared::kTileSlots; ++s) {
      ptx::mbarrier_init(shared_ + Shared::kTileFull + s * 8, 1);
      ptx::mbarrier_init(shared_ + Shared::kTileEmpty + s * 8, 1 + kGatherWarps + 4 * Shared::kConsumers);
    }
    for (u32 g = 0; g < Shared::kConsumers; ++g) ptx::mbarrier_init(shared_ + Shared::kTurn + g * 8, 4);
    ptx::fence_mbarrier_init();
  }

  VARMOE_DEVICE TileSlot* slot_of(u32 s) const { return reinterpret_cast<TileSlot*>(memory_ + Shared::kSlots) + s; }
  /// Gathered rows: where each begins in a, in units of 16 bytes.
  VARMOE_DEVICE u32* row_offsets(u32 s) const {
    return reinterpret_cast<u32*>(memory_ + Shared::kRowOffsets) + s * Shared::kOffsetsPerSlot;
  }

  /// The next tile of the ring; the caller releases the slot when it has read what it needs.
  VARMOE_DEVICE TileSlot next_tile(const Slots& at) const {
    ptx::mbarrier_wait(shared_ + Shared::kTileFull + at.slot * 8, at.parity);
    return *slot_of(at.slot);
  }
  VARMOE_DEVICE void release_tile(const Slots& at) const { ptx::mbarrier_arrive(shared_ + Shared::kTileEmpty + at.slot * 8); }

  VARMOE_DEVICE void schedule_tiles() {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    const i32 count = problem_.tile_count();
    const u32 row_units = static_cast<u32>(p_.a_stride / 8);
    Slots at;
    for (i32 index = static_cast<i32>(blockIdx.x);;) {
      const bool more = index < count;
      i32 next = 0;
      TileSlot tile = {};
      if (more) {
        if (lane == 0) next = static_cast<i32>(gridDim.x) + atomicAdd(p_.tickets, 1);
        const schedule::OutputTile t = problem_.tile(index);
        tile = {t.expert, t.row_begin, t.rows, t.column_tile, t.width, problem_.up_first(t.expert), {}};
      }
      ptx::mbarrier_wait(shared_ + Shared::kTileEmpty + at.slot * 8, at.parity ^ 1);
      if (Config::kGatherRows && more) {
        // Four at a time: their latencies overlap, and four registers hold them.
#pragma unroll 4
        for (i32 row = lane; row < Config::kBlockM; row += 32) {
          // Rows beyond the tile repeat its last: the gather need not tell them apart.
          const u32 slot = static_cast<u32>(p_.row_source[tile.row_begin + min_of(row, tile.rows - 1)]);
          row_offsets(at.slot)[row_place(row)] = slot / Problem::kTopK * row_units;
        }
      }
      if (lane == 0) *slot_of(at.slot) = tile;
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(shared_ + Shared::kTileFull + at.slot * 8);
      at.advance();
      if (!more) break;
      index = __shfl_sync(0xffffffffu, next, 0);
    }
  }

  /// One thread.
  VARMOE_DEVICE void copy() {
    Ring ring;
    for (Slots at;; at.advance()) {
      const TileSlot tile = next_tile(at);
      release_tile(at);
      if (tile.rows == 0) break;
      const i32 stages = ceil_div(problem_.k_extent(tile.width), kBlockK);
      const u32 boxes = Config::kGatherRows ? 0 : static_cast<u32>(ceil_div(tile.rows, kRowBox));
      for (i32 i = 0; i < stages; ++i) {
        const u32 full = shared_ + Shared::kFull + ring.slot * 8;
        ptx::mbarrier_wait(shared_ + Shared::kEmpty + ring.slot * 8, ring.parity ^ 1);
        ptx::mbarrier_arrive_expect(full, Shared::kWeightBytes + boxes * (kRowBox * kBlockK * 2));
        problem_.load_weights(shared_ + ring.slot * Shared::kStageBytes, full, tile, i * kBlockK);
        const u32 rows = shared_ + ring.slot * Shared::kStageBytes + Shared::kWeightBytes;
        for (u32 b = 0; b < boxes; ++b) {
          ptx::tma_load_2d(rows + b * (kRowBox * kBlockK * 2), &p_.row_map, full, i * kBlockK, tile.row_begin + static_cast<i32>(b) * kRowBox);
        }
        ring.advance();
      }
    }
  }

  /// Where a row's offset stands in a slot: each gathering thread's rows, kRowGroup apart, lie side by side.
  static constexpr int kRowGroup = 4 * (kGatherWarps > 0 ? kGatherWarps : 1);
  static constexpr int kRowsPerThread = ceil_div(ceil_div(Config::kBlockM, kRowGroup), 4) * 4;
  VARMOE_DEVICE static i32 row_place(i32 row) { return row % kRowGroup * kRowsPerThread + row / kRowGroup; }

  VARMOE_DEVICE void gather() {
    // A warp copies four rows at a time, eight lanes a row.
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    const i32 first = (static_cast<i32>(threadIdx.x) / 32 - kFirstGatherWarp) * 4 + lane / 8;
    const i32 chunk = lane % 8;
    static_assert(kRowGroup % 8 == 0 || kGatherWarps == 0, "a thread's rows share the swizzle");
    const u32 in_tile = static_cast<u32>(first) * 128u + ((static_cast<u32>(chunk) ^ (static_cast<u32>(first) & 7u)) << 4);
    Ring ring;
    for (Slots at;; at.advance()) {
      const TileSlot tile = next_tile(at);
      const u32 offsets = ptx::shared_address(row_offsets(at.slot) + first * kRowsPerThread);
      if (tile.rows != 0) {
        const i32 passes = ceil_div(tile.rows, kRowGroup);
        const i32 k_end = problem_.k_extent(tile.width);
        for (i32 k = 0; k < k_end; k += kBlockK) {
          ptx::mbarrier_wait(shared_ + Shared::kEmpty + ring.slot * 8, ring.parity ^ 1);
          const u32 dst = shared_ + ring.slot * Shared::kStageBytes + Shared::kWeightBytes + in_tile;
          const char* const src = static_cast<const char*>(p_.a) + static_cast<i64>(k) * 2 + chunk * 16;
          gather_stage(dst, src, offsets, passes, k + chunk * 8 < k_end);
          ptx::mbarrier_arrive_cp_async(shared_ + Shared::kFull + ring.slot * 8);
          ring.advance();
        }
      }
      __syncwarp();
      if (lane == 0) release_tile(at);
      if (tile.rows == 0) break;
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }

  /// This thread's chunks of a stage, four rows at a time; offsets are read ahead of the copies that use them. One
  /// multiply-add and one copy a row: two warps have to keep pace with the tensor cores.
  VARMOE_DEVICE void gather_stage(u32 dst, const char* src, u32 offsets, i32 passes, bool in_k) const {
    Vec16 next = ptx::load_shared16(offsets);
#pragma unroll
    for (int pass = 0; pass < kRowsPerThread; pass += 4) {
      if (pass >= passes) break;
      const Vec16 row = next;
      if (pass + 4 < kRowsPerThread) next = ptx::load_shared16(offsets + (pass + 4) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Rows beyond the stage: what an offset of a short tile's last pass would name.
        if ((pass + i) * kRowGroup >= Config::kBlockM) continue;
        const char* from = src + static_cast<u64>(row.v[i]) * 16u;
        const u32 to = dst + (pass + i) * (kRowGroup * 128);
        if constexpr (Problem::kWholeStages) {
          ptx::cp_async_16(to, from);
        } else {
          ptx::cp_async_16(to, from, in_k);
        }
      }
    }
  }

  VARMOE_DEVICE void consume(int group) {
    Group products(shared_, Config::kPingPong ? 0 : group * Group::kBlocks);
    typename Problem::Staging staging(shared_ + Shared::kStaging + static_cast<u32>(group) * Config::kStagingBytes, group);
    Slots at;
    u32 turn_parity = group == 0 ? 1 : 0;  // the first turn is group 0's
    for (int turn = 0;; turn ^= 1) {
      const TileSlot tile = next_tile(at);
      __syncwarp();
      if (threadIdx.x % 32 == 0) release_tile(at);
      at.advance();
      if (tile.rows == 0) break;
      const i32 stages = ceil_div(problem_.k_extent(tile.width), kBlockK);
      if (Config::kPingPong && turn != group) {
        products.skip(stages);
        continue;
      }
      typename Group::Accumulator acc;
      if constexpr (Config::kPingPong) {
        // Only one group waits on the ring at a time: a barrier's parity tells two phases apart, not three.
        ptx::mbarrier_wait(shared_ + Shared::kTurn + static_cast<u32>(group) * 8, turn_parity);
        turn_parity ^= 1;
      }
      products.multiply(acc, tile.rows, stages);
      if (Config::kPingPong && threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_ + Shared::kTurn + static_cast<u32>(group ^ 1) * 8);
      problem_.store(tile, acc, staging, Config::kPingPong ? 0 : group * Group::kBlocks);
    }
  }

  const Problem problem_;
  const abi::GemmParams& p_;
  char* memory_;
  u32 shared_;
};

}  // namespace varmoe::mma
