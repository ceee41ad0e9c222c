#pragma once

#include "epilogue/activation_backward.cuh"
#include "epilogue/staged_sums.cuh"
#include "moe/dh_row.cuh"
#include "moe/fc1_sm90.cuh"
#include "prelude.cuh"
#include "ptx/bulk_copy.cuh"

// g = dout·W2 on Hopper, as fc1 of the layer turned round, and what follows from g (moe/dh_row.cuh) while it is in registers: it is never
// stored. z is asked for before the products begin, so that it waits in L2.
namespace varmoe::moe {

template <class Layer, class Config_>
class DhSm90 : public Fc1Sm90<Layer, Config_> {
  using Base = Fc1Sm90<Layer, Config_>;
  using Base::p;
  using Row = DhRow<Layer>;

 public:
  using Config = Config_;
  using Group = typename Base::Group;
  /// Columns of one group: what one partial sum is over.
  static constexpr int kSpan = 64 * Group::kBlocks;
  using Staging = epilogue::StagedSums<kSpan>;
  using Backward = epilogue::ActivationBackward<Layer, Staging::kRows>;
  static_assert(Staging::kBytes == Config::kStagingBytes, "the staging differs from the host's");

  struct Ahead {
    /// What wgmma finds is defined outside of its loop, not by what the last tile's sums became (else it waits for each instruction).
    VARMOE_DEVICE static void clear(typename Group::Accumulator& acc) {
#pragma unroll
      for (int b = 0; b < Group::kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < Group::kMaxRows / 2; ++i) acc[b][i] = 0.0f;
      }
    }
  };

  VARMOE_DEVICE explicit DhSm90(const abi::GemmParams& params) : Base(params) {}

  VARMOE_DEVICE Ahead ahead(const mma::TileSlot& t, int first_block) const {
    const i32 column = first_column(t, first_block);
    const i32 bytes = 2 * min_of(kSpan, t.width - column);
    if (bytes > 0) {
      for (i32 row = static_cast<i32>(threadIdx.x) % 128; row < t.rows; row += 128) {
        const char* const z = Backward::z_at(p, t.row_begin + row, column);
        ptx::bulk_prefetch_l2(z, static_cast<u32>(bytes));
        if constexpr (Backward::kGated) ptx::bulk_prefetch_l2(z + Backward::whole(t.width) * 2, static_cast<u32>(bytes));
      }
    }
    return {};
  }

  /// A loop that is not unrolled, since a pass is 200 instructions: only what stages its sums is written once a pass. No branch but on the
  /// number of passes: columns beyond the width have zeroes of g and z.
  VARMOE_DEVICE void store(const mma::TileSlot& t, typename Group::Accumulator& acc, Staging& sums, int first_block, const Ahead&) const {
    const i32 begin = first_column(t, first_block), column = begin + Staging::chunk() * 8;
    const i32 rows = begin < t.width ? t.rows : 0, span = begin / kSpan;
    const bool there = column < t.width, stored = column < Backward::whole(t.width);
    Backward backward(p, t.expert, t.row_begin + Staging::row(), column, t.width);
    // Of the next pass: asked for before this one's sums are staged, where registers allow.
    typename Backward::Z next;
    float next_weight;
    const auto ask = [&](i32 row) {
      next_weight = Row::weight(p, t.expert, t.row_begin + row, row < rows);
      backward.load(next, there && row < rows);
    };
    if constexpr (Backward::kLoadsAhead) ask(Staging::row());
#pragma unroll 1
    for (i32 pass = 0; pass * Staging::kRows < rows; ++pass) {
      const i32 row = pass * Staging::kRows + Staging::row();
      if constexpr (!Backward::kLoadsAhead) ask(row);
      const typename Backward::Z z = next;
      const float weight = next_weight;
      if constexpr (Backward::kLoadsAhead) ask(row + Staging::kRows);
      sums.begin();
      put<0, ceil_div(Config::kBlockM, Staging::kRows)>(sums, acc, pass);
      sums.meet();
      float g[8], part = 0.0f;
      sums.take(g);
      backward.store(g, z, weight, part, stored && row < rows);
      Row::template store_partial<Staging::kChunks>(p, t.row_begin + row, span, part, row < rows);
    }
  }

 private:
  /// Stages pass `pass` of [kFirst, kEnd): which registers, is a branch, not an index.
  template <int kFirst, int kEnd>
  VARMOE_DEVICE static void put(const Staging& sums, const typename Group::Accumulator& acc, i32 pass) {
    if constexpr (kEnd - kFirst == 1) {
      sums.put(acc, kFirst);
    } else {
      constexpr int kMiddle = (kFirst + kEnd) / 2;
      if (pass < kMiddle) {
        put<kFirst, kMiddle>(sums, acc, pass);
      } else {
        put<kMiddle, kEnd>(sums, acc, pass);
      }
    }
  }
  VARMOE_DEVICE static i32 first_column(const mma::TileSlot& t, int first_block) { return t.column_tile * Base::kColumns + first_block * 64; }
};

template <class Layer, class Config>
VARMOE_DEVICE void dh_sm90(const abi::GemmParams& params) {
  extern __shared__ __align__(1024) char memory[];
  mma::Sm90Gemm<DhSm90<Layer, Config>>(params, memory).run();
}

}  // namespace varmoe::moe
