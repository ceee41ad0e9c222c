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
// the rows of fc2 that make its own columns of out (pieces of up to 16). A copy warp keeps a ring of stages full, 16 rows by kLayerChunk elements each, and runs ahead
// from fc1 into fc2, so that the stream goes on while h is completed. Column n of a product is token n; what names no expert is left out.
//
// The chunks of a unit's K go to the consumer warps in turn, each of which has one stage of the ring for itself: whoever waits for a stage's
// next phase has seen the one before. A warp adds up its own chunks of a unit (a class: chunks kStages apart) and leaves the sum; the warp of the unit's
// last chunk waits for the others and adds the classes in ascending order: the order of additions does not depend on who came when. It waits for
// earlier stages only, so somebody can always go on.
// out's columns belong to one block, so fc2 needs neither y nor a combine: a token's experts are added in ascending order, in fp32.
//
// Layer (emitted): kElement, kHidden, kExperts, kTopK, Activation. Config (emitted): kTokens (8 … 64), kStages.
namespace varmoe::moe {

template <class Layer, class Config>
struct WholeLayerShared {
  /// A consumer warp a stage, the copy warp, and the one that deals with other blocks.
  static constexpr int kThreads = 32 * (Config::kStages + 2);
  static constexpr int kPitch = schedule::kLayerChunk * 2 + 64;  // rows 64 bytes apart modulo 128: wide loads of neighbouring rows meet no common bank
  static constexpr int kStageBytes = schedule::kLayerRows * kPitch;
  /// Sums that may be waiting for the rest of their unit. The copy warp fills stages in order, so when a warp has come to a stage, all kStages before the
  /// one that was in its place are done with, and with them the units whose last kStages chunks they held.
  static constexpr int kSums = 2 * Config::kStages;
  static constexpr int kSumBytes = Config::kTokens / 8 * 512;
  /// Units whose barriers may be in use at once.
  static constexpr int kUnits = 16;
  static_assert(kSums <= kUnits);
  using Routing = LayerRouting<Layer, Config::kTokens, kThreads, Layer::Activation::kGated ? 8 : 16>;

  struct Tables {
    u64 full[Config::kStages];
    u64 empty[Config::kStages];
    u64 unit[kUnits];  // every class of a unit has left its sum
    u64 claimed;   // whether this block's share of fc1 is its own has been decided
    u64 fc1_left;  // each consumer warp has finished its part of this block's fc1
    u64 h_ready;   // all of h is stored
    i32 own_share;
    i32 units_stored;
    typename Routing::Shared routing;
  };
  static constexpr int kRingBytes = Config::kStages * kStageBytes;
  static constexpr int kTablesAt = kRingBytes + kSums * kSumBytes;
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
  static constexpr int kChunk = schedule::kLayerChunk, kRows = schedule::kLayerRows, kStages = Config::kStages, kConsumers = kStages;
  static constexpr int kUnitColumns = kGated ? 8 : 16;
  static constexpr int kFc1Chunks = ceil_div(kHidden, kChunk);
  static constexpr int kColumnTiles = Config::kTokens / 8;
  using Products = mma::TokenColumns<kElement, kColumnTiles>;
  using Accumulator = typename Products::Accumulator;
  using TokenRows = typename Products::TokenRows;
  static constexpr i32 kLooksBeforeSearch = 8;

  VARMOE_DEVICE WholeLayer(const abi::LayerParams& params, char* shared)
      : p(params),
        t(*reinterpret_cast<Tables*>(shared + Shared::kTablesAt)),
        s(t.routing),
        ring_(static_cast<u32>(__cvta_generic_to_shared(shared))),
        control_(params.control, params.nonce),
        lane_(static_cast<i32>(threadIdx.x) % 32),
        warp_(static_cast<i32>(threadIdx.x) / 32) {}

  VARMOE_DEVICE void run() {
    prepare();
    const i32 units = s.units[s.active];
    units_ = schedule::layer_units(units, blocks_, block_);
    pieces_ = schedule::layer_pieces(kHidden, blocks_, block_);
    if (warp_ < kConsumers) {
      consume();
    } else if (warp_ == kConsumers) {
      copy_weights();
    } else {
      watch(units);
    }
  }

 private:
  VARMOE_DEVICE static u32 address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
  VARMOE_DEVICE u32 full(i32 slot) const { return address(&t.full[slot]); }
  VARMOE_DEVICE u32 empty(i32 slot) const { return address(&t.empty[slot]); }
  VARMOE_DEVICE u32 stage(i32 slot) const { return ring_ + static_cast<u32>(slot * Shared::kStageBytes); }

