#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"
#include "schedule/layer_share.cuh"

// The experts that a few tokens hit, worked out by every block for itself: cheaper than a sort of its own and a wait for it. By the block's first
// kThreads threads.
namespace varmoe::moe {

template <class Layer, int kTokens, int kThreads, int kUnitColumns>
struct LayerRouting {
  static constexpr int kExperts = Layer::kExperts, kTopK = Layer::kTopK;
  static constexpr int kSlots = kTokens * kTopK;
  static constexpr int kMaxActive = min_of(kExperts, kSlots);
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kGroups = (kExperts + 31) / 32;
  static_assert(kTokens <= 64 && kGroups <= 32);

  struct Shared {
    abi::ExpertEntry entry[kMaxActive];  // of the experts hit, ascending
    u64 tokens[kMaxActive];              // bit t: token t names the expert
    u64 hit[kExperts];                   // the same by expert
    i32 active_of[kExperts];             // an expert's place among those hit
    i32 first_row[kMaxActive + 1];       // rows of h before it
    i32 units[kMaxActive + 1];           // units of fc1 before it
    i32 chunks[kMaxActive + 1];          // chunks of fc2's K before it
    i32 ids[kSlots];
    float slot_weight[kSlots];
    float row_weight[kSlots];            // by row of h
    i32 group_count[32];
    i32 active;
  };

  /// A barrier of those threads.
  VARMOE_DEVICE static void meet() { asm volatile("bar.sync 1, %0;\n" ::"n"(kThreads) : "memory"); }

  /// Tokens of this chunk.
  VARMOE_DEVICE static i32 tokens(const abi::LayerParams& p) {
    return p.token_count == nullptr ? p.tokens : max_of(0, min_of(p.tokens, *p.token_count - p.token_begin));
  }

  /// After a barrier of the block that follows zeroes in s.hit; what it writes is there for its threads on return.
  VARMOE_DEVICE static void build(const abi::LayerParams& p, Shared& s, i32 tokens) {
    const i32 thread = static_cast<i32>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    for (i32 r = thread; r < kSlots; r += kThreads) {
      i64 id = -1;
      if (r < tokens * kTopK) {
        id = p.ids_are_64bit ? static_cast<const i64*>(p.topk_ids)[r] : static_cast<const i32*>(p.topk_ids)[r];
        s.slot_weight[r] = p.topk_weights[r];
      }
      if (p.expert_map != nullptr) id = id >= 0 && id < p.global_experts ? p.expert_map[id] : -1;
      const bool valid = id >= 0 && id < kExperts;
      s.ids[r] = valid ? static_cast<i32>(id) : -1;
      if (valid) atomicOr(reinterpret_cast<unsigned long long*>(&s.hit[id]), 1ull << (r / kTopK));
    }
    meet();
    for (i32 g = warp; g < kGroups; g += kWarps) {
      const u32 found = __ballot_sync(0xffffffffu, hits(s, g * 32 + lane) != 0);
      if (lane == 0) s.group_count[g] = __popc(found);
    }
    meet();
    const i32 count = lane < kGroups ? s.group_count[lane] : 0;
    for (i32 g = warp; g < kGroups; g += kWarps) {
      const i32 before = __reduce_add_sync(0xffffffffu, lane < g ? count : 0);
      const i32 e = g * 32 + lane;
      const u64 mine = hits(s, e);
      const u32 found = __ballot_sync(0xffffffffu, mine != 0);
      if (mine != 0) {
        const i32 at = before + __popc(found & ((1u << lane) - 1u));
        s.tokens[at] = mine;
        s.active_of[e] = at;
        s.entry[at] = p.experts[e];
      }
    }
    if (warp == 0) {
      const i32 active = __reduce_add_sync(0xffffffffu, count);
      if (lane == 0) s.active = active;
    }
    meet();
    if (warp == 0) add_up(s, lane);
    meet();
  }

  /// The weights of rows of h: by `threads` threads, numbered by `thread`, after build. A token that names an expert
  /// twice has one row, with the sum of its weights.
  VARMOE_DEVICE static void weigh_rows(Shared& s, i32 thread, i32 threads) {
    for (i32 r = thread; r < kSlots; r += threads) {
      const i32 e = s.ids[r];
      if (e < 0) continue;
      const i32 token = r / kTopK;
      float weight = 0;
      bool first = true;
      for (i32 other = token * kTopK; other < (token + 1) * kTopK; ++other) {
        if (s.ids[other] != e) continue;
        first = first && other >= r;
        weight += s.slot_weight[other];
      }
      if (first) s.row_weight[row(s, s.active_of[e], token)] = weight;
    }
  }

  /// The row of h of a token that names the expert at place `a`.
  VARMOE_DEVICE static i32 row(const Shared& s, i32 a, i32 token) { return s.first_row[a] + __popcll(s.tokens[a] & ((1ull << token) - 1ull)); }

 private:
  VARMOE_DEVICE static u64 hits(const Shared& s, i32 e) { return e < kExperts ? s.hit[e] : 0; }

  VARMOE_DEVICE static i32 scan(i32 v, i32 lane) {
#pragma unroll
    for (i32 d = 1; d < 32; d *= 2) {
      const i32 other = __shfl_up_sync(0xffffffffu, v, d);
      if (lane >= d) v += other;
    }
    return v;
  }

  VARMOE_DEVICE static void add_up(Shared& s, i32 lane) {
    const i32 active = s.active;
    i32 rows = 0, units = 0, chunks = 0;
    for (i32 base = 0; base <= active; base += 32) {
      const i32 a = base + lane;
      const bool is_one = a < active;
      const i32 w = is_one ? s.entry[a].width : 0;
      const i32 my_rows = is_one ? __popcll(s.tokens[a]) : 0, my_units = ceil_div(w, kUnitColumns), my_chunks = ceil_div(w, schedule::kLayerChunk);
      const i32 all_rows = scan(my_rows, lane), all_units = scan(my_units, lane), all_chunks = scan(my_chunks, lane);
      if (a <= active) {
        s.first_row[a] = rows + all_rows - my_rows;
        s.units[a] = units + all_units - my_units;
        s.chunks[a] = chunks + all_chunks - my_chunks;
      }
      rows += __shfl_sync(0xffffffffu, all_rows, 31);
      units += __shfl_sync(0xffffffffu, all_units, 31);
      chunks += __shfl_sync(0xffffffffu, all_chunks, 31);
    }
  }
};

}  // namespace varmoe::moe
