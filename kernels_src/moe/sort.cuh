#pragma once

#include "moe/shared_weight.cuh"
#include "prelude.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"
#include "schedule/row_tiles.cuh"

// Stable counting sort of the routed slots (token·k + slot) by expert. A slot's place follows from counts alone, never from who came
// first, so the order, and with it every later bit, is the same on each run.
//
// Small batches: one block does it all (sort_single). Larger ones: sort_count writes a histogram per block of slots, sort_scatter
// sums the histograms before its own and places its slots; a block of its own writes the tile lists.
//
// Shared experts are the last kSharedExperts of kExperts, and the last of each token's kTopK slots: nobody names them, every token has
// them. Where they have a gate, blocks beyond those that sort work out each token's weight of them (moe/shared_weight.cuh).
namespace varmoe::moe {

template <class Layer, int kThreads>
struct Sort {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kExperts = Layer::kExperts;
  static constexpr int kRoutedExperts = kExperts - Layer::kSharedExperts;
  static constexpr int kPerLane = (kExperts + 31) / 32;
  /// Threads that share an expert where each expert has work of its own.
  static constexpr int kParts = max_of(1, kThreads / kExperts);

  struct Shared {
    i32 warp_count[kWarps][kExperts];  // per warp: slots of each expert; then where its next one goes
    i32 total[kExperts];               // rows of each expert
    i32 offset[kExperts + 1];          // first row of each expert
    i32 fc1_first[kExperts + 1];       // by position in expert_order: row tiles before it
    i32 fc2_first[kExperts + 1];
    i32 fc1_outputs[kExperts + 1];     // output tiles before it (runtime-width layers)
    // Of the layer's table, by position in expert_order.
    i32 order[kExperts];
    i32 kind[kExperts];                // of its row tiles, but for kTileReadOnce
    i32 fc1_columns[kExperts];         // column tiles
  };

  /// The table was written when the layer was bound, so this may come before the wait for earlier kernels; a block's barrier ends it.
  VARMOE_DEVICE static void read_table(const abi::SortParams& p, Shared& s) {
    for (i32 i = threadIdx.x; i < kExperts; i += kThreads) {
      const i32 e = p.expert_order[i];
      s.order[i] = e;
      s.kind[i] = p.experts[e].width_class | (p.experts[e].up_first != 0 ? abi::kTileUpFirst : 0);
      s.fc1_columns[i] = ceil_div(p.experts[e].width, p.fc1_tile_columns);
    }
  }

  VARMOE_DEVICE static i32 warp() { return static_cast<i32>(threadIdx.x) / 32; }
  VARMOE_DEVICE static i32 lane() { return static_cast<i32>(threadIdx.x) % 32; }

