#pragma once

#include "mma/token_columns.cuh"
#include "moe/layer_control.cuh"
#include "moe/layer_routing.cuh"
#include "prelude.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/convert.cuh"
#include "ptx/elect.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "schedule/layer_share.cuh"

// The whole layer in one launch, for so few tokens that its time is that of reading the weights of the experts hit. One block an SM.
//
// Each block works out the routing, streams its share of fc1's weights (units of 16 rows: 8 of gate and 8 of up, or 16) and then, of every expert hit,
// the rows of fc2 that make its own columns of out (pieces of 8 or 16). Column n of a product is token n; what names no expert is left out.
//
// Every warp has a slot of its own (16 rows by kLayerChunk elements) and refills it as soon as it has used it, running ahead from fc1 into fc2, so that the
// stream goes on while h is completed. Nobody hands slots over, and data that are late hold up their own warp alone. Half as many bytes again under way, by
// more warps or two slots each, streamed no faster (docs/performance.md, entry 26).
// In fc1 a team of warps has a unit: the chunks of its K go to the team's warps in turn, and the one that began adds up their sums. In fc2 the chunks of a
// piece go to all warps in turn. Sums are added in the order of the chunks that they began with, whoever came when.
// out's columns belong to one block, so fc2 needs neither y nor a combine: a token's experts are added in ascending order, in fp32.
//
// Layer (emitted): kElement, kHidden, kExperts, kTopK, Activation. Config (emitted): kTokens (8 or 16), kTeams.
namespace varmoe::moe {

template <class Layer, class Config>
struct WholeLayerShared {
  static constexpr int kTeamWarps = 4;
  static constexpr int kTeams = Config::kTeams;
  /// Warps that multiply, and one that deals with other blocks.
  static constexpr int kConsumers = kTeams * kTeamWarps, kWatcher = kConsumers;
  static constexpr int kThreads = 32 * (kConsumers + 1);
  /// Bytes between the rows of a pair, and between pairs. The rows of a pair are 64 bytes apart modulo 128: their wide loads meet no common bank.
  static constexpr int kRowPitch = schedule::kLayerChunk * 2 + 64, kPairPitch = kRowPitch + schedule::kLayerChunk * 2;
  static constexpr int kSlotBytes = schedule::kLayerRows / 2 * kPairPitch;
  static constexpr int kSumBytes = Config::kTokens / 8 * 512;
  /// Sums that wait to be added: of two units of each team, all but one warp's; behind them those of a piece. fc1's are done with when fc2's are left, but
  /// by way of the watcher, which racecheck does not follow.
  static constexpr int kTeamSums = 2 * (kTeamWarps - 1), kPieceSums = kTeams * kTeamSums;
  static constexpr int kSums = kPieceSums + kConsumers;
  using Routing = LayerRouting<Layer, Config::kTokens, 32 * kConsumers, Layer::Activation::kGated ? 8 : 16>;

  struct Tables {
    u64 full[kConsumers];
    u64 claimed;   // whether this block's share of fc1 is its own has been decided
    u64 fc1_left;  // each consumer warp has finished its part of this block's fc1
    u64 h_ready;   // all of h is stored
    i32 own_share;
    i32 units_stored;
    typename Routing::Shared routing;
  };
  static constexpr int kSlotsBytes = kConsumers * kSlotBytes;
  static constexpr int kTablesAt = kSlotsBytes + kSums * kSumBytes;
  static constexpr int kBytes = kTablesAt + static_cast<int>(sizeof(Tables));
};

template <class Layer, class Config>
class WholeLayer {
 public:
  using Shared = WholeLayerShared<Layer, Config>;
  using Tables = typename Shared::Tables;
  using Routing = typename Shared::Routing;
  using Activation = typename Layer::Activation;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kGated = Activation::kGated;
  static constexpr int kHidden = Layer::kHidden;
  static constexpr int kChunk = schedule::kLayerChunk, kRows = schedule::kLayerRows;
  static constexpr int kTeams = Shared::kTeams, kTeamWarps = Shared::kTeamWarps, kConsumers = Shared::kConsumers;
  static constexpr int kUnitColumns = kGated ? 8 : 16;
  static constexpr int kFc1Chunks = ceil_div(kHidden, kChunk), kFc1Classes = min_of(kFc1Chunks, kTeamWarps);
  static constexpr int kColumnTiles = Config::kTokens / 8;
  using Products = mma::TokenColumns<kElement, kColumnTiles>;
  using Accumulator = typename Products::Accumulator;
  using TokenRows = typename Products::TokenRows;
  static constexpr i32 kLooksBeforeSearch = 8, kWatcher = Shared::kWatcher;

