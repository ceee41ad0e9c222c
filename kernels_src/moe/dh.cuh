#pragma once

#include "epilogue/activation_backward.cuh"
#include "epilogue/store_rows.cuh"
#include "moe/dh_row.cuh"
#include "moe/fc1.cuh"
#include "prelude.cuh"

// g = dout·W2 as fc1 of the layer turned round, and what follows from g (moe/dh_row.cuh) while it is in registers: it is never stored.
namespace varmoe::moe {

template <class Layer, class Config_>
class Dh : public Fc1<Layer, Config_> {
  using Base = Fc1<Layer, Config_>;
  using Base::p;
  using Backward = epilogue::ActivationBackward<Layer, 0>;
  using Row = DhRow<Layer>;

 public:
  using Config = Config_;
  using Warp = typename Base::Warp;
  /// Columns of one warp: what one partial sum is over.
  static constexpr int kSpan = Warp::kWarpN;

  VARMOE_DEVICE explicit Dh(const abi::GemmParams& params) : Base(params) {}

  VARMOE_DEVICE void epilogue(const schedule::OutputTile& t, typename Warp::Accumulator& acc) const {
    const i32 begin = t.column_tile * Base::kColumns + Warp::column0(), lane_row = Warp::row0() + Warp::lane() / 4;
#pragma unroll
    for (int i = 0; i < Warp::kRowBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) store_row(t, acc[i], half, lane_row + i * 16 + half * 8, begin);
    }
    store_rest(t);
  }

 private:
  static constexpr int kEights = 2 * Warp::kPairs;  // 8-column blocks of a warp
  static constexpr int kQuads = ceil_div(kEights, 4);

  /// Row `r` of the tile, of which each lane of a quad holds two columns of every block.
  VARMOE_DEVICE void store_row(const schedule::OutputTile& t, const float (&acc)[Warp::kPairs][2][4], int half, i32 r, i32 begin) const {
    const bool valid = r < t.rows;
    const i32 row = t.row_begin + r, lane = Warp::lane() % 4;
    const float weight = Row::weight(p, t.expert, row, valid);
    float part = 0.0f;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      // Afterwards each lane holds a block: its even columns and its odd ones.
      u32 even[4], odd[4];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int block = min_of(4 * quad + b, kEights - 1);
        even[b] = __float_as_uint(acc[block / 2][block % 2][2 * half]);
        odd[b] = __float_as_uint(acc[block / 2][block % 2][2 * half + 1]);
      }
      epilogue::transpose_quad(even);
      epilogue::transpose_quad(odd);
      const i32 column = begin + (4 * quad + lane) * 8;
      const bool mine = valid && 4 * quad + lane < kEights;
      float g[8];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        g[2 * m] = __uint_as_float(even[m]);
        g[2 * m + 1] = __uint_as_float(odd[m]);
      }
      Backward backward(p, t.expert, row, column, t.width);
      typename Backward::Z z;
      backward.load(z, mine && column < t.width);
      backward.store(g, z, weight, part, mine && column < Backward::whole(t.width));
    }
    Row::template store_partial<4>(p, row, begin / kSpan, part, valid && begin < t.width);
  }

  /// Zeroes that no tile covers: from the last one's end to the next multiple of 64.
  VARMOE_DEVICE void store_rest(const schedule::OutputTile& t) const {
    const i32 end = (t.column_tile + 1) * Base::kColumns;
    if (end < t.width) return;
    const i32 chunks = (Backward::whole(t.width) - end) / 8;
    for (i32 i = static_cast<i32>(threadIdx.x); i < t.rows * chunks; i += Base::kThreads)
      Backward(p, t.expert, t.row_begin + i / chunks, end + i % chunks * 8, t.width).store_zeroes();
  }
};

template <class Layer, class Config>
VARMOE_DEVICE void dh(const abi::GemmParams& params) {
  extern __shared__ Vec16 shared[];
  ptx::follow_earlier_kernels();
  const Dh<Layer, Config> problem(params);
  mma::Sm80Gemm<Dh<Layer, Config>>(problem, ptx::shared_address(shared)).run();
}

}  // namespace varmoe::moe
