#pragma once

#include "epilogue/store_gradient.cuh"
#include "epilogue/sum_parts.cuh"
#include "prelude.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma_sync.cuh"
#include "schedule/gradient_tiles.cuh"
#include "tile/swizzle.cuh"

// The weights' gradients on mma.sync: for each expert Σ over its rows r of a_r ⊗ b_r, a_r of dz or w·h, b_r of x or dout of r's token,
// gathered on the way. Both operands lie with the summed dimension outermost, so fragments are transposed as they are loaded. Rows
// beyond the expert's are zeroes in both operands: what lies there is another expert's.
//
// `Gradient` (emitted): see schedule/gradient_tiles.cuh, and kElement, kTopK (slots of a token), kFc2, kFp32 (the output's elements).
// kSegments: x or dout lie by row too.
namespace varmoe::moe {

/// Where an output tile's half lies, and its row stride in elements.
template <class Gradient>
VARMOE_DEVICE char* gradient_base(const abi::GradientEntry& e, i32 half, i64& stride) {
  if constexpr (Gradient::kFc2) {
    stride = e.fc2_stride;
    return reinterpret_cast<char*>(e.down);
  } else {
    stride = e.fc1_stride;
    constexpr bool kGated = Gradient::kHalves == 2 || Gradient::kWidthScale == 2;
    return reinterpret_cast<char*>(kGated && half == 0 ? e.gate : e.up);
  }
}

/// [kBlockK rows, kColumns columns] of an operand, by all threads of the block.
template <int kColumns, int kBlockK, int kThreads, bool kByToken, int kTopK>
class OuterOperand {
  static constexpr int kChunks = kColumns / 8;
  static_assert(kThreads % kChunks == 0, "a thread keeps its chunk");
  static constexpr int kStep = kThreads / kChunks;
  static constexpr int kPerThread = ceil_div(kBlockK, kStep);

 public:
  VARMOE_DEVICE static void copy(u32 tile, const char* base, i64 stride, const i32* row_source, i32 row_begin, i32 rows, i32 k, i32 columns) {
    const i32 chunk = static_cast<i32>(threadIdx.x) % kChunks;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const i32 row = static_cast<i32>(threadIdx.x) / kChunks + i * kStep;
      if (kBlockK % kStep != 0 && row >= kBlockK) continue;
      const bool valid = k + row < rows && chunk * 8 < columns;
      i64 from = 0;
      if (valid) from = kByToken ? static_cast<i64>(static_cast<u32>(row_source[row_begin + k + row]) / kTopK) : row_begin + k + row;
      ptx::cp_async_16(tile + tile::swizzled_offset<kChunks>(static_cast<u32>(row), static_cast<u32>(chunk)),
                       base + from * stride * 2 + chunk * 16, valid);
    }
  }
};

template <class Gradient, class Config>
class WeightGradient {
  static constexpr Element kElement = Gradient::kElement;
  static constexpr int kBlockM = Config::kBlockM, kBlockN = Config::kBlockN, kBlockK = 32, kStages = Config::kStages;
  static constexpr int kWarpsM = Config::kWarpsM, kWarpsN = Config::kWarpsN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kWarpM = kBlockM / kWarpsM, kWarpN = kBlockN / kWarpsN;
  static_assert(kWarpM % 16 == 0 && kWarpN % 32 == 0, "a warp tile is stored in pieces of 32 columns");
  static constexpr int kRowBlocks = kWarpM / 16, kPairs = kWarpN / 16;
  static constexpr u32 kABytes = kBlockK * kBlockM * 2, kBBytes = kBlockK * kBlockN * 2, kStageBytes = kABytes + kBBytes;
  using OperandA = OuterOperand<kBlockM, kBlockK, kThreads, Gradient::kTokensFirst && !Gradient::kSegments, Gradient::kTopK>;
  using OperandB = OuterOperand<kBlockN, kBlockK, kThreads, !Gradient::kTokensFirst && !Gradient::kSegments, Gradient::kTopK>;
  using Accumulator = float[kRowBlocks][kPairs][2][4];