  VARMOE_DEVICE void prepare() {
    const i32 thread = static_cast<i32>(threadIdx.x);
    // The table was written when the layer was bound.
    for (i32 e = thread; e < Layer::kExperts; e += Shared::kThreads) {
      ptx::prefetch_l2(p.experts + e);
      s.hit[e] = 0;
    }
    if (thread == 0) {
      t.units_stored = 0;
      for (int i = 0; i < kStages; ++i) {
        ptx::mbarrier_init(full(i), 1);
        ptx::mbarrier_init(empty(i), 1);
      }
      for (int i = 0; i < Shared::kUnits; ++i) ptx::mbarrier_init(address(&t.unit[i]), 32 * kConsumers);
      ptx::mbarrier_init(address(&t.claimed), 1);
      ptx::mbarrier_init(address(&t.fc1_left), kConsumers);
      ptx::mbarrier_init(address(&t.h_ready), 1);
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::follow_earlier_kernels();
    tokens_ = Routing::build(p, s);
    __syncthreads();
  }

  // ---- copy warp ----

  VARMOE_DEVICE void copy_weights() {
    policy_ = ptx::l2_evict_first();
    i32 a = 0;
    for (i32 i = 0; i < units_; ++i) {
      const i32 unit = block_ + i * blocks_;
      while (unit >= s.units[a + 1]) ++a;
      const abi::ExpertEntry& e = s.entry[a];
      const i32 in_expert = unit - s.units[a];
      copy_rows(unit_row(e, in_expert, 0), unit_row(e, in_expert, 8), e.fc1_stride, unit_rows(e, in_expert), kHidden, false);
    }
    for (i32 i = 0; i < pieces_; ++i) {
      const schedule::LayerPiece piece = schedule::layer_piece(kHidden, blocks_, block_, i);
      for (a = 0; a < s.active; ++a) {
        const abi::ExpertEntry& e = s.entry[a];
        const char* first = reinterpret_cast<const char*>(e.down) + piece.row * e.fc2_stride * 2;
        copy_rows(first, first + e.fc2_stride * 16, e.fc2_stride, piece.rows, e.width, without_gaps(e));
      }
    }
  }

  /// Whether rows of fc2 lie without a gap and go into a stage whole: then one copy takes them all.
  VARMOE_DEVICE static bool without_gaps(const abi::ExpertEntry& e) { return e.width <= kChunk && e.fc2_stride == e.width; }
  /// Bytes between such rows in a stage.
  VARMOE_DEVICE static u32 fc2_pitch(const abi::ExpertEntry& e) { return without_gaps(e) ? static_cast<u32>(e.width) * 2 : Shared::kPitch; }

  /// `rows` (8 or 16) rows of `k` elements, eight from `first` and eight from `second`, through the ring. Under elect.sync
  /// the copies are issued back to back; a loop over lanes took longer than the memory.
  VARMOE_DEVICE void copy_rows(const char* first, const char* second, i64 stride, i32 rows, i32 k, bool in_one_go) {
    for (i32 begin = 0; begin < k; begin += kChunk) {
      const u32 bytes = static_cast<u32>(min_of(kChunk, k - begin)) * 2, barrier = full(slot_);
      ptx::mbarrier_wait(empty(slot_), parity_ ^ 1);
      if (ptx::elect_one()) {
        ptx::mbarrier_arrive_expect(barrier, bytes * static_cast<u32>(rows));
        if (in_one_go) {
          ptx::bulk_load(stage(slot_), first, bytes * static_cast<u32>(rows), barrier, policy_);
        } else {
          copy_eight(stage(slot_), first + static_cast<i64>(begin) * 2, stride, bytes, barrier);
          if (rows > 8) copy_eight(stage(slot_) + 8 * Shared::kPitch, second + static_cast<i64>(begin) * 2, stride, bytes, barrier);
        }
      }
      __syncwarp();
      if (++slot_ == kStages) {
        slot_ = 0;
        parity_ ^= 1;
      }
    }
  }
  VARMOE_DEVICE void copy_eight(u32 dst, const char* row, i64 stride, u32 bytes, u32 barrier) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) ptx::bulk_load(dst + static_cast<u32>(i * Shared::kPitch), row + i * stride * 2, bytes, barrier, policy_);
  }