  /// Tokens of this chunk that exist.
  VARMOE_DEVICE static i32 tokens(const abi::SortParams& p) {
    i32 tokens = p.tokens;
    if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count - p.token_begin));
    return tokens;
  }

  /// Their slots.
  VARMOE_DEVICE static i32 slots(const abi::SortParams& p) { return tokens(p) * Layer::kTopK; }

  /// The expert of a slot, or −1 when it has none.
  VARMOE_DEVICE static i32 expert_of(const abi::SortParams& p, i32 slot) {
    if constexpr (Layer::kSharedExperts > 0) {
      constexpr int kRoutedSlots = Layer::kTopK - Layer::kSharedExperts;
      const i32 token = static_cast<i32>(static_cast<u32>(slot) / Layer::kTopK), j = slot - token * Layer::kTopK;
      if (j >= kRoutedSlots) return kRoutedExperts + j - kRoutedSlots;
      slot = token * kRoutedSlots + j;
    }
    const i32 named = p.expert_map != nullptr ? p.global_experts : kRoutedExperts;
    i32 id;
    if (p.ids_are_64bit) {
      const i64 wide = static_cast<const i64*>(p.topk_ids)[slot];
      id = wide >= 0 && wide < named ? static_cast<i32>(wide) : -1;
    } else {
      id = static_cast<const i32*>(p.topk_ids)[slot];
      if (id < 0 || id >= named) id = -1;
    }
    if (p.expert_map == nullptr) return id;
    if (id >= 0) id = p.expert_map[id];
    return id >= 0 && id < kRoutedExperts ? id : -1;
  }

  /// What a slot's input is multiplied by: shared experts take theirs as it is.
  VARMOE_DEVICE static float input_weight(const abi::SortParams& p, i32 slot) {
    if constexpr (Layer::kSharedExperts > 0) {
      constexpr int kRoutedSlots = Layer::kTopK - Layer::kSharedExperts;
      const i32 token = static_cast<i32>(static_cast<u32>(slot) / Layer::kTopK), j = slot - token * Layer::kTopK;
      return j < kRoutedSlots ? p.topk_weights[token * kRoutedSlots + j] : 1.0f;
    } else {
      return p.topk_weights[slot];
    }
  }

  /// Whether this block has worked out weights of the shared experts instead of sorting.
  VARMOE_DEVICE static bool weighs_shared(const abi::SortParams& p) {
    if constexpr (Layer::kSharedGate) {
      const i32 block = static_cast<i32>(blockIdx.x) - p.sort_blocks;
      if (block < 0) return false;
      ptx::follow_earlier_kernels();
      shared_weights<Layer, kThreads>(p, tokens(p), block, static_cast<i32>(gridDim.x) - p.sort_blocks);
      return true;
    } else {
      return false;
    }
  }

  /// Slots [begin, end) that a warp walks, a multiple of 32 each but for the last.
  VARMOE_DEVICE static void warp_range(i32 begin, i32 end, i32& first, i32& last) {
    const i32 per_warp = ceil_div(ceil_div(end - begin, kWarps), 32) * 32;
    first = min_of(begin + warp() * per_warp, end);
    last = min_of(first + per_warp, end);
  }

  /// Warps that have slots of [begin, end) to walk: the first ones. Few slots occupy few, and nobody looks at the others' counts.
  VARMOE_DEVICE static i32 busy_warps(i32 begin, i32 end) { return min_of(kWarps, ceil_div(end - begin, 32)); }

  /// Slots whose experts a lane keeps from counting to placing them; longer walks ask for them again.
  static constexpr int kHeld = 4;
  struct Held {
    i32 expert[kHeld];
  };

  /// visit(slot, expert) of each slot of [first, last), 32 at a time in ascending order by all lanes alike: expert is −1 where a slot has none or is none.
  /// The experts of kHeld steps are asked for together. `known`: those of a walk that is no longer than that are in `held`.
  template <class Visit>
  VARMOE_DEVICE static void walk(const abi::SortParams& p, i32 first, i32 last, Held& held, bool known, Visit visit) {
    for (i32 base = first; base < last; base += 32 * kHeld) {
      if (!known || last - first > 32 * kHeld) {
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          const i32 slot = base + j * 32 + lane();
          held.expert[j] = slot < last ? expert_of(p, slot) : -1;
        }
      }
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (base + j * 32 < last) visit(base + j * 32 + lane(), held.expert[j]);
      }
    }
  }

  /// Zeroes the counts of the first `warps` warps; a barrier has to follow. Needs nothing of earlier kernels.
  VARMOE_DEVICE static void clear(Shared& s, i32 warps) {
    for (i32 i = threadIdx.x; i < warps * kExperts; i += kThreads) (&s.warp_count[0][0])[i] = 0;
  }

  /// Counts slots [begin, end) into s.warp_count of the busy warps, which has been cleared.
  VARMOE_DEVICE static void count(const abi::SortParams& p, Shared& s, i32 begin, i32 end, Held& held) {
    i32 first, last;
    warp_range(begin, end, first, last);
    walk(p, first, last, held, false, [&](i32, i32 expert) {
      const u32 peers = __match_any_sync(0xffffffffu, expert);
      if (expert >= 0 && lane() == __ffs(peers) - 1) s.warp_count[warp()][expert] += __popc(peers);
      __syncwarp();
    });
    __syncthreads();
  }

  /// Turns s.warp_count of `busy` warps into the rows of earlier warps, and tells of each expert's rows in all of them: tell(expert, rows). A barrier has to follow.
  template <class Tell>
  VARMOE_DEVICE static void rank_warps(Shared& s, i32 busy, Tell tell) {
    for (i32 e = threadIdx.x; e < kExperts; e += kThreads) {
      i32 next = 0;
#pragma unroll 8
      for (int w = 0; w < busy; ++w) {
        const i32 n = s.warp_count[w][e];
        s.warp_count[w][e] = next;
        next += n;
      }
      tell(e, next);
    }
  }

  /// Adds to s.total each expert's rows in all blocks, to s.fc1_outputs those in blocks before this one; sums of integers do not depend
  /// on who comes first.
  VARMOE_DEVICE static void sum_blocks(const abi::SortParams& p, Shared& s, i32 block, i32 blocks) {
    for (i32 i = threadIdx.x; i < kParts * kExperts; i += kThreads) {
      const i32 e = i % kExperts;
      i32 before = 0, total = 0;
#pragma unroll 8
      for (i32 b = i / kExperts; b < blocks; b += kParts) {
        const i32 rows = p.block_histogram[static_cast<i64>(b) * kExperts + e];
        before += b < block ? rows : 0;
        total += rows;
      }
      atomicAdd(&s.total[e], total);
      atomicAdd(&s.fc1_outputs[e], before);
    }
  }

  /// Places slots [begin, end): s.warp_count holds an expert's rows in earlier warps, first_row(expert) where the block's begin.
  template <class FirstRow>
  VARMOE_DEVICE static void place(const abi::SortParams& p, Shared& s, i32 begin, i32 end, Held& held, FirstRow first_row) {
    i32 first, last;
    warp_range(begin, end, first, last);
    walk(p, first, last, held, true, [&](i32 slot, i32 expert) {
      const u32 peers = __match_any_sync(0xffffffffu, expert);
      const i32 rank = __popc(peers & ((1u << lane()) - 1u));
      i32 row = -1;
      if (expert >= 0) row = first_row(expert) + s.warp_count[warp()][expert] + rank;
      __syncwarp();
      if (expert >= 0 && rank == 0) s.warp_count[warp()][expert] += __popc(peers);
      __syncwarp();
      if (slot < last) {
        if (p.slot_row != nullptr) p.slot_row[slot] = row;
        if (row >= 0) {
          p.row_source[row] = slot;
          // Here the slot is at hand: fc1 would load it first, for each of its tiles.
          if constexpr (Layer::kWeightOnInput) p.row_weight[row] = input_weight(p, slot);
        }
      }
    });
  }

  /// Exclusive prefix sum by one warp: out[0 … kExperts], out[kExperts] the total. Each value is asked for once (it may cost a
  /// division) and waits in its place of `out`.
  template <class Value>
  VARMOE_DEVICE static void scan(i32* out, Value value) {
    i32 mine = 0;
#pragma unroll 4
    for (int i = 0; i < kPerLane; ++i) {
      const i32 e = lane() * kPerLane + i;
      if (e < kExperts) {
        const i32 n = value(e);
        out[e] = n;
        mine += n;
      }
    }
    i32 sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const i32 lower = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane() >= d) sum += lower;
    }
    i32 next = sum - mine;
    constexpr int kAtOnce = 4;
    for (int i = 0; i < kPerLane; i += kAtOnce) {
      const i32 first = lane() * kPerLane + i, end = min_of(kExperts, lane() * kPerLane + kPerLane);
      i32 n[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) n[j] = first + j < end ? out[first + j] : 0;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (first + j < end) out[first + j] = next;
        next += n[j];
      }
    }
    if (lane() == 31) out[kExperts] = sum;
  }

  /// Prefix sums over s.total, by as many warps as there are sums to make.
  VARMOE_DEVICE static void scan_all(const abi::SortParams& p, Shared& s, bool tiles) {
    for (i32 job = warp(); job < (tiles ? 4 : 1); job += kWarps) {
      if (job == 0) {
        scan(s.offset, [&](i32 e) { return s.total[e]; });
      } else if (job == 1) {
        scan(s.fc1_first,
             [&](i32 i) { return schedule::row_tile_count(s.total[s.order[i]], p.fc1_block_m, p.fc1_cluster); });
      } else if (job == 2) {
        scan(s.fc2_first,
             [&](i32 i) { return schedule::row_tile_count(s.total[s.order[i]], p.fc2_block_m, p.fc2_cluster); });
      } else if (p.fc1_tile_prefix != nullptr) {
        scan(s.fc1_outputs, [&](i32 i) {
          return schedule::row_tile_count(s.total[s.order[i]], p.fc1_block_m, p.fc1_cluster) * s.fc1_columns[i];
        });
      }
    }
    __syncthreads();
  }

  /// Of row tiles [first, end) of the list, which are all those of one expert, every kParts-th from `part` on.
  VARMOE_DEVICE static void write_tiles(abi::RowTile* list, i32 part, i32 first, i32 end, i32 begin, i32 rows, i32 step, i32 expert, i32 kind) {
    for (i32 t = first + part; t < end; t += kParts) {
      const schedule::RowRange range = schedule::row_tile(rows, end - first, step, t - first);
      list[t] = abi::RowTile{expert, begin + range.first, range.rows, kind};
    }
  }

  /// Row offsets, tile lists and their class boundaries.
  VARMOE_DEVICE static void write_schedule(const abi::SortParams& p, Shared& s) {
    for (i32 e = threadIdx.x; e <= kExperts; e += kThreads) p.expert_offsets[e] = s.offset[e];
    for (i32 j = threadIdx.x; j < kParts * kExperts; j += kThreads) {
      const i32 i = j % kExperts, part = j / kExperts;
      const i32 e = s.order[i];
      write_tiles(p.fc1_tiles, part, s.fc1_first[i], s.fc1_first[i + 1], s.offset[e], s.total[e], p.fc1_row_step, e,
                  s.kind[i] | schedule::read_once(s.fc1_first[i + 1] - s.fc1_first[i], p.fc1_cluster));
      write_tiles(p.fc2_tiles, part, s.fc2_first[i], s.fc2_first[i + 1], s.offset[e], s.total[e], p.fc2_row_step, e,
                  s.kind[i] | schedule::read_once(s.fc2_first[i + 1] - s.fc2_first[i], p.fc2_cluster));
      if (p.h_pending != nullptr && part == 0) p.h_pending[e] = (s.fc1_first[i + 1] - s.fc1_first[i]) * s.fc1_columns[i];
    }
    for (i32 c = threadIdx.x; c <= p.classes; c += kThreads) {
      const i32 position = p.class_begin[c];
      p.tile_counts->fc1_begin[c] = s.fc1_first[position];
      p.tile_counts->fc2_begin[c] = s.fc2_first[position];
    }
    if (threadIdx.x == 0) {
      p.tile_counts->rows = s.offset[kExperts];
      p.tile_counts->fc1_tickets = 0;
      p.tile_counts->fc2_tickets = 0;
      p.tile_counts->reserved = 0;
    }
    if (p.fc1_tile_prefix != nullptr) {
      for (i32 i = threadIdx.x; i <= kExperts; i += kThreads) p.fc1_tile_prefix[i] = s.fc1_outputs[i];
    }
  }
};