 public:
  static constexpr u32 kBytes = kStages * kStageBytes;

  VARMOE_DEVICE WeightGradient(const abi::WeightGradientParams& params, u32 shared) : p(params), shared_(shared) {}

  VARMOE_DEVICE void run() const {
    const i32 count = p.tile_prefix[p.experts];
    for (i32 index = static_cast<i32>(blockIdx.x); index < count; index += static_cast<i32>(gridDim.x)) {
      const schedule::GradientTile t =
          schedule::gradient_tile<Gradient, kBlockM, kBlockN>(p.tile_prefix, p.expert_order, p.splits, p.expert_offsets, p.gradients, p.experts, index);
      // What is added to stays as it is.
      if (t.rows == 0 && p.accumulate) continue;
      Accumulator acc = {};
      multiply(t, acc);
      if (t.parts > 1) {
        store_part(t, acc);
      } else {
        store(t, acc);
      }
      __syncthreads();
    }
  }

 private:
  VARMOE_DEVICE void load(const schedule::GradientTile& t, u32 stage, i32 k) const {
    const u32 tile = shared_ + stage * kStageBytes;
    const char* const rows = static_cast<const char*>(p.rows) + t.half * (ceil_div(t.width, 64) * 64) * 2;
    const char* const tokens = static_cast<const char*>(p.tokens);
    if constexpr (Gradient::kTokensFirst) {
      OperandA::copy(tile, tokens + t.m * 2, p.tokens_stride, p.row_source, t.row_begin, t.rows, k, Gradient::kHidden - t.m);
      OperandB::copy(tile + kABytes, rows + t.n * 2, p.rows_stride, p.row_source, t.row_begin, t.rows, k, t.width - t.n);
    } else {
      OperandA::copy(tile, rows + t.m * 2, p.rows_stride, p.row_source, t.row_begin, t.rows, k, t.width - t.m);
      OperandB::copy(tile + kABytes, tokens + t.n * 2, p.tokens_stride, p.row_source, t.row_begin, t.rows, k, Gradient::kHidden - t.n);
    }
  }

