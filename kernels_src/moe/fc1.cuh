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

// fc1: h[r, :] = activation(x[token(r)] · W1ᵀ of r's expert), rounded once. Before the activation the sums are multiplied by the row's
// weight (weight on input: x·w is linear up to there) and get the expert's bias. Of weight on input z is kept as it was before both: the
// weight's gradient is made of it, and a weight may be 0.
//
// Layer (emitted): kElement, kHidden, kExperts, kTopK, kClasses, width(c), kFc1Kn, kInterleaved, kBias, kWeightOnInput, kSavesZ, Activation.
// Config (emitted): kBlockM, kBlockN, kBlockK, kStages, kWarpsM, kWarpsN, kRaster, kFusedGather.
namespace varmoe::moe {

template <class Layer, class Config_>
class Fc1 {
 public:
  using Config = Config_;
  using Activation = typename Layer::Activation;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kKn = Layer::kFc1Kn;
  static constexpr bool kGated = Activation::kGated;
  /// Gate and up columns lie side by side in memory, so they arrive side by side in the tile.
  static constexpr bool kAdjacent = kGated && kKn && Layer::kInterleaved;
  static constexpr bool kSplit = kGated && !kAdjacent;
  /// Columns of h that one tile yields.
  static constexpr int kColumns = kGated ? Config::kBlockN / 2 : Config::kBlockN;
  static constexpr int kThreads = 32 * Config::kWarpsM * Config::kWarpsN;
  using Warp = mma::Sm80Warp<Config, kElement, kKn, kSplit>;

  VARMOE_DEVICE explicit Fc1(const abi::GemmParams& params) : p(params) {}

  VARMOE_DEVICE i32 tile_count() const { return schedule::fc1_tile_count<Layer, kColumns>(p); }
  VARMOE_DEVICE schedule::OutputTile tile(i32 index) const {
    return schedule::fc1_tile<Layer, kColumns, Config::kBlockM, Config::kBlockM, Config::kRaster>(p, index);
  }
  VARMOE_DEVICE i32 k_extent(i32) const { return Layer::kHidden; }
  VARMOE_DEVICE i32 k_extent_of(const schedule::OutputTile&) const { return Layer::kHidden; }

  class Operands {
   public:
    VARMOE_DEVICE void point_at(const Fc1& problem, const schedule::OutputTile& t) {
      const abi::GemmParams& p = problem.p;
      if constexpr (Config::kFusedGather) {
        extern __shared__ Vec16 shared[];
        i32* tokens = reinterpret_cast<i32*>(reinterpret_cast<char*>(shared) + mma::sm80_ring_bytes<Config>());
        a_.point_at(p.a, p.a_stride, p.row_source, t.row_begin, t.rows, tokens);
      } else {
        const char* first = static_cast<const char*>(p.a) + t.row_begin * p.a_stride * 2;
        a_.point_at(first, first, p.a_stride, t.rows);
      }
      const abi::ExpertEntry& e = p.experts[t.expert];
      const i32 column = t.column_tile * kColumns;
      if constexpr (kAdjacent) {
        const char* first = reinterpret_cast<const char*>(e.gate) + static_cast<i64>(column) * 4;
        b_.point_at(first, first, e.fc1_stride, 2 * (t.width - column));
      } else {
        // In nk order a column of h is a row of the matrix.
        const i64 skip = kKn ? static_cast<i64>(column) * 2 : column * e.fc1_stride * 2;
        const char* up = reinterpret_cast<const char*>(e.up) + skip;
        const char* gate = kGated ? reinterpret_cast<const char*>(e.gate) + skip : up;
        b_.point_at(gate, up, e.fc1_stride, t.width - column);
      }
    }
    VARMOE_DEVICE void copy_a(u32 tile, i32 k, i32 k_end) const { a_.copy(tile, k, k_end); }
    VARMOE_DEVICE void copy_b(u32 tile, i32 k, i32 k_end) const { b_.copy(tile, k, k_end); }

   private:
    typename SelectType<Config::kFusedGather,
                        tile::GatheredRows<Config::kBlockM, Config::kBlockK, kThreads, Layer::kTopK>,
                        tile::StridedRows<Config::kBlockM, Config::kBlockK, kThreads, false>>::type a_;
    tile::WeightOperand<Config, kKn, kSplit, kThreads> b_;
  };

  VARMOE_DEVICE void epilogue(const schedule::OutputTile& t, typename Warp::Accumulator& acc) const {
    if constexpr (Layer::kSavesZ && Layer::kSavesProduct) store_z(t, acc);
    if constexpr (Layer::kBias || Layer::kWeightOnInput) {
      epilogue::scale_and_bias<Warp, kElement, Layer::kBias, Layer::kWeightOnInput>(
          acc, [&](int pair, int block, int element) { return bias_of(t, pair, block, element); }, p.row_weight + t.row_begin, t.rows);
    }
    store_as<Output::h>(t, acc, p.out, p.out_stride);
    if constexpr (Layer::kSavesZ && !Layer::kSavesProduct) store_z(t, acc);
  }