  VARMOE_DEVICE WholeLayer(const abi::LayerParams& params, char* shared)
      : p(params),
        t(*reinterpret_cast<Tables*>(shared + Shared::kTablesAt)),
        s(t.routing),
        slots_(static_cast<u32>(__cvta_generic_to_shared(shared))),
        lane_(static_cast<i32>(threadIdx.x) % 32),
        warp_(static_cast<i32>(threadIdx.x) / 32) {}

  VARMOE_DEVICE void run() {
    prepare();
    units_ = schedule::layer_units(s.units[s.active], blocks_, block_);
    pieces_ = schedule::layer_pieces(kHidden, blocks_, block_);
    if (warp_ == kWatcher) {
      wait_for_h();
      control().leave();
      return;
    }
    begin_reading();
    Routing::weigh_rows(s, static_cast<i32>(threadIdx.x), 32 * kConsumers);
    Routing::meet();
    consume_fc1();
    if (lane_ == 0) ptx::mbarrier_arrive(address(&t.fc1_left));
    ptx::mbarrier_wait(address(&t.h_ready), 0);
    if (s.active == 0) {
      store_nothing();
    } else {
      consume_fc2();
    }
  }

 private:
  VARMOE_DEVICE static u32 address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
  /// Of this warp's slot.
  VARMOE_DEVICE u32 full() const { return address(&t.full[warp_]); }
  VARMOE_DEVICE u32 slot() const { return slots_ + static_cast<u32>(warp_ * Shared::kSlotBytes); }