  VARMOE_DEVICE void multiply(const schedule::GradientTile& t, Accumulator& acc) const {
    const i32 stages = ceil_div(t.rows, kBlockK);
#pragma unroll 1
    for (i32 s = 0; s < kStages - 1; ++s) {
      if (s < stages) load(t, static_cast<u32>(s), s * kBlockK);
      ptx::cp_async_commit();
    }
    u32 read = 0, write = kStages - 1;
#pragma unroll 1
    for (i32 s = 0; s < stages; ++s) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      if (s + kStages - 1 < stages) load(t, write, (s + kStages - 1) * kBlockK);
      ptx::cp_async_commit();
      const u32 tile = shared_ + read * kStageBytes;
#pragma unroll
      for (int step = 0; step < kBlockK / 16; ++step) {
        u32 b[kPairs][4];
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          // Lanes 0-15: rows of the first eight columns; lanes 16-31: of the second.
          const u32 chunk = static_cast<u32>(column0() + j * 16) / 8 + lane() / 16;
          ptx::ldmatrix_x4_trans(b[j], tile + kABytes + tile::swizzled_offset<kBlockN / 8>(step * 16 + lane() % 16, chunk));
        }
#pragma unroll
        for (int i = 0; i < kRowBlocks; ++i) {
          u32 a[4];
          // Matrices in the order of a fragment: (columns 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
          const u32 chunk = static_cast<u32>(row0() + i * 16) / 8 + lane() / 8 % 2;
          ptx::ldmatrix_x4_trans(a, tile + tile::swizzled_offset<kBlockM / 8>(step * 16 + lane() % 8 + lane() / 16 * 8, chunk));
#pragma unroll
          for (int j = 0; j < kPairs; ++j) {
            ptx::mma_m16n8k16<kElement>(acc[i][j][0], a, b[j][0], b[j][1]);
            ptx::mma_m16n8k16<kElement>(acc[i][j][1], a, b[j][2], b[j][3]);
          }
        }
      }
      read = read + 1 == kStages ? 0 : read + 1;
      write = write + 1 == kStages ? 0 : write + 1;
    }
    ptx::cp_async_wait<0>();
  }

  static constexpr int kColumnUnits = kPairs / 2;

  /// Row 16·i + 8·half of this lane's, columns 32·j … of its warp's.
  struct Place {
    char* first;
    i32 columns;
    bool valid;
  };
  VARMOE_DEVICE Place place(const schedule::GradientTile& t, int i, int half, int j) const {
    i64 stride;
    char* const base = gradient_base<Gradient>(p.gradients[t.expert], t.half, stride);
    constexpr i32 kBytesPer = Gradient::kFp32 ? 4 : 2;
    const i32 m_end = Gradient::kTokensFirst ? Gradient::kHidden : t.width, n_end = Gradient::kTokensFirst ? t.width : Gradient::kHidden;
    const i32 row = t.m + row0() + i * 16 + half * 8 + static_cast<i32>(lane() / 4);
    const i32 column = t.n + column0() + j * 32;
    return {base + (row * stride + column) * kBytesPer, n_end - column, row < m_end};
  }
  VARMOE_DEVICE void store_at(const Place& to, float (&v)[8]) const {
    epilogue::store_gradient<kElement, Gradient::kFp32>(to.first, v, to.columns, to.valid, p.accumulate != 0);
  }
  VARMOE_DEVICE static void fragment(float (&v)[8], const Accumulator& acc, int i, int half, int j) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      v[2 * b] = acc[i][2 * j + b / 2][b % 2][2 * half];
      v[2 * b + 1] = acc[i][2 * j + b / 2][b % 2][2 * half + 1];
    }
  }

  VARMOE_DEVICE void store(const schedule::GradientTile& t, const Accumulator& acc) const {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kColumnUnits; ++j) {
          float v[8];
          fragment(v, acc, i, half, j);
          store_at(place(t, i, half, j), v);
        }
      }
    }
  }

  /// This part's sum; the block that comes last stores that of all parts.
  VARMOE_DEVICE void store_part(const schedule::GradientTile& t, const Accumulator& acc) const {
    constexpr i64 kSlot = kBlockM * kBlockN;
    float* const first = p.partials + t.slot * kSlot;
    float* const own = first + t.part * kSlot;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < kColumnUnits; ++j) {
          float v[8];
          fragment(v, acc, i, half, j);
          epilogue::store_part<kThreads>(own, (2 * i + half) * kColumnUnits + j, threadIdx.x, v);
        }
      }
    }
    if (!epilogue::is_last_part<kThreads>(p.arrivals + 2 * t.slot, t.parts, threadIdx.x, 0)) return;
#pragma unroll 1
    for (int i = 0; i < 2 * kRowBlocks; ++i) {
      float sum[kColumnUnits][8];
      epilogue::add_parts<kColumnUnits, kThreads>(sum, first, kSlot, t.parts, i * kColumnUnits, threadIdx.x);
#pragma unroll
      for (int j = 0; j < kColumnUnits; ++j) store_at(place(t, i / 2, i % 2, j), sum[j]);
    }
  }

  VARMOE_DEVICE static u32 lane() { return threadIdx.x % 32; }
  VARMOE_DEVICE static i32 row0() { return static_cast<i32>(threadIdx.x) / 32 % kWarpsM * kWarpM; }
  VARMOE_DEVICE static i32 column0() { return static_cast<i32>(threadIdx.x) / 32 / kWarpsM * kWarpN; }

  const abi::WeightGradientParams& p;
  u32 shared_;
};

template <class Gradient, class Config>
VARMOE_DEVICE void weight_gradient(const abi::WeightGradientParams& p) {
  extern __shared__ Vec16 shared[];
  ptx::follow_earlier_kernels();
  WeightGradient<Gradient, Config>(p, ptx::shared_address(shared)).run();
}

}  // namespace varmoe::moe
