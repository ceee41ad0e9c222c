#pragma once

#include "epilogue/scale_and_bias.cuh"
#include "epilogue/store_transposed.cuh"
#include "mma/sm90_gemm.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "schedule/tile_map.cuh"

// fc2 on Hopper: y[r, :] = h[r, :] · W2ᵀ of r's expert (+ its bias), rounded to the output type; the combine weights it (kRowWeights: this kernel
// does, before it rounds). K is the expert's width in whole stages of 64: beyond the width the weights arrive as zero, and fc1 wrote zeroes to h.
namespace varmoe::moe {

template <class Layer, class Config_>
class Fc2Sm90 {
 public:
  using Config = Config_;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kKn = Layer::kFc2Kn;
  static constexpr bool kMakesH = false;
  static constexpr int kTopK = 1;             // rows are read as they lie
  static constexpr bool kWholeStages = true;
  static constexpr int kLongestK = schedule::widest<Layer>();
  static constexpr int kColumns = Config::kBlockN;
  using Group = mma::Sm90Warpgroup<Config, kElement, kKn>;
  using Staging = epilogue::TransposedRows<64 * Group::kBlocks>;
  using Ahead = epilogue::TransposedScaleAndBias<Group, kElement, Layer::kBias, Layer::kRowWeights, true>;

  VARMOE_DEVICE explicit Fc2Sm90(const abi::GemmParams& params) : p(params) {}

  VARMOE_DEVICE i32 row_tiles() const { return schedule::fc2_row_tiles<Layer>(*p.tile_counts); }
  VARMOE_DEVICE i32 tile_count() const { return row_tiles() / Config::kCluster * ceil_div(Layer::kHidden, kColumns); }
  VARMOE_DEVICE schedule::OutputTile tile(i32 index, i32 rank) const {
    return schedule::fc2_tile<Layer, kColumns, Config::kRaster, Config::kCluster>(p.tiles, p.experts, row_tiles(), index, rank);
  }
  VARMOE_DEVICE i32 k_extent(i32 width) const {
    if constexpr (Layer::kClasses == 1) {
      return Layer::width(0);
    } else {
      return width;
    }
  }

  /// As fc1's: boxes of 64 weight rows.
  static constexpr int kWeightBoxes = Config::kBlockN / 64;
  VARMOE_DEVICE void load_weights(u32 dst, u32 barrier, const mma::TileSlot& t, i32 k, int box, ptx::L2Policy policy) const {
    const i32 c = t.column_tile * kColumns + 64 * box;
    if constexpr (Layer::kGateAndUp) {
      // K is both matrices', each to whole stages: the tensor map has them as two planes, the lower address first.
      const i32 up = k >= t.width / 2 ? 1 : 0;
      const i32 in_half = k - up * (t.width / 2), plane = up ^ t.up_first();
      ptx::tma_load_3d<Config::kCluster>(dst + box * 8192, p.weight_maps + t.expert, barrier, policy, kKn ? c : in_half, kKn ? in_half : c, plane);
      return;
    }
    ptx::tma_load_2d<Config::kCluster>(dst + box * 8192, p.weight_maps + t.expert, barrier, policy, kKn ? c : k, kKn ? k : c);
  }

  VARMOE_DEVICE Ahead ahead(const mma::TileSlot& t, int first_block) const {
    return Ahead([&](i32 row) { return bias_of(t, first_block * 64 + row); }, Layer::kRowWeights ? p.row_weight + t.row_begin : nullptr, t.rows);
  }

  VARMOE_DEVICE void store(const mma::TileSlot& t, typename Group::Accumulator& acc, Staging& rows, int first_block, const Ahead& ahead) const {
    ahead.apply(acc, p.row_weight, t.row_begin, t.rows);
    const i32 column = t.column_tile * kColumns + first_block * 64;
    const i64 stride = p.out_stride * 2;
    char* out = static_cast<char*>(p.out) + t.row_begin * stride + static_cast<i64>(column) * 2;
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
    for (int pass = 0; pass < ceil_div(Config::kBlockM, Staging::kRows); ++pass) {
      if (pass * Staging::kRows >= t.rows) break;
      rows.begin();
      rows.put_columns(acc, warp, pass, [](float a, float b) { return ptx::pack2<kElement>(a, b); });
      rows.flush(out + pass * Staging::kRows * stride, stride, t.rows - pass * Staging::kRows, Layer::kHidden - column);
    }
  }

 private:
  /// The bias of row `row` of the weight tile.
  VARMOE_DEVICE u32 bias_of(const mma::TileSlot& t, i32 row) const {
    const i32 column = t.column_tile * kColumns + row;
    return epilogue::load_bias(p.biases[t.expert].down, column, column < Layer::kHidden);
  }

  const abi::GemmParams& p;
};

template <class Layer, class Config>
VARMOE_DEVICE void fc2_sm90(const abi::GemmParams& params) {
  extern __shared__ __align__(1024) char memory[];
  mma::Sm90Gemm<Fc2Sm90<Layer, Config>>(params, memory).run();
}

}  // namespace varmoe::moe