  VARMOE_DEVICE void prepare() {
    const i32 thread = static_cast<i32>(threadIdx.x);
    // The table was written when the layer was bound.
    for (i32 e = thread; e < Layer::kExperts; e += Shared::kThreads) {
      ptx::prefetch_l2(p.experts + e);
      s.hit[e] = 0;
    }
    if (thread == 0) {
      t.units_stored = 0;
      for (int i = 0; i < kConsumers; ++i) ptx::mbarrier_init(address(&t.full[i]), 1);
      ptx::mbarrier_init(address(&t.claimed), 1);
      ptx::mbarrier_init(address(&t.fc1_left), kConsumers);
      ptx::mbarrier_init(address(&t.h_ready), 1);
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::follow_earlier_kernels();
    tokens_ = Routing::tokens(p);
    // When the weights stream, a word from the other blocks takes five times as long as now.
    if (warp_ == kWatcher) {
      enter();
      asm volatile("bar.sync 2, %0;\n" ::"n"(Shared::kThreads) : "memory");
    } else {
      Routing::build(p, s, tokens_);
      asm volatile("bar.arrive 2, %0;\n" ::"n"(Shared::kThreads) : "memory");
    }
  }

  // ---- what a warp reads ----

  /// Begins to read this warp's next chunk; nothing where all is read. Nobody uses the slot now.
  VARMOE_DEVICE void refill() {
    if (!reads_fc2_) {
      while (next_unit_ < units_ && next_chunk_ >= kFc1Chunks) {
        next_unit_ += kTeams;
        next_chunk_ = class_in(next_unit_);
      }
      if (next_unit_ < units_) {
        const i32 unit = block_ + next_unit_ * blocks_;
        while (unit >= s.units[next_expert_ + 1]) ++next_expert_;
        const abi::ExpertEntry& e = s.entry[next_expert_];
        const i32 in_expert = unit - s.units[next_expert_];
        copy_rows(unit_row(e, in_expert, 0), unit_row(e, in_expert, 8), e.fc1_stride, unit_rows(e, in_expert), next_chunk_ * kChunk, kHidden, false);
        next_chunk_ += kTeamWarps;
        return;
      }
      reads_fc2_ = true;
      next_unit_ = next_expert_ = 0;
      next_chunk_ = warp_;
    }
    const i32 per_piece = s.chunks[s.active];
    if (per_piece == 0) return;
    while (next_chunk_ >= per_piece) {
      next_chunk_ -= per_piece;
      next_expert_ = 0;
      ++next_unit_;
    }
    if (next_unit_ >= pieces_) return;
    while (next_chunk_ >= s.chunks[next_expert_ + 1]) ++next_expert_;
    const schedule::LayerPiece piece = schedule::layer_piece(kHidden, blocks_, block_, next_unit_);
    const abi::ExpertEntry& e = s.entry[next_expert_];
    const char* first = reinterpret_cast<const char*>(e.down) + piece.row * e.fc2_stride * 2;
    copy_rows(first, first + e.fc2_stride * 16, e.fc2_stride, piece.rows, (next_chunk_ - s.chunks[next_expert_]) * kChunk, e.width, without_gaps(e));
    next_chunk_ += kConsumers;
  }

  /// Whether rows of fc2 lie without a gap and go into a slot whole: then one copy takes them all.
  VARMOE_DEVICE static bool without_gaps(const abi::ExpertEntry& e) { return e.width <= kChunk && e.fc2_stride == e.width; }

  /// Elements k … of `rows` (8 or 16) rows of `k_end` elements, eight from `first` and eight from `second`. Under elect.sync
  /// the copies are issued back to back; a loop over lanes took longer than the memory.
  VARMOE_DEVICE void copy_rows(const char* first, const char* second, i64 stride, i32 rows, i32 k, i32 k_end, bool in_one_go) const {
    const u32 bytes = static_cast<u32>(min_of(kChunk, k_end - k)) * 2, barrier = full();
    if (!ptx::elect_one()) return;
    ptx::mbarrier_arrive_expect(barrier, bytes * static_cast<u32>(rows));
    if (in_one_go) {
      ptx::bulk_load(slot(), first, bytes * static_cast<u32>(rows), barrier, policy_);
    } else {
      copy_eight(slot(), first + static_cast<i64>(k) * 2, stride, bytes, barrier);
      if (rows > 8) copy_eight(slot() + 4 * Shared::kPairPitch, second + static_cast<i64>(k) * 2, stride, bytes, barrier);
    }
  }
  VARMOE_DEVICE void copy_eight(u32 dst, const char* row, i64 stride, u32 bytes, u32 barrier) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      ptx::bulk_load(dst + static_cast<u32>(i / 2 * Shared::kPairPitch + i % 2 * Shared::kRowPitch), row + i * stride * 2, bytes, barrier, policy_);
    }
  }

  /// Weight row `r` of unit `unit` of an expert: eight of gate, then eight of up; or sixteen.
  VARMOE_DEVICE static const char* unit_row(const abi::ExpertEntry& e, i32 unit, i32 r) {
    const bool is_gate = kGated && r < 8;
    const i32 column = unit * kUnitColumns + (kGated ? r % 8 : r);
    return reinterpret_cast<const char*>(is_gate ? e.gate : e.up) + column * e.fc1_stride * 2;
  }
  VARMOE_DEVICE static i32 unit_rows(const abi::ExpertEntry& e, i32 unit) { return kGated ? kRows : min_of(kRows, e.width - unit * kUnitColumns); }

  // ---- what it multiplies ----

  VARMOE_DEVICE void begin_reading() {
    policy_ = ptx::l2_evict_first();
    next_unit_ = warp_ / kTeamWarps;
    next_chunk_ = class_in(next_unit_);
    refill();
    __syncwarp();
  }

  /// Which of a unit's chunks this warp begins with: by turns, so that the warps of a team get equally many where chunks are no multiple of four.
  VARMOE_DEVICE i32 class_in(i32 number) const { return warp_ % kTeamWarps ^ number / kTeams % 2 * 2; }
  VARMOE_DEVICE void team_meets() const { asm volatile("bar.sync %0, %1;\n" ::"r"(3 + warp_ / kTeamWarps), "n"(32 * kTeamWarps) : "memory"); }