template <class Layer, int kThreads>
VARMOE_DEVICE void sort_single(const abi::SortParams& p) {
  using S = Sort<Layer, kThreads>;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  if (S::weighs_shared(p)) return;
  S::read_table(p, s);
  S::clear(s, S::busy_warps(0, p.tokens * Layer::kTopK));
  ptx::follow_earlier_kernels();
  __syncthreads();
  const i32 n = S::slots(p);
  typename S::Held held;
  S::count(p, s, 0, n, held);
  S::rank_warps(s, S::busy_warps(0, n), [&](i32 e, i32 rows) { s.total[e] = rows; });
  __syncthreads();
  S::scan_all(p, s, true);
  S::place(p, s, 0, n, held, [&](i32 e) { return s.offset[e]; });
  S::write_schedule(p, s);
}

template <class Layer, int kThreads>
VARMOE_DEVICE void sort_count(const abi::SortParams& p) {
  using S = Sort<Layer, kThreads>;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  if (S::weighs_shared(p)) return;
  S::clear(s, S::busy_warps(0, p.slots_per_block));
  ptx::follow_earlier_kernels();
  __syncthreads();
  const i32 n = S::slots(p);
  const i32 begin = min_of(n, static_cast<i32>(blockIdx.x) * p.slots_per_block);
  const i32 end = min_of(n, begin + p.slots_per_block);
  typename S::Held held;
  S::count(p, s, begin, end, held);
  i32* histogram = p.block_histogram + static_cast<i64>(blockIdx.x) * S::kExperts;
  S::rank_warps(s, S::busy_warps(begin, end), [&](i32 e, i32 rows) { histogram[e] = rows; });
}

