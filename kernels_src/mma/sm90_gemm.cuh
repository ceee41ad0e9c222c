#pragma once

#include "mma/sm90_pipeline.cuh"
#include "mma/sm90_warpgroup.cuh"
#include "prelude.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/elect.cuh"
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
// Neither ring drains between tiles.
//
// kCluster = 2: two blocks multiply neighbouring row tiles of one expert by the same weights; each brings half of them, for both.
// The first block's scheduler takes tickets for both.
//
// fc2 need not wait until fc1 has ended: its blocks start where fc1's find no more tiles, and wait for each expert's h by a counter
// (GemmParams::h_pending). They start when every block of fc1 has, so no block waits for one that has no room, and fc1 waited for
// the sort, so what the sort wrote is there. Otherwise a block waits only for the warps of its cluster.
//
// `Problem` (moe/fc1_sm90.cuh, moe/fc2_sm90.cuh) supplies: Config, kElement, kKn, kMakesH, tile_count(), tile(index, rank),
// k_extent(width), kWeightBoxes, load_weights(stage, barrier, tile, k, box, L2 policy), Staging, ahead(tile, first block),
// what it asks for before the products, and store(tile, accumulator, staging, first block, ahead); kLongestK (of any tile; 0: not known); kTopK (slots that a row of a has)
// and kWholeStages (K is a multiple of 64) where it gathers.
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
  static constexpr int kCluster = Config::kCluster;
  /// Stages that are asked for together: a box of one and the same box of the next lie side by side in memory, which DRAM likes (1 % of
  /// a weight stream). A short ring has none to spare.
  static constexpr int kAtOnce = Config::kStages >= 6 ? 2 : 1;
  /// Tiles that a block has beyond those that it has begun. A ticket and the look-up behind it take about 2 µs, in which
  /// the copy engine must not run out of tiles; but tickets in hand are what other blocks go without, and where there are few tiles a
  /// block that starts early would take most of them. A gather has begun a tile when it is through with it.
  static constexpr int kTileStages = Problem::kLongestK / kBlockK;
  static constexpr int kAhead = min_of(Shared::kTileSlots, (kTileStages >= 24 ? 1 : kTileStages >= 12 ? 2 : kTileStages >= 6 ? 3 : 4) + (kGatherWarps > 0 ? 1 : 0));

 public:
  VARMOE_DEVICE Sm90Gemm(const abi::GemmParams& p, char* memory)
      : problem_(p), p_(p), memory_(memory), shared_(ptx::shared_address(memory)), rank_(kCluster > 1 ? ptx::cluster_rank() : 0) {}

  VARMOE_DEVICE void run() {
    if (threadIdx.x == 0) init_barriers();
    meet();
    const bool early = !Problem::kMakesH && p_.h_pending != nullptr;
    if (!early) ptx::wait_for_earlier_kernels();
    ptx::let_later_kernels_start();
    work();
    // Lanes without work must not hold their warp up in what follows.
    __syncwarp();
    // Order along the chain of kernels: who waits for this one waits for those before it.
    if (early) ptx::wait_for_earlier_kernels();
    // Another block of the cluster may still bring weights for this one, or tell it of stages.
    if constexpr (kCluster > 1) ptx::cluster_barrier();
  }

 private:
  // Registers of a thread; both kinds together are what 384 threads start with, 168 each. A cluster's scheduler and gather need more
  // than 40, and accumulators leave them that up to 160.
  static constexpr bool kRoomyProducers = kCluster > 1 && Group::kBlocks * Config::kBlockM / 2 <= 160;
  static constexpr int kProducerRegisters = kRoomyProducers ? 56 : 40;
  static constexpr int kConsumerRegisters = kRoomyProducers ? 224 : 232;
  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters == 384 * 168, "setmaxnreg waits for registers that nobody gives");

  VARMOE_DEVICE void work() {
    const int group = static_cast<int>(threadIdx.x) / 128;
    if (group == 0) {
      ptx::registers_decrease<kProducerRegisters>();
      const int warp = static_cast<int>(threadIdx.x) / 32;
      if (warp == 0) {
        if (ptx::elect_one()) copy();
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

  VARMOE_DEVICE static void meet() {
    if constexpr (kCluster > 1) {
      ptx::cluster_barrier();
    } else {
      __syncthreads();
    }
  }

  VARMOE_DEVICE void init_barriers() {
    constexpr u32 kGroups = Config::kPingPong ? 1 : Shared::kConsumers;
    for (u32 s = 0; s < Config::kStages; ++s) {
      ptx::mbarrier_init(shared_ + Shared::kFull + s * 8, 1 + 32 * kGatherWarps);
      ptx::mbarrier_init(shared_ + Shared::kEmpty + s * 8, 4 * kGroups * kCluster);
    }
    // Each thread that wrote or read a slot says so itself.
    for (u32 s = 0; s < Shared::kTileSlots; ++s) {
      slot_of(s)->expert = -1;
      ptx::mbarrier_init(shared_ + Shared::kTileFull + s * 8, 32);
      if (Config::kGatherRows) ptx::mbarrier_init(shared_ + Shared::kTileKnown + s * 8, 1);
      ptx::mbarrier_init(shared_ + Shared::kTileEmpty + s * 8, 1 + 32 * kGatherWarps + 128 * Shared::kConsumers);
    }
    for (u32 s = 0; s < Shared::kTicketSlots; ++s) ptx::mbarrier_init(shared_ + Shared::kTicketFull + s * 8, 1);
    for (u32 g = 0; g < Shared::kConsumers; ++g) ptx::mbarrier_init(shared_ + Shared::kTurn + g * 8, 4);
    ptx::fence_mbarrier_init();
  }

  VARMOE_DEVICE TileSlot* slot_of(u32 s) const { return reinterpret_cast<TileSlot*>(memory_ + Shared::kSlots) + s; }
  /// Gathered rows: where each begins in a, in units of 16 bytes.
  VARMOE_DEVICE u32* row_offsets(u32 s) const {
    return reinterpret_cast<u32*>(memory_ + Shared::kRowOffsets) + s * Shared::kOffsetsPerSlot;
  }

  /// The next tile of the ring; the caller releases the slot when it has read what it needs.
  VARMOE_DEVICE TileSlot next_tile(const Slots& at, u32 barriers = Shared::kTileFull) const {
    ptx::mbarrier_wait(shared_ + barriers + at.slot * 8, at.parity);
    return *slot_of(at.slot);
  }
  VARMOE_DEVICE void release_tile(const Slots& at) const { ptx::mbarrier_arrive(shared_ + Shared::kTileEmpty + at.slot * 8); }

  VARMOE_DEVICE void schedule_tiles() {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    // Before fc1 has ended nothing but this orders the reads below after the sort's writes.
    if (!Problem::kMakesH && p_.h_pending != nullptr) ptx::fence_device();
    const i32 count = problem_.tile_count();
    const u32 row_units = static_cast<u32>(p_.a_stride / 8);
    Slots at, begun;
    i32 before = -1;
    TicketCursor ticket;
    for (i32 index = static_cast<i32>(blockIdx.x) / kCluster, number = 0;; ++number) {
      const bool more = index < count;
      TileSlot tile = {-1, 0, 0, 0, 0, 0, {}};
      if (more) {
        const schedule::OutputTile t = problem_.tile(index, rank_);
        tile = {t.expert, t.row_begin, t.rows, t.column_tile, t.width, t.kind, {}};
      }
      __syncwarp();  // all lanes have read what was in the slot
      if (lane == 0) {
        *slot_of(at.slot) = tile;
        if (Config::kGatherRows) ptx::mbarrier_arrive(shared_ + Shared::kTileKnown + at.slot * 8);
      }
      if (Config::kGatherRows && more) {
        // Several at a time: their latencies overlap, and a register holds each. A cluster's scheduler has fewer to spare.
#pragma unroll (kCluster > 1 ? 2 : 4)
        for (i32 row = lane; row < Config::kBlockM; row += 32) {
          // Rows beyond the tile repeat its last: the gather need not tell them apart.
          const u32 slot = static_cast<u32>(p_.row_source[tile.row_begin + max_of(min_of(row, tile.rows - 1), 0)]);
          row_offsets(at.slot)[row_place(row)] = slot / Problem::kTopK * row_units;
        }
      }
      ptx::mbarrier_arrive(shared_ + Shared::kTileFull + at.slot * 8);
      at.advance();
      if (!more) {
        if (Problem::kMakesH && p_.h_pending != nullptr) {
          for (i32 i = min_of(number + 1, kAhead); i > 0; --i) wait_until_begun(begun, before);
        }
        break;
      }
      // Then the next tile's slot is free as well.
      if (number + 1 >= kAhead) wait_until_begun(begun, before);
      i32 next = 0;
      if (lane == 0 && rank_ == 0) next = static_cast<i32>(gridDim.x) / kCluster + atomicAdd(p_.tickets, 1);
      index = share_ticket(next, ticket);
    }
  }

  /// Waits until the tile in slot `at` has been begun by all, and goes on to the next slot. The consumers have then stored the tile
  /// before it, of expert `before`: fc1 says so to fc2, whose blocks may be waiting.
  VARMOE_DEVICE void wait_until_begun(Slots& at, i32& before) {
    ptx::mbarrier_wait(shared_ + Shared::kTileEmpty + at.slot * 8, at.parity);
    if constexpr (Problem::kMakesH) {
      if (p_.h_pending != nullptr && before >= 0 && threadIdx.x % 32 == 0) ptx::add_release(p_.h_pending + before, -1);
      before = slot_of(at.slot)->expert;
    }
    at.advance();
  }

  using TicketCursor = RingCursor<(Shared::kTicketSlots > 0 ? Shared::kTicketSlots : 1)>;

  /// The next index, which lane 0 of the cluster's first block drew.
  VARMOE_DEVICE i32 share_ticket(i32 next, TicketCursor& at) const {
    if constexpr (kCluster > 1) {
      const u32 full = shared_ + Shared::kTicketFull + at.slot * 8, place = shared_ + Shared::kTickets + at.slot * 4;
      if (threadIdx.x % 32 == 0) {
        if (rank_ == 0) {
#pragma unroll
          for (u32 peer = 1; peer < kCluster; ++peer)
            ptx::store_async(ptx::cluster_address(place, peer), static_cast<u32>(next), ptx::cluster_address(full, peer));
        } else {
          ptx::mbarrier_arrive_expect(full, 4);
          ptx::mbarrier_wait(full, at.parity);
          next = static_cast<i32>(ptx::load_shared4(place));
        }
      }
      at.advance();
    }
    return __shfl_sync(0xffffffffu, next, 0);
  }

  /// One thread.
  VARMOE_DEVICE void copy() {
    Ring ring;
    const ptx::L2Policy keep = ptx::l2_keep_normally(), drop = ptx::l2_evict_first();
    for (Slots at;; at.advance()) {
      const TileSlot tile = next_tile(at, Shared::kTileKnown);
      release_tile(at);
      if (tile.is_end()) break;
      const ptx::L2Policy policy = tile.read_once() ? drop : keep;
      if constexpr (!Problem::kMakesH) wait_for_h(tile.expert);
      const i32 stages = ceil_div(problem_.k_extent(tile.width), kBlockK);
      const u32 boxes = Config::kGatherRows ? 0 : static_cast<u32>(ceil_div(tile.rows, kRowBox));
      for (i32 i = 0; i < stages; i += kAtOnce) {
        const i32 count = min_of(kAtOnce, stages - i);
        Ring at_once = ring;
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          if (n >= count) break;
          ptx::mbarrier_wait(shared_ + Shared::kEmpty + at_once.slot * 8, at_once.parity ^ 1);
          ptx::mbarrier_arrive_expect(full_barrier(at_once), Shared::kWeightBytes + boxes * (kRowBox * kBlockK * 2));
          at_once.advance();
        }
#pragma unroll
        for (int box = 0; box < Problem::kWeightBoxes; ++box) {
          if (box % kCluster != rank_) continue;
          at_once = ring;
#pragma unroll
          for (int n = 0; n < kAtOnce; ++n) {
            if (n >= count) break;
            problem_.load_weights(shared_ + at_once.slot * Shared::kStageBytes, full_barrier(at_once), tile, (i + n) * kBlockK, box, policy);
            at_once.advance();
          }
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          if (n >= count) break;
          const u32 rows = shared_ + ring.slot * Shared::kStageBytes + Shared::kWeightBytes;
          for (u32 b = 0; b < boxes; ++b) {
            ptx::tma_load_2d(rows + b * (kRowBox * kBlockK * 2), &p_.row_map, full_barrier(ring), keep, (i + n) * kBlockK,
                             tile.row_begin + static_cast<i32>(b) * kRowBox);
          }
          ring.advance();
        }
      }
    }
  }
  VARMOE_DEVICE u32 full_barrier(const Ring& at) const { return shared_ + Shared::kFull + at.slot * 8; }

  /// Until fc1 has stored all of an expert's tiles.
  VARMOE_DEVICE void wait_for_h(i32 expert) const {
    if (p_.h_pending == nullptr) return;
    while (ptx::load_acquire(p_.h_pending + expert) > 0) {
    }
    // fc1 stored by ordinary stores; the copy engine reads.
    ptx::fence_async_proxy_global();
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
      if (!tile.is_end()) {
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
      release_tile(at);
      if (tile.is_end()) break;
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
      release_tile(at);
      at.advance();
      if (tile.is_end()) break;
      const i32 stages = ceil_div(problem_.k_extent(tile.width), kBlockK);
      if (Config::kPingPong && turn != group) {
        products.skip(stages);
        continue;
      }
      const int first_block = Config::kPingPong ? 0 : group * Group::kBlocks;
      const auto ahead = problem_.ahead(tile, first_block);
      typename Group::Accumulator acc;
      ahead.clear(acc);
      if constexpr (Config::kPingPong) {
        // Only one group waits on the ring at a time: a barrier's parity tells two phases apart, not three.
        ptx::mbarrier_wait(shared_ + Shared::kTurn + static_cast<u32>(group) * 8, turn_parity);
        turn_parity ^= 1;
      }
      products.multiply(acc, tile.rows, stages);
      if (Config::kPingPong && threadIdx.x % 32 == 0) ptx::mbarrier_arrive(shared_ + Shared::kTurn + static_cast<u32>(group ^ 1) * 8);
      problem_.store(tile, acc, staging, first_block, ahead);
    }
  }

  const Problem problem_;
  const abi::GemmParams& p_;
  char* memory_;
  u32 shared_;
  u32 rank_;  // in the cluster
};

}  // namespace varmoe::mma
