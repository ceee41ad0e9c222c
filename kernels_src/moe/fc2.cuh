#pragma once

#include "epilogue/scale_and_bias.cuh"
#include "epilogue/store_rows.cuh"
#include "mma/sm80_gemm.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "schedule/tile_map.cuh"
#include "tile/operand_rows.cuh"
#include "tile/operand_weights.cuh"

// fc2: y[r, :] = h[r, :] · W2ᵀ of r's expert (+ its bias), rounded to the output type; the combine weights it (kRowWeights: this kernel
// does, before it rounds). K is the expert's width: its tail is cut at
// the width, with zeroes in both operands, since what lies behind may be a neighbour's NaN.
namespace varmoe::moe {

template <class Layer, class Config_>
class Fc2 {
 public:
  using Config = Config_;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kKn = Layer::kFc2Kn;
  static constexpr bool kSplit = false;
  static constexpr int kColumns = Config::kBlockN;
  static constexpr int kThreads = 32 * Config::kWarpsM * Config::kWarpsN;
  using Warp = mma::Sm80Warp<Config, kElement, kKn, kSplit>;

  VARMOE_DEVICE explicit Fc2(const abi::GemmParams& params)
      : p(params), row_tiles_(schedule::fc2_row_tiles<Layer>(*params.tile_counts)) {}

  VARMOE_DEVICE i32 tile_count() const { return row_tiles_ * ceil_div(Layer::kHidden, kColumns); }

  VARMOE_DEVICE schedule::OutputTile tile(i32 index) const {
    return schedule::fc2_tile<Layer, kColumns, Config::kRaster>(p.tiles, p.experts, row_tiles_, index);
  }

  VARMOE_DEVICE i32 k_extent(i32 index) const {
    if constexpr (Layer::kClasses == 1) {
      return Layer::width(0);
    } else {
      return tile(index).width;
    }
  }
  VARMOE_DEVICE i32 k_extent_of(const schedule::OutputTile& t) const { return t.width; }

  class Operands {
   public:
    VARMOE_DEVICE void point_at(const Fc2& problem, const schedule::OutputTile& t) {
      const abi::GemmParams& p = problem.p;
      const char* first = static_cast<const char*>(p.a) + t.row_begin * p.a_stride * 2;
      a_.point_at(first, first, p.a_stride, t.rows);
      const abi::ExpertEntry& e = p.experts[t.expert];
      const i32 column = t.column_tile * kColumns;
      const i64 skip = kKn ? static_cast<i64>(column) * 2 : column * e.fc2_stride * 2;
      const char* down = reinterpret_cast<const char*>(e.down) + skip;
      b_.point_at(down, down, e.fc2_stride, Layer::kHidden - column);
      if constexpr (Layer::kGateAndUp) {
        const char* gate = reinterpret_cast<const char*>(e.gate) + skip;
        gate_.point_at(gate, gate, e.fc2_stride, Layer::kHidden - column);
        half_ = t.width / 2;
        width_ = e.width;
      }
    }
    VARMOE_DEVICE void copy_a(u32 tile, i32 k, i32 k_end) const { a_.copy(tile, k, k_end); }
    VARMOE_DEVICE void copy_b(u32 tile, i32 k, i32 k_end) const {
      if constexpr (Layer::kGateAndUp) {
        // K is gate's, then up's, each to whole stages of 64.
        if (k < half_) {
          gate_.copy(tile, k, width_);
        } else {
          b_.copy(tile, k - half_, width_);
        }
      } else {
        b_.copy(tile, k, k_end);
      }
    }

   private:
    using Weights = tile::WeightOperand<Config, kKn, false, kThreads>;
    struct Nothing {};
    tile::StridedRows<Config::kBlockM, Config::kBlockK, kThreads, false> a_;
    Weights b_;
    typename SelectType<Layer::kGateAndUp, Weights, Nothing>::type gate_;
    i32 half_, width_;  // of kGateAndUp: K of one matrix in whole stages, and without
  };

  VARMOE_DEVICE void epilogue(const schedule::OutputTile& t, typename Warp::Accumulator& acc) const {
    if constexpr (Layer::kBias || Layer::kRowWeights) {
      const i32 first = t.column_tile * kColumns + Warp::column0() + Warp::lane() % 4 * 2;
      const u64 bias = Layer::kBias ? p.biases[t.expert].down : 0;
      epilogue::scale_and_bias<Warp, kElement, Layer::kBias, Layer::kRowWeights, true>(
          acc,
          [&](int pair, int block, int element) {
            const i32 column = first + pair * 16 + block * 8 + element;
            return epilogue::load_bias(bias, column, column < Layer::kHidden);
          },
          Layer::kRowWeights ? p.row_weight + t.row_begin : nullptr, t.rows);
    }
    const i32 lane_row = Warp::row0() + Warp::lane() / 4;
    const i32 column = t.column_tile * kColumns + Warp::column0();
#pragma unroll
    for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const i32 r = lane_row + i * 16 + half * 8;
        char* row = static_cast<char*>(p.out) + (static_cast<i64>(t.row_begin + r) * p.out_stride + column) * 2;
        u32 v[2 * Warp::kPairs];
#pragma unroll
        for (int j = 0; j < Warp::kPairs; ++j) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const float* d = acc[i][j][b] + 2 * half;
            v[2 * j + b] = ptx::pack2<kElement>(d[0], d[1]);
          }
        }
        epilogue::store_row_blocks(row, v, Layer::kHidden - column, r < t.rows);
      }
    }
  }

 private:
  const abi::GemmParams& p;
  i32 row_tiles_;
};

template <class Layer, class Config>
VARMOE_DEVICE void fc2(const abi::GemmParams& params) {
  extern __shared__ Vec16 shared[];
  ptx::follow_earlier_kernels();
  const Fc2<Layer, Config> problem(params);
  mma::Sm80Gemm<Fc2<Layer, Config>>(problem, ptx::shared_address(shared)).run();
}

}  // namespace varmoe::moe
