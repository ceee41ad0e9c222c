#pragma once

#include "prelude.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma_sync.cuh"

// One warp's products of 16 weight rows by a few tokens' rows, which it reads from global memory itself: weights are mma's first operand, tokens its columns.
namespace varmoe::mma {

template <Element kElement, int kColumnTiles>
struct TokenColumns {
  /// Lane's fragments (ptx/mma_sync.cuh) of each eight tokens.
  using Accumulator = float[kColumnTiles][4];
  /// Steps of 32 elements of K whose rows are loaded ahead, where registers allow.
  static constexpr int kBatch = max_of(1, 16 / kColumnTiles);
  static constexpr int kChains = kColumnTiles == 1 ? 4 : 2;
  /// The fewest steps a batch that leave the order of additions as it is.
  static constexpr int kSmallBatch = kChains / 2;
  /// Where each load asks for bounds, which takes registers.
  static constexpr int kTailBatch = max_of(kSmallBatch, kBatch / 2);

  /// Rows of a product's right-hand side, one a token: x or h.
  struct TokenRows {
    const char* first;
    i64 stride;             // bytes
    i32 row[kColumnTiles];  // of this lane's token in each column tile; −1: it does not name the expert
    u32 tiles;              // bit i: some token of column tile i does
  };

  /// sum += 8 or 16 (`rows`) weight rows · the tokens' rows, over elements k … k + length of K. `weights(half, i)`: eight elements of this lane's weight row (of 8
  /// when half = 1) from k + i on; `arrived` returns once they are there. Within 32 elements of K a lane's eight lie side by side in both operands, which permutes K alike in both.
  /// kWhole: a multiple of 32·kSteps elements. kSteps: steps a batch, which changes no bit of the sum.
  template <bool kWhole, int kSteps, class Arrived, class WeightRow>
  VARMOE_DEVICE static void multiply(Accumulator& sum, i32 lane, const TokenRows& b, i32 rows, i32 k, i32 length, const Arrived& arrived, const WeightRow& weights) {
    static_assert(kSteps % kSmallBatch == 0);
    constexpr int kWeightBatch = min_of(kSteps, 4);  // steps whose weights are loaded together: products wait for their operands, in order
    const i32 mine = (lane % 4) * 8;
    const Vec16 zero = {{0, 0, 0, 0}};
    // Several chains of products, since each waits for the one before.
    Accumulator chain[kChains] = {};
#pragma unroll 1
    for (i32 begin = 0; begin < length; begin += 32 * kSteps) {
      Vec16 x[kSteps][kColumnTiles];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const i32 at = begin + i * 32 + mine;
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          x[i][j] = zero;
          if (b.row[j] >= 0 && (kWhole || at < length)) x[i][j] = ptx::load16(b.first + b.row[j] * b.stride + static_cast<i64>(k + at) * 2);
        }
      }
      if (begin == 0) arrived();
#pragma unroll
      for (int i0 = 0; i0 < kSteps; i0 += kWeightBatch) {
        Vec16 w[kWeightBatch][2];
#pragma unroll
        for (int i = 0; i < kWeightBatch; ++i) {
          const i32 at = begin + (i0 + i) * 32 + mine;
          // Beyond K and beyond the rows the stage holds anything.
          w[i][0] = kWhole || at < length ? weights(0, at) : zero;
          w[i][1] = rows > 8 && (kWhole || at < length) ? weights(1, at) : zero;
        }
#pragma unroll
        for (int i = 0; i < kWeightBatch; ++i) {
          const u32 even[4] = {w[i][0].v[0], w[i][1].v[0], w[i][0].v[1], w[i][1].v[1]}, odd[4] = {w[i][0].v[2], w[i][1].v[2], w[i][0].v[3], w[i][1].v[3]};
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            if (kColumnTiles > 1 && (b.tiles >> j & 1u) == 0) continue;
            ptx::mma_m16n8k16<kElement>(chain[2 * i % kChains][j], even, x[i0 + i][j].v[0], x[i0 + i][j].v[1]);
            ptx::mma_m16n8k16<kElement>(chain[(2 * i + 1) % kChains][j], odd, x[i0 + i][j].v[2], x[i0 + i][j].v[3]);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChains; ++c) add(sum, chain[c]);
  }

  VARMOE_DEVICE static void add(Accumulator& sum, const Accumulator& more) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] += more[j][i];
    }
  }
};

}  // namespace varmoe::mma
