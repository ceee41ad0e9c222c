#pragma once

#include "prelude.cuh"
#include "ptx/mbarrier.cuh"

// Shared memory of the Hopper main loop, and the cursors that its warps walk it with.
namespace varmoe::mma {

/// What the scheduler tells the other warps of an output tile. A tile may have no rows (abi::RowTile).
struct alignas(16) TileSlot {
  i32 expert;     // negative: there is no more work
  i32 row_begin;
  i32 rows;
  i32 column_tile;
  i32 width;
  i32 kind;       // abi::kTile…
  i32 reserved[2];

  VARMOE_DEVICE bool is_end() const { return expert < 0; }
  VARMOE_DEVICE bool read_once() const { return (kind & abi::kTileReadOnce) != 0; }
  VARMOE_DEVICE i32 up_first() const { return (kind & abi::kTileUpFirst) != 0; }
};

/// Offsets from the start of dynamic shared memory, which is 1024-aligned. `kStagingBytes`: one consumer warpgroup's epilogue.
template <class Config>
struct Sm90Shared {
  static constexpr int kBlockK = 64;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kTileSlots = 4;
  /// Tickets on their way from a cluster's first block to another. The first is at most six ahead: its consumers are within one
  /// tile of the other's, since they share weights, and its scheduler within kTileSlots of them.
  static constexpr int kTicketSlots = Config::kCluster > 1 ? 8 : 0;
  static constexpr u32 kWeightBytes = Config::kBlockN * kBlockK * 2;
  static constexpr u32 kRowBytes = Config::kBlockM * kBlockK * 2;
  static constexpr u32 kStageBytes = kWeightBytes + kRowBytes;

  static constexpr int kOffsetsPerSlot = ceil_div(Config::kBlockM, 32) * 32;

  static constexpr u32 kStaging = Config::kStages * kStageBytes;
  static constexpr u32 kSlots = kStaging + kConsumers * Config::kStagingBytes;
  static constexpr u32 kRowOffsets = kSlots + kTileSlots * sizeof(TileSlot);  // of gathered rows
  static constexpr u32 kBarriers = kRowOffsets + (Config::kGatherRows ? kTileSlots * kOffsetsPerSlot * 4 : 0);
  static constexpr u32 kFull = kBarriers;
  static constexpr u32 kEmpty = kFull + Config::kStages * 8;
  static constexpr u32 kTileFull = kEmpty + Config::kStages * 8;
  static constexpr u32 kTileEmpty = kTileFull + kTileSlots * 8;
  /// A tile is known, but for where its gathered rows lie: the weights may be asked for.
  static constexpr u32 kTileKnown = Config::kGatherRows ? kTileEmpty + kTileSlots * 8 : kTileFull;
  static constexpr u32 kTurn = max_of(kTileEmpty, kTileKnown) + kTileSlots * 8;
  static constexpr u32 kTicketFull = kTurn + kConsumers * 8;
  static constexpr u32 kTickets = kTicketFull + kTicketSlots * 8;
  static constexpr u32 kBytes = kTickets + kTicketSlots * 4;
};

/// A position in a ring of kSlots barriers and the parity of its current round.
template <int kSlots>
struct RingCursor {
  u32 slot = 0;
  u32 parity = 0;

  VARMOE_DEVICE void advance() {
    ++slot;
    if (slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
  VARMOE_DEVICE void advance(u32 by) {
    slot += by % kSlots;
    parity ^= (by / kSlots) & 1;
    if (slot >= kSlots) {
      slot -= kSlots;
      parity ^= 1;
    }
  }
};

}  // namespace varmoe::mma