  VARMOE_DEVICE void consume_fc1() {
    const i32 team = warp_ / kTeamWarps;
    i32 a = 0;
    for (i32 number = team; number < units_; number += kTeams) {
      const i32 unit = block_ + number * blocks_, first = class_in(number);
      while (unit >= s.units[a + 1]) ++a;
      const i32 in_expert = unit - s.units[a], rows = unit_rows(s.entry[a], in_expert);
      const TokenRows b = rows_of_x(a);
      Accumulator sum = {};
#pragma unroll 1
      for (i32 chunk = first; chunk < kFc1Chunks; chunk += kTeamWarps) multiply_slot(sum, false, 0, b, rows, chunk * kChunk, kHidden);
      const i32 sums = team * Shared::kTeamSums + number / kTeams % 2 * (kTeamWarps - 1);
      if (first > 0 && first < kFc1Classes) leave_sum(sum, sums + first - 1);
      team_meets();
      if (first == 0) {
        for (i32 i = 0; i < kFc1Classes - 1; ++i) add_sum(sum, sums + i);
        store_h(sum, a, in_expert);
        count_unit();
      }
    }
    __syncwarp();
  }

  VARMOE_DEVICE void consume_fc2() {
    const i32 per_piece = s.chunks[s.active], classes = min_of(per_piece, kConsumers);
    i32 begin = 0;  // the piece's first chunk, of those of all pieces, modulo kConsumers
    for (i32 number = 0; number < pieces_; ++number) {
      const schedule::LayerPiece piece = schedule::layer_piece(kHidden, blocks_, block_, number);
      const i32 first = warp_ >= begin ? warp_ - begin : warp_ - begin + kConsumers;
      Accumulator sum = {};
      i32 a = 0;
#pragma unroll 1
      for (i32 chunk = first; chunk < per_piece; chunk += kConsumers) {
        while (chunk >= s.chunks[a + 1]) ++a;
        const abi::ExpertEntry& e = s.entry[a];
        const bool tight = without_gaps(e);
        Accumulator product = {};
        multiply_slot(product, tight, static_cast<u32>(e.width) * 2, rows_of_h(a), piece.rows, (chunk - s.chunks[a]) * kChunk, e.width);
        add_weighted(sum, product, a);
      }
      begin = (begin + per_piece) % kConsumers;
      // The last piece's sums have been added when the warp that adds them has come here.
      if (number > 0) Routing::meet();
      if (first < classes) leave_sum(sum, Shared::kPieceSums + first);
      Routing::meet();
      if (warp_ == 0) {
        Accumulator all = {};
        for (i32 i = 0; i < classes; ++i) add_sum(all, Shared::kPieceSums + i);
        store_out(all, piece);
      }
    }
  }

  /// sum += the weights in the warp's slot · rows, elements k … of `k_end`; then the slot is refilled. `tight`: rows lie `row_bytes` apart there.
  VARMOE_DEVICE void multiply_slot(Accumulator& sum, bool tight, u32 row_bytes, const TokenRows& b, i32 rows, i32 k, i32 k_end) {
    const u32 row = static_cast<u32>(lane_ / 4), half_bytes = tight ? row_bytes * 8 : 4u * Shared::kPairPitch;
    const u32 first = slot() + (tight ? row * row_bytes : row / 2 * Shared::kPairPitch + row % 2 * Shared::kRowPitch);
    const auto arrived = [&] { ptx::mbarrier_wait(full(), parity_); };
    const auto weights = [&](int half, i32 in_chunk) { return ptx::load_shared16(first + (half ? half_bytes : 0u) + static_cast<u32>(in_chunk * 2)); };
    // Most chunks are whole batches, and then nothing asks for bounds.
    const i32 length = min_of(kChunk, k_end - k);
    if (length % (32 * Products::kBatch) == 0) {
      Products::template multiply<true, Products::kBatch>(sum, lane_, b, rows, k, length, arrived, weights);
    } else {
      Products::template multiply<false, Products::kTailBatch>(sum, lane_, b, rows, k, length, arrived, weights);
    }
    __syncwarp();
    refill();
    __syncwarp();
    parity_ ^= 1;
  }

