#pragma once

#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"
#include "ptx/shuffle.cuh"

// What stands between the products and what follows them, in fp32: a sum times its row's weight, plus its output feature's bias (fc1), or
// the bias first (kBiasFirst: fc2's rows, weighted). Emitted: kBias, kWeightOnInput for fc1, kRowWeights for fc2; layers with none compile
// none of it.
namespace varmoe::epilogue {

/// The bits of one bias; 0 for a column that is none.
VARMOE_DEVICE u32 load_bias(u64 bias, i64 element, bool exists) {
  return exists ? ptx::load2(reinterpret_cast<const char*>(bias) + element * 2) : 0u;
}

// Each rounds: were the two one multiply-add in some kernels, tiles would differ in bits.
VARMOE_DEVICE float scaled(float sum, float weight) { return __fmul_rn(sum, weight); }
VARMOE_DEVICE float biased(float sum, float bias) { return __fadd_rn(sum, bias); }

/// Accumulators of the portable loop (mma/sm80_warp.cuh). `bias_of(pair, block, element)`: of this lane's columns. `weights`: from the
/// tile's first row on.
template <class Warp, Element kElement, bool kBias, bool kWeights, bool kBiasFirst = false, class BiasOf>
VARMOE_DEVICE void scale_and_bias(typename Warp::Accumulator& acc, BiasOf bias_of, const float* weights, i32 rows) {
  float weight[Warp::kRowBlocks][2];
#pragma unroll
  for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weight[i][half] = kWeights ? weights[min_of(Warp::row0() + Warp::lane() / 4 + i * 16 + half * 8, rows - 1)] : 1.0f;
  }
#pragma unroll
  for (int j = 0; j < Warp::kPairs; ++j) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      float bias[2] = {};
      if constexpr (kBias) ptx::unpack2<kElement>(bias[0], bias[1], bias_of(j, b, 0) | bias_of(j, b, 1) << 16);
#pragma unroll
      for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& d = acc[i][j][b][e];
          if constexpr (kBias && kBiasFirst) d = biased(d, bias[e % 2]);
          if constexpr (kWeights) d = scaled(d, weight[i][e / 2]);
          if constexpr (kBias && !kBiasFirst) d = biased(d, bias[e % 2]);
        }
      }
    }
  }
}

/// Accumulators of the Hopper loop (mma/sm90_warpgroup.cuh): a row is one output feature, so a warp needs 16 biases a block of 64, and a column
/// is one routed row. Made before the products: what they need arrives meanwhile. A lane holds one bias, and one weight, for the whole warp,
/// since accumulators leave no registers to spare; lanes trade them when the sums are there.
template <class Group, Element kElement, bool kBias, bool kWeights, bool kBiasFirst = false>
class TransposedScaleAndBias {
 public:
  /// `bias_of(row)`: of accumulator row `row` of the group's blocks. `weights`: from the tile's first row on.
  template <class BiasOf>
  VARMOE_DEVICE TransposedScaleAndBias(BiasOf bias_of, const float* weights, i32 rows) {
    const i32 thread = static_cast<i32>(threadIdx.x) % 128;
    // Lane 4·i + 2·block + half: of the row that lanes 4·i … 4·i + 3 have of that half of the block.
    if constexpr (kBias) bias_ = bias_of(64 * (thread / 2 % kBlocks) + thread / 32 * 16 + thread % 2 * 8 + thread % 32 / 4);
    if constexpr (kWeights) {
      constexpr i32 kLine = 32;
      if (rows > 0 && (thread - 1) * kLine < rows) ptx::prefetch_l1(weights + min_of(thread * kLine, rows - 1));
    }
  }

  /// Of the tile's `rows` rows from `begin` on; what lies beyond is nobody's. `weights`: of all rows.
  VARMOE_DEVICE void apply(typename Group::Accumulator& acc, const float* weights, i32 begin, i32 rows) const {
    if constexpr (kBiasFirst) add_biases(acc, rows);
    if constexpr (kWeights) scale<0>(acc, weights, begin, rows);
    if constexpr (!kBiasFirst) add_biases(acc, rows);
  }

  /// Before the products: what wgmma finds is defined outside of its loop, not by what the last tile's sums became (else it waits for each
  /// instruction).
  VARMOE_DEVICE static void clear(typename Group::Accumulator& acc) {
    if constexpr (kBias || kWeights) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4 * kGroups; ++i) acc[b][i] = 0.0f;
      }
    }
  }

 private:
  static constexpr int kBlocks = Group::kBlocks;
  static_assert(kBlocks == 1 || kBlocks == 2, "a lane a bias");
  static constexpr int kGroups = Group::kMaxRows / 8;  // of eight rows each; a warp holds the weights of four

  /// Rows from 8·kFirst on.
  template <int kFirst>
  VARMOE_DEVICE static void scale(typename Group::Accumulator& acc, const float* weights, i32 begin, i32 rows) {
    if constexpr (kFirst < kGroups) {
      if (kFirst * 8 >= rows) return;
      // Lane 8·i + 4·n + q: of the row that is lane q's n-th of group i.
      const i32 lane = static_cast<i32>(threadIdx.x) % 32;
      const u32 mine = __float_as_uint(weights[begin + min_of(kFirst * 8 + lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2, rows - 1)]);
      scale_group<kFirst, 0>(acc, mine);
      scale_group<kFirst, 1>(acc, mine);
      scale_group<kFirst, 2>(acc, mine);
      scale_group<kFirst, 3>(acc, mine);
      scale<kFirst + 4>(acc, weights, begin, rows);
    }
  }
  template <int kFirst, int kGroup>
  VARMOE_DEVICE static void scale_group(typename Group::Accumulator& acc, u32 mine) {
    if constexpr (kFirst + kGroup < kGroups) {
      const float even = __uint_as_float(ptx::shuffle_among<3, 8 * kGroup>(mine)), odd = __uint_as_float(ptx::shuffle_among<3, 8 * kGroup + 4>(mine));
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        float* d = acc[b] + 4 * (kFirst + kGroup);
        d[0] = scaled(d[0], even);
        d[1] = scaled(d[1], odd);
        d[2] = scaled(d[2], even);
        d[3] = scaled(d[3], odd);
      }
    }
  }

  VARMOE_DEVICE void add_biases(typename Group::Accumulator& acc, i32 rows) const {
    if constexpr (kBias) {
      add<0>(acc, rows);
      if constexpr (kBlocks == 2) add<1>(acc, rows);
    }
  }
  template <int kBlock>
  VARMOE_DEVICE void add(typename Group::Accumulator& acc, i32 rows) const {
    const u32 low = ptx::shuffle_among<0x1c, 2 * kBlock>(bias_), high = ptx::shuffle_among<0x1c, 2 * kBlock + 1>(bias_);
    float bias[2];
    ptx::unpack2<kElement>(bias[0], bias[1], low | high << 16);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (group % 4 == 0 && group * 8 >= rows) break;
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[kBlock][4 * group + e] = biased(acc[kBlock][4 * group + e], bias[e / 2]);
    }
  }

  u32 bias_;
};

}  // namespace varmoe::epilogue