  /// Weight row `r` of unit `unit` of an expert: eight of gate, then eight of up; or sixteen.
  VARMOE_DEVICE static const char* unit_row(const abi::ExpertEntry& e, i32 unit, i32 r) {
    const bool is_gate = kGated && r < 8;
    const i32 column = unit * kUnitColumns + (kGated ? r % 8 : r);
    return reinterpret_cast<const char*>(is_gate ? e.gate : e.up) + column * e.fc1_stride * 2;
  }
  VARMOE_DEVICE static i32 unit_rows(const abi::ExpertEntry& e, i32 unit) { return kGated ? kRows : min_of(kRows, e.width - unit * kUnitColumns); }

  // ---- consumer warps ----

  VARMOE_DEVICE void consume() {
    Routing::weigh_rows(s, static_cast<i32>(threadIdx.x), 32 * kConsumers);
    asm volatile("bar.sync 1, %0;\n" ::"n"(32 * kConsumers) : "memory");
    const i32 fc1_stages = units_ * kFc1Chunks;
    i32 at = warp_;
    consume_fc1(at, fc1_stages);
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(address(&t.fc1_left));
    if (s.active == 0) return store_nothing();
    if (at - fc1_stages < pieces_ * s.chunks[s.active]) ptx::mbarrier_wait(address(&t.h_ready), 0);
    consume_fc2(at, fc1_stages);
  }

  VARMOE_DEVICE void consume_fc1(i32& at, i32 stages) {
    Accumulator sum = {};
    i32 a = 0;
    for (; at < stages; at += kConsumers) {
      const i32 number = at / kFc1Chunks, chunk = at - number * kFc1Chunks, unit = block_ + number * blocks_;
      while (unit >= s.units[a + 1]) ++a;
      const abi::ExpertEntry& e = s.entry[a];
      const i32 in_expert = unit - s.units[a];
      multiply_stage(sum, at, Shared::kPitch, rows_of_x(a), unit_rows(e, in_expert), chunk * kChunk, kHidden);
      if (!complete(sum, at, number, chunk, kFc1Chunks)) continue;
      store_h(sum, a, in_expert);
      count_unit();
      Products::clear(sum);
    }
  }

  VARMOE_DEVICE void consume_fc2(i32 at, i32 first) {
    Accumulator sum = {};
    const i32 per_piece = s.chunks[s.active], stages = first + pieces_ * per_piece, units_before = kFc1Chunks > 1 ? units_ : 0;
    i32 a = 0;
    for (; at < stages; at += kConsumers) {
      const i32 number = (at - first) / per_piece, chunk = at - first - number * per_piece;
      if (chunk < s.chunks[a]) a = 0;
      while (chunk >= s.chunks[a + 1]) ++a;
      const schedule::LayerPiece piece = schedule::layer_piece(kHidden, blocks_, block_, number);
      Accumulator product = {};
      multiply_stage(product, at, fc2_pitch(s.entry[a]), rows_of_h(a), piece.rows, (chunk - s.chunks[a]) * kChunk, s.entry[a].width);
      add_weighted(sum, product, a);
      if (!complete(sum, at, units_before + number, chunk, per_piece)) continue;
      store_out(sum, piece);
      Products::clear(sum);
    }
  }

  /// sum += the stage's weights · rows, elements k … of `k_end`.
  VARMOE_DEVICE void multiply_stage(Accumulator& sum, i32 at, u32 pitch, const TokenRows& b, i32 rows, i32 k, i32 k_end) const {
    const i32 slot = at % kStages;
    const u32 first = stage(slot) + static_cast<u32>(lane_ / 4) * pitch;
    const auto arrived = [&] { ptx::mbarrier_wait(full(slot), static_cast<u32>(at / kStages) & 1u); };
    const auto weights = [&](int half, i32 in_chunk) { return ptx::load_shared16(first + static_cast<u32>(half * 8) * pitch + static_cast<u32>(in_chunk * 2)); };
    // Most chunks are whole batches, and then nothing asks for bounds.
    const i32 length = min_of(kChunk, k_end - k);
    if (length % (32 * Products::kBatch) == 0) {
      Products::template multiply<true>(sum, lane_, b, rows, k, length, arrived, weights);
    } else {
      Products::template multiply<false>(sum, lane_, b, rows, k, length, arrived, weights);
    }
  }

