#pragma once

#include "epilogue/scale_and_bias.cuh"
#include "epilogue/store_transposed.cuh"
#include "mma/sm90_gemm.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/shuffle.cuh"
#include "schedule/tile_map.cuh"

// fc1 on Hopper: h[r, :] = activation(x[token(r)] · W1ᵀ of r's expert), rounded once; scaled and biased before the activation as
// moe/fc1.cuh says. Weights are wgmma's first operand. A gated
// layer's gate and up meet in one thread: nk weights arrive as groups of 8 gate rows, 8 up rows, … (one tensor-map box),
// which lie 8 accumulator rows apart; kn weights as 64 gate columns and 64 up columns, in neighbouring accumulator blocks.
namespace varmoe::moe {

template <class Layer, class Config_>
class Fc1Sm90 {
 public:
  using Config = Config_;
  using Activation = typename Layer::Activation;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kKn = Layer::kFc1Kn;
  static constexpr bool kGated = Activation::kGated;
  static constexpr bool kAdjacent = kGated && kKn && Layer::kInterleaved;
  static constexpr bool kApart = kGated && kKn && !Layer::kInterleaved;
  static constexpr bool kMakesH = true;
  static constexpr int kTopK = Layer::kTopK;
  static constexpr bool kWholeStages = Layer::kHidden % 64 == 0;
  static constexpr int kLongestK = Layer::kHidden;
  static constexpr int kColumns = kGated ? Config::kBlockN / 2 : Config::kBlockN;
  using Group = mma::Sm90Warpgroup<Config, kElement, kKn>;
  using Staging = epilogue::TransposedRows<64 * Group::kBlocks / (kGated ? 2 : 1)>;
  using Ahead = epilogue::TransposedScaleAndBias<Group, kElement, Layer::kBias, Layer::kWeightOnInput>;

  VARMOE_DEVICE explicit Fc1Sm90(const abi::GemmParams& params) : p(params) {}

  VARMOE_DEVICE i32 tile_count() const { return schedule::fc1_tile_count<Layer, kColumns, Config::kCluster>(p); }
  VARMOE_DEVICE schedule::OutputTile tile(i32 index, i32 rank) const {
    return schedule::fc1_tile<Layer, kColumns, Config::kBlockM, Config::kRowStep, Config::kRaster, Config::kCluster>(p, index, rank);
  }
  VARMOE_DEVICE i32 k_extent(i32) const { return Layer::kHidden; }

  /// Boxes of 64 weight rows (gate and up together; apart: 64 of each), so that one tensor map serves every block_n.
  static constexpr int kBoxRows = kApart ? 128 : 64;
  static constexpr int kWeightBoxes = Config::kBlockN / kBoxRows;

  /// Box `box` of a stage, for all blocks of the cluster.
  VARMOE_DEVICE void load_weights(u32 dst, u32 barrier, const mma::TileSlot& t, i32 k, int box, ptx::L2Policy policy) const {
    constexpr int kCluster = Config::kCluster;
    const abi::TensorMap* map = p.weight_maps + t.expert;
    const i32 column = t.column_tile * kColumns;
    const u32 to = dst + box * (kBoxRows * 128);
    if constexpr (kApart) {
      ptx::tma_load_3d<kCluster>(to, map, barrier, policy, column + 64 * box, k, 0);
    } else if constexpr (kKn) {
      ptx::tma_load_2d<kCluster>(to, map, barrier, policy, column * (kAdjacent ? 2 : 1) + 64 * box, k);
    } else if constexpr (kGated) {
      ptx::tma_load_4d<kCluster>(to, map, barrier, policy, k, 0, 0, column / 8 + 4 * box);
    } else {
      ptx::tma_load_2d<kCluster>(to, map, barrier, policy, k, column + 64 * box);
    }
  }

  VARMOE_DEVICE Ahead ahead(const mma::TileSlot& t, int first_block) const {
    return Ahead([&](i32 row) { return bias_of(t, first_block * 64 + row); }, p.row_weight + t.row_begin, t.rows);
  }

  /// `first_block`: of this group in the weight tile. Columns up to the next multiple of 64 are written, as the zeroes that they
  /// are (weights beyond the width arrive as zero, their bias is zero, and every activation of 0 is 0): fc2 multiplies whole stages.
  VARMOE_DEVICE void store(const mma::TileSlot& t, typename Group::Accumulator& acc, Staging& rows, int first_block, const Ahead& ahead) const {
    if constexpr (Layer::kSavesZ && Layer::kSavesProduct) store_z(t, acc, rows, first_block);
    ahead.apply(acc, p.row_weight, t.row_begin, t.rows);
    store_as<Output::h>(t, acc, rows, first_block, p.out, p.out_stride);
    if constexpr (Layer::kSavesZ && !Layer::kSavesProduct) store_z(t, acc, rows, first_block);
  }

 private:
  /// What becomes of a column's gate and up (an ungated layer's value is `gate`).
  enum class Output { h, gate, up };