  VARMOE_DEVICE u32 sum_at(i32 place) const { return slots_ + static_cast<u32>(Shared::kSlotsBytes + place * Shared::kSumBytes + lane_ * 16); }
  VARMOE_DEVICE void leave_sum(const Accumulator& sum, i32 place) const {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      ptx::store_shared16(sum_at(place) + j * 512u, {{__float_as_uint(sum[j][0]), __float_as_uint(sum[j][1]), __float_as_uint(sum[j][2]), __float_as_uint(sum[j][3])}});
    }
  }
  VARMOE_DEVICE void add_sum(Accumulator& sum, i32 place) const {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      const Vec16 v = ptx::load_shared16(sum_at(place) + j * 512u);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] += __uint_as_float(v.v[i]);
    }
  }

  VARMOE_DEVICE bool names(i32 a, i32 token) const { return (s.tokens[a] >> token & 1u) != 0; }

  VARMOE_DEVICE TokenRows rows_of_x(i32 a) const {
    return token_rows(p.x, p.x_stride, a, [](i32 token) { return token; });
  }
  VARMOE_DEVICE TokenRows rows_of_h(i32 a) const {
    return token_rows(p.h, p.h_stride, a, [this, a](i32 token) { return Routing::row(s, a, token); });
  }
  template <class RowOf>
  VARMOE_DEVICE TokenRows token_rows(const void* first, i64 stride, i32 a, const RowOf& row_of) const {
    TokenRows b;
    b.first = static_cast<const char*>(first);
    b.stride = stride * 2;
    b.tiles = 0;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      const i32 token = j * 8 + lane_ / 4;
      b.row[j] = names(a, token) ? row_of(token) : -1;
      if ((s.tokens[a] >> (j * 8) & 0xffu) != 0) b.tiles |= 1u << j;
    }
    return b;
  }

  VARMOE_DEVICE void store_h(const Accumulator& sum, i32 a, i32 unit) const {
    const i32 row = lane_ / 4, width = s.entry[a].width;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i32 token = j * 8 + (lane_ % 4) * 2 + i;
        if (!names(a, token)) continue;
        char* h = static_cast<char*>(p.h) + (Routing::row(s, a, token) * p.h_stride + unit * kUnitColumns + row) * 2;
        if constexpr (kGated) {
          ptx::store2(h, ptx::pack2<kElement>(Activation{}(sum[j][i], sum[j][2 + i]), 0.0f));
        } else {
          ptx::store2(h, ptx::pack2<kElement>(Activation{}(sum[j][i]), 0.0f));
          if (unit * kUnitColumns + row + 8 < width) ptx::store2(h + 16, ptx::pack2<kElement>(Activation{}(sum[j][2 + i]), 0.0f));
        }
      }
    }
  }

  /// The unit's h is stored by this warp. After the block's last, all at once: a release takes about a microsecond. A share that another block took over is
  /// that block's to count.
  VARMOE_DEVICE void count_unit() const {
    __syncwarp();
    if (lane_ == 0) {
      __threadfence_block();
      if (atomicAdd(&t.units_stored, 1) == units_ - 1) {
        __threadfence_block();
        ptx::mbarrier_wait(address(&t.claimed), 0);
        if (t.own_share != 0) ptx::add_release(&p.control->units_done, units_);
      }
    }
    __syncwarp();
  }

  /// sum += weight · product, of the tokens that name the expert.
  VARMOE_DEVICE void add_weighted(Accumulator& sum, const Accumulator& product, i32 a) const {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i32 token = j * 8 + (lane_ % 4) * 2 + i;
        if (!names(a, token)) continue;
        const float weight = s.row_weight[Routing::row(s, a, token)];
        sum[j][i] += weight * product[j][i];
        sum[j][2 + i] += weight * product[j][2 + i];
      }
    }
  }

  VARMOE_DEVICE void store_out(const Accumulator& sum, const schedule::LayerPiece& piece) const {
    const i32 row = lane_ / 4;
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i32 token = j * 8 + (lane_ % 4) * 2 + i;
        if (token >= tokens_) continue;
        char* out = static_cast<char*>(p.out) + (token * p.out_stride + piece.row + row) * 2;
        store_sum(out, sum[j][i]);
        if (row + 8 < piece.rows) store_sum(out + 16, sum[j][2 + i]);
      }
    }
  }

  VARMOE_DEVICE void store_sum(char* out, float sum) const {
    if (p.accumulate) {
      float old, none;
      ptx::unpack2<kElement>(old, none, ptx::load2(out));
      sum += old;
    }
    ptx::store2(out, ptx::pack2<kElement>(sum, 0.0f));
  }

  /// No token names an expert.
  VARMOE_DEVICE void store_nothing() const {
    if (p.accumulate) return;
    for (i32 i = 0; i < pieces_; ++i) {
      const schedule::LayerPiece piece = schedule::layer_piece(kHidden, blocks_, block_, i);
      const i32 eights = piece.rows / 8;
      for (i32 at = static_cast<i32>(threadIdx.x); at < tokens_ * eights; at += 32 * kConsumers) {
        const i32 token = at / eights, row = piece.row + (at - token * eights) * 8;
        ptx::store16(static_cast<char*>(p.out) + (token * p.out_stride + row) * 2, {{0, 0, 0, 0}});
      }
    }
  }

  // ---- dealings with other blocks, by the watcher ----

  /// Made anew for each use: it lies in parameters, not in registers.
  VARMOE_DEVICE LayerControl control() const { return LayerControl(p.control, p.nonce); }

  VARMOE_DEVICE void enter() {
    control().enter();
    const bool own = control().claim(static_cast<i32>(blockIdx.x));
    if (lane_ == 0) {
      t.own_share = own;
      ptx::mbarrier_arrive(address(&t.claimed));
    }
    __syncwarp();
  }

  /// Returns once all of h is stored, and lets the block's other warps go on.
  VARMOE_DEVICE void wait_for_h() {
    const i32 units = s.units[s.active];
    ptx::mbarrier_wait(address(&t.fc1_left), 0);
    // Blocks are usually all at work, and h complete after a few looks; a search for shares without a block would only delay the next look.
    i32 looks = 0;
    bool all_claimed = false;
    while (__shfl_sync(0xffffffffu, control().units_done(), 0) < units) {
      if (all_claimed || ++looks % kLooksBeforeSearch != 0) continue;
      const i32 share = control().unclaimed();
      all_claimed = share < 0;
      if (!all_claimed && control().claim(share)) do_share(share, units);
    }
    if (lane_ == 0) ptx::mbarrier_arrive(address(&t.h_ready));
    __syncwarp();
  }

  /// Another block's share of fc1, straight from memory; in the order of additions that a team has.
  VARMOE_DEVICE void do_share(i32 block, i32 units) {
    i32 a = 0;
    for (i32 unit = block; unit < units; unit += blocks_) {
      while (unit >= s.units[a + 1]) ++a;
      const abi::ExpertEntry& e = s.entry[a];
      const i32 in_expert = unit - s.units[a], rows = unit_rows(e, in_expert);
      const char* first = unit_row(e, in_expert, lane_ / 4);
      const char* second = unit_row(e, in_expert, lane_ / 4 + 8);
      Accumulator sum = {};
#pragma unroll 1
      for (i32 c = 0; c < kFc1Classes; ++c) {
        Accumulator part = {};
#pragma unroll 1
        for (i32 chunk = c; chunk < kFc1Chunks; chunk += kTeamWarps) {
          Products::template multiply<false, Products::kSmallBatch>(
              part, lane_, rows_of_x(a), rows, chunk * kChunk, min_of(kChunk, kHidden - chunk * kChunk), [] {},
              [&](int half, i32 in_chunk) { return ptx::load16_streaming((half ? second : first) + static_cast<i64>(chunk * kChunk + in_chunk) * 2); });
        }
        Products::add(sum, part);
      }
      store_h(sum, a, in_expert);
      __syncwarp();
      if (lane_ == 0) ptx::add_release(&p.control->units_done, 1);
    }
  }

  const abi::LayerParams& p;
  Tables& t;
  typename Routing::Shared& s;
  u32 slots_;
  i32 lane_, warp_;
  i32 tokens_ = 0;
  i32 block_ = static_cast<i32>(blockIdx.x), blocks_ = static_cast<i32>(gridDim.x);
  i32 units_ = 0, pieces_ = 0;  // of this block
  // Of a consumer warp: the phase of its slot; what it reads next.
  u32 parity_ = 0;
  ptx::L2Policy policy_ = 0;
  i32 next_unit_ = 0, next_chunk_ = 0, next_expert_ = 0;  // of fc2: piece, chunk, expert
  bool reads_fc2_ = false;
};

template <class Layer, class Config>
VARMOE_DEVICE void whole_layer(const abi::LayerParams& params) {
  extern __shared__ Vec16 shared[];
  WholeLayer<Layer, Config>(params, reinterpret_cast<char*>(shared)).run();
}

}  // namespace varmoe::moe