 private:
  /// What becomes of a column's gate and up (an ungated layer's value is `gate`).
  enum class Output { h, gate, up };

  VARMOE_DEVICE void store_z(const schedule::OutputTile& t, typename Warp::Accumulator& acc) const {
    store_as<Output::gate>(t, acc, p.z, p.z_stride);
    if constexpr (kGated) store_as<Output::up>(t, acc, static_cast<char*>(p.z) + ceil_div(t.width, 64) * 128, p.z_stride);
  }

  template <Output kOutput>
  VARMOE_DEVICE void store_as(const schedule::OutputTile& t, typename Warp::Accumulator& acc, void* to, i64 stride) const {
    const i32 lane_row = Warp::row0() + Warp::lane() / 4;
    const i32 column = t.column_tile * kColumns + (kAdjacent ? Warp::column0() / 2 : Warp::column0());
    const i32 columns = t.width - column;
#pragma unroll
    for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const i32 r = lane_row + i * 16 + half * 8;
        char* row = static_cast<char*>(to) + (static_cast<i64>(t.row_begin + r) * stride + column) * 2;
        u32 v[kGated ? Warp::kPairs : 2 * Warp::kPairs];
#pragma unroll
        for (int j = 0; j < Warp::kPairs; ++j) {
          const float* first = acc[i][j][0] + 2 * half;
          const float* second = acc[i][j][1] + 2 * half;
          if constexpr (kSplit) {
            v[j] = ptx::pack2<kElement>(of<kOutput>(first[0], second[0]), of<kOutput>(first[1], second[1]));
          } else if constexpr (kAdjacent) {
            v[j] = join_adjacent(of<kOutput>(first[0], first[1]), of<kOutput>(second[0], second[1]));
          } else {
            v[2 * j] = ptx::pack2<kElement>(of<kOutput>(first[0]), of<kOutput>(first[1]));
            v[2 * j + 1] = ptx::pack2<kElement>(of<kOutput>(second[0]), of<kOutput>(second[1]));
          }
        }
        epilogue::store_row_blocks(row, v, columns, r < t.rows);
      }
    }
  }

  /// Of one of this lane's columns, by where its accumulator lies.
  VARMOE_DEVICE u32 bias_of(const schedule::OutputTile& t, int pair, int block, int element) const {
    const i32 in_block = Warp::lane() % 4 * 2 + element;
    i32 column = Warp::column0() + (kSplit ? pair * 8 : pair * 16 + block * 8) + in_block;
    bool up = !kGated || block != 0;
    if constexpr (kAdjacent) {
      column /= 2;
      up = element != 0;
    }
    column += t.column_tile * kColumns;
    const abi::ExpertBias& bias = p.biases[t.expert];
    return epilogue::load_bias(up ? bias.up : bias.gate, static_cast<i64>(column) * bias.fc1_stride, column < t.width);
  }

  template <Output kOutput>
  VARMOE_DEVICE static float of(float gate, float up) {
    if constexpr (kOutput == Output::h) {
      return Activation{}(gate, up);
    } else {
      return kOutput == Output::gate ? gate : up;
    }
  }
  template <Output kOutput>
  VARMOE_DEVICE static float of(float value) {
    if constexpr (kOutput == Output::h) {
      return Activation{}(value);
    } else {
      return value;
    }
  }

  /// Lane q of a quad has column q of two 4-column blocks; afterwards it has columns 2q, 2q+1 of the 8-column block they make.
  VARMOE_DEVICE static u32 join_adjacent(float first, float second) {
    const u32 q = threadIdx.x & 3;
    const u32 source = (threadIdx.x & 28u) + ((q << 1) & 3);
    const float f0 = __shfl_sync(0xffffffffu, first, source), f1 = __shfl_sync(0xffffffffu, first, source + 1);
    const float s0 = __shfl_sync(0xffffffffu, second, source), s1 = __shfl_sync(0xffffffffu, second, source + 1);
    return q < 2 ? ptx::pack2<kElement>(f0, f1) : ptx::pack2<kElement>(s0, s1);
  }

 protected:
  const abi::GemmParams& p;
};

template <class Layer, class Config>
VARMOE_DEVICE void fc1(const abi::GemmParams& params) {
  extern __shared__ Vec16 shared[];
  ptx::follow_earlier_kernels();
  const Fc1<Layer, Config> problem(params);
  mma::Sm80Gemm<Fc1<Layer, Config>>(problem, ptx::shared_address(shared)).run();
}

}  // namespace varmoe::moe