  VARMOE_DEVICE void store_z(const mma::TileSlot& t, typename Group::Accumulator& acc, Staging& rows, int first_block) const {
    store_as<Output::gate>(t, acc, rows, first_block, p.z, p.z_stride);
    if constexpr (kGated) store_as<Output::up>(t, acc, rows, first_block, static_cast<char*>(p.z) + ceil_div(t.width, 64) * 128, p.z_stride);
  }

  template <Output kOutput>
  VARMOE_DEVICE void store_as(const mma::TileSlot& t, typename Group::Accumulator& acc, Staging& rows, int first_block, void* to, i64 stride_elements) const {
    const i32 column = t.column_tile * kColumns + first_block * 64 / (kGated ? 2 : 1);
    const i32 columns = ceil_div(t.width, 64) * 64 - column;
    const i64 stride = stride_elements * 2;
    char* out = static_cast<char*>(to) + t.row_begin * stride + static_cast<i64>(column) * 2;
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
    for (int pass = 0; pass < ceil_div(Config::kBlockM, Staging::kRows); ++pass) {
      if (pass * Staging::kRows >= t.rows) break;
      rows.begin();
      if constexpr (kApart) {
#pragma unroll
        for (int b = 0; b < Group::kBlocks; b += 2) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            u32 v[4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              constexpr int kGroups = Config::kBlockM / 8;
              const int j = min_of(4 * pass + 2 * q + i, kGroups - 1);
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                v[2 * i + half] = ptx::pack2<kElement>(gated<kOutput>(t, acc[b][4 * j + 2 * half], acc[b + 1][4 * j + 2 * half]),
                                                       gated<kOutput>(t, acc[b][4 * j + 2 * half + 1], acc[b + 1][4 * j + 2 * half + 1]));
              }
            }
            rows.put16(b * 4 + 2 * warp, q * 16, v[0], v[1], v[2], v[3]);
          }
        }
      } else if constexpr (kGated) {
#pragma unroll
        for (int b = 0; b < Group::kBlocks; ++b) {
          u32 v[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int j = min_of(4 * pass + i, Config::kBlockM / 8 - 1);
            const float* d = acc[b] + 4 * j;
            v[i] = kAdjacent ? join_adjacent<kOutput>(d) : ptx::pack2<kElement>(gated<kOutput>(t, d[0], d[2]), gated<kOutput>(t, d[1], d[3]));
          }
          rows.put32(b * 4 + warp, v[0], v[1], v[2], v[3]);
        }
      } else {
        rows.put_columns(acc, warp, pass, [](float a, float b) { return ptx::pack2<kElement>(of<kOutput>(a), of<kOutput>(b)); });
      }
      rows.flush(out + pass * Staging::kRows * stride, stride, t.rows - pass * Staging::kRows, columns);
    }
  }

  /// The bias of row `row` of the weight tile, in the order that load_weights makes.
  VARMOE_DEVICE u32 bias_of(const mma::TileSlot& t, i32 row) const {
    i32 column = row;
    bool up = true;
    if constexpr (kAdjacent) {
      column = row / 2;
      up = row % 2 != 0;
    } else if constexpr (kGated) {
      constexpr i32 kRun = kApart ? 64 : 8;  // rows of gate, as many of up
      column = row / (2 * kRun) * kRun + row % kRun;
      up = (row / kRun % 2 != 0) != (t.up_first() != 0);
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
  template <Output kOutput>
  VARMOE_DEVICE static float gated(const mma::TileSlot& t, float first, float second) {
    // Operands chosen, not calls: a branch here would stand between accumulators and their next product.
    return of<kOutput>(t.up_first() ? second : first, t.up_first() ? first : second);
  }

  /// Accumulator rows 2i and 2i+1 are gate and up of one column of h: lanes 4 apart hold the two. Afterwards the lanes of
  /// accumulator row r hold column r of the warp's eight, as the other layouts have it.
  template <Output kOutput>
  VARMOE_DEVICE static u32 join_adjacent(const float* d) {
    const bool up = (threadIdx.x >> 2) & 1;
    // The gate's lane takes the upper eight rows' pairing partner for rows r, the up's lane for rows r + 8.
    const float s0 = up ? d[0] : d[2], s1 = up ? d[1] : d[3];
    const float r0 = ptx::shuffle_xor_in_place(s0, 4), r1 = ptx::shuffle_xor_in_place(s1, 4);
    const u32 v = ptx::pack2<kElement>(of<kOutput>(up ? r0 : d[0], up ? d[2] : r0), of<kOutput>(up ? r1 : d[1], up ? d[3] : r1));
    // Row quad q = 2i holds column i, 2i+1 column 4+i: deal them out in order.
    const u32 quad = (threadIdx.x >> 2) & 7;
    const u32 source = ((quad & 3) << 1) | (quad >> 2);
    return ptx::shuffle_in_place(v, (source << 2) | (threadIdx.x & 3));
  }

 protected:
  const abi::GemmParams& p;
};

template <class Layer, class Config>
VARMOE_DEVICE void fc1_sm90(const abi::GemmParams& params) {
  extern __shared__ __align__(1024) char memory[];
  mma::Sm90Gemm<Fc1Sm90<Layer, Config>>(params, memory).run();
}

}  // namespace varmoe::moe