  /// After stage `at`, chunk `chunk` of `chunks` of its unit, the `unit`-th of several chunks: gives the stage back. After this warp's last of the unit it leaves
  /// its sum; the warp of the unit's last chunk then has the whole sum and gets true.
  VARMOE_DEVICE bool complete(Accumulator& sum, i32 at, i32 unit, i32 chunk, i32 chunks) {
    const i32 classes = min_of(chunks, kConsumers);
    const bool last = chunk + 1 == chunks;
    if (classes > 1 && chunk + kConsumers >= chunks) {
      const u32 mine = sum_of(at) + static_cast<u32>(lane_ * 16), barrier = address(&t.unit[unit % Shared::kUnits]);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        ptx::store_shared16(mine + j * 512u, {{__float_as_uint(sum[j][0]), __float_as_uint(sum[j][1]), __float_as_uint(sum[j][2]), __float_as_uint(sum[j][3])}});
      }
      Products::clear(sum);
      // The last one arrives for the classes that there are not.
      ptx::mbarrier_arrive(barrier, last ? static_cast<u32>(1 + kConsumers - classes) : 1u);
      if (last) {
        ptx::mbarrier_wait(barrier, static_cast<u32>(unit / Shared::kUnits) & 1u);
        for (i32 c = 0; c < classes; ++c) {
          const u32 part = sum_of(stage_of_class(at, chunk, chunks, c)) + static_cast<u32>(lane_ * 16);
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            const Vec16 v = ptx::load_shared16(part + j * 512u);
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[j][i] += __uint_as_float(v.v[i]);
          }
        }
      }
    }
    // Last: whoever finds the stage refilled may rely on all of this.
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(empty(at % kStages));
    return last;
  }

  /// Where the sum of the class whose last stage is `at` waits.
  VARMOE_DEVICE u32 sum_of(i32 at) const { return ring_ + static_cast<u32>(Shared::kRingBytes + at % Shared::kSums * Shared::kSumBytes); }

  /// The stage of the last chunk of class `c` of the unit to which stage `at`, chunk `chunk`, belongs.
  VARMOE_DEVICE static i32 stage_of_class(i32 at, i32 chunk, i32 chunks, i32 c) {
    const i32 last = c + (chunks - 1 - c) / kConsumers * kConsumers;
    return at - chunk + last;
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

  // ---- the warp that deals with other blocks ----

  VARMOE_DEVICE void watch(i32 units) {
    control_.enter();
    const bool own = control_.claim(static_cast<i32>(blockIdx.x));
    if (lane_ == 0) {
      t.own_share = own;
      ptx::mbarrier_arrive(address(&t.claimed));
    }
    __syncwarp();
    ptx::mbarrier_wait(address(&t.fc1_left), 0);
    // Blocks are usually all at work, and h complete after a few looks; a search for shares without a block would only delay the next look.
    i32 looks = 0;
    bool all_claimed = false;
    while (__shfl_sync(0xffffffffu, control_.units_done(), 0) < units) {
      if (all_claimed || ++looks % kLooksBeforeSearch != 0) continue;
      const i32 share = control_.unclaimed();
      all_claimed = share < 0;
      if (!all_claimed && control_.claim(share)) do_share(share, units);
    }
    if (lane_ == 0) ptx::mbarrier_arrive(address(&t.h_ready));
    control_.leave();
  }

  /// Another block's share of fc1, straight from memory; in the order of additions that the ring gives.
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
      for (i32 c = 0; c < min_of(kFc1Chunks, kConsumers); ++c) {
        Accumulator part = {};
#pragma unroll 1
        for (i32 chunk = c; chunk < kFc1Chunks; chunk += kConsumers) {
          Products::template multiply<false>(
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
  u32 ring_;
  LayerControl control_;
  i32 lane_, warp_;
  i32 tokens_ = 0;
  i32 block_ = static_cast<i32>(blockIdx.x), blocks_ = static_cast<i32>(gridDim.x);
  i32 units_ = 0, pieces_ = 0;  // of this block
  // copy warp
  ptx::L2Policy policy_ = 0;
  i32 slot_ = 0;
  u32 parity_ = 0;
};

template <class Layer, class Config>
VARMOE_DEVICE void whole_layer(const abi::LayerParams& params) {
  extern __shared__ Vec16 shared[];
  WholeLayer<Layer, Config>(params, reinterpret_cast<char*>(shared)).run();
}

}  // namespace varmoe::moe