template <class Layer, int kThreads>
VARMOE_DEVICE void sort_scatter(const abi::SortParams& p) {
  using S = Sort<Layer, kThreads>;
  extern __shared__ Vec16 shared[];
  auto& s = *reinterpret_cast<typename S::Shared*>(shared);
  // One block more than there are blocks of slots: it writes the schedule while the others place their slots.
  const i32 blocks = static_cast<i32>(gridDim.x) - 1, block = static_cast<i32>(blockIdx.x);
  const bool schedules = block == blocks;
  // What needs sort_count's histograms comes after the wait. sort_count lets this kernel start when it has itself waited for whoever
  // wrote the ids, so these are there; the fence orders their reads.
  ptx::fence_device();
  const i32 n = S::slots(p);
  const i32 begin = min_of(n, block * p.slots_per_block);
  const i32 end = min_of(n, begin + p.slots_per_block);
  typename S::Held held;
  // fc1_outputs serves as scratch for the rows that earlier blocks hold.
  for (i32 e = threadIdx.x; e < S::kExperts; e += kThreads) s.total[e] = s.fc1_outputs[e] = 0;
  if (schedules) {
    S::read_table(p, s);
  } else {
    const i32 busy = S::busy_warps(begin, end);
    S::clear(s, busy);
    __syncthreads();
    S::count(p, s, begin, end, held);
    S::rank_warps(s, busy, [](i32, i32) {});
  }
  ptx::follow_earlier_kernels();
  __syncthreads();
  S::sum_blocks(p, s, block, blocks);
  __syncthreads();
  S::scan_all(p, s, schedules);
  if (schedules) {
    S::write_schedule(p, s);
  } else {
    S::place(p, s, begin, end, held, [&](i32 e) { return s.offset[e] + s.fc1_outputs[e]; });
  }
}

}  // namespace varmoe::moe
