#pragma once

#include "moe/logit_element.cuh"
#include "moe/router_chunks.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/mma_tf32.cuh"

// The router's product: logits[t, e] = Σ_k x[t, k] · w[e, k] in fp32, as sums over chunks of K (partials) that the router kernel adds up. Two kernels:
// one warp per 16 experts, 8 tokens and chunk, operands straight from global memory, for few tokens; a tiled one for many. A logit is the same
// sum in both: within a chunk K ascends by slabs of 32 into an accumulator of its own, and chunks are added in ascending order. So its bits depend neither
// on the number of tokens nor on what the other rows hold.
//
// Experts are the rows of the tensor cores' products and tokens their columns. Of each slab a lane holds eight consecutive elements of its rows and columns, one 16-byte load
// each; which k they stand for within an instruction is of no consequence as long as both operands agree.
namespace varmoe::moe {

template <class Product>
struct RouterFragments {
  static constexpr i32 kHidden = Product::kHidden;
  static constexpr i32 kExperts = Product::kExperts;
  static constexpr Element kInput = Product::kInput;
  static constexpr LogitElement kWeight = Product::kWeight;
  static constexpr bool kWide = kWeight == LogitElement::fp32;  // weights of four bytes
  /// Both operands as they are; else as tf32, which holds every bf16 and fp16, and an fp32 in two parts to 2^-24 of it.
  static constexpr bool kDirect = !kWide && (kWeight == LogitElement::bf16) == (kInput == Element::bf16);
  static constexpr i32 kWeightBytes = kWide ? 4 : 2;
  static constexpr i32 kSlab = 32;
  static constexpr i32 kChunk = router_chunk(kHidden);
  static constexpr i32 kChunks = router_chunks(kHidden);
  static constexpr i32 kWords = kWide ? 8 : 4;  // of a lane's eight weights

  VARMOE_DEVICE static i32 lane() { return static_cast<i32>(threadIdx.x) % 32; }
  VARMOE_DEVICE static i32 row() { return lane() / 4; }
  VARMOE_DEVICE static i32 k_of_lane() { return lane() % 4 * 8; }

  /// The larger part of an fp32 weight as tf32, and what is left.
  VARMOE_DEVICE static void split(u32& high, u32& low, u32 bits) {
    const float value = __uint_as_float(bits);
    high = ptx::to_tf32(value);
    const float rest = value - __uint_as_float(high);
    // An infinite or NaN weight is all in the first part.
    low = (high & 0x7f800000u) == 0x7f800000u ? 0u : ptx::to_tf32(rest);
  }

  template <Element kElement>
  VARMOE_DEVICE static void unpack(u32 (&out)[2], u32 pair) {
    float low, high;
    ptx::unpack2<kElement>(low, high, pair);
    out[0] = __float_as_uint(low);
    out[1] = __float_as_uint(high);
  }

  /// A slab of rows row() and row() + 8 of the weights as the instructions take it.
  struct Rows {
    u32 high[kDirect ? 2 : 4][4];
    u32 low[kWide ? 4 : 1][4];  // of fp32 alone
  };

  VARMOE_DEVICE static Rows rows_of(const u32 (&a)[2][kWords]) {
    Rows rows;
    if constexpr (kDirect) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) rows.high[j][i] = a[i % 2][2 * j + i / 2];
      }
    } else if constexpr (kWide) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) split(rows.high[j][i], rows.low[j][i], a[i % 2][2 * j + i / 2]);
      }
    } else {
      constexpr Element kElement = kWeight == LogitElement::bf16 ? Element::bf16 : Element::fp16;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          u32 pair[2];
          unpack<kElement>(pair, a[r][j]);
          rows.high[j][r] = pair[0];
          rows.high[j][2 + r] = pair[1];
        }
      }
    }
    return rows;
  }

  /// d += one slab's product with the columns `b` of this lane.
  VARMOE_DEVICE static void multiply(float (&d)[4], const Rows& rows, const u32 (&b)[4]) {
    if constexpr (kDirect) {
#pragma unroll
      for (int j = 0; j < 2; ++j) ptx::mma_m16n8k16<kInput>(d, rows.high[j], b[2 * j], b[2 * j + 1]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        u32 column[2];
        unpack<kInput>(column, b[j]);
        ptx::mma_tf32_m16n8k8(d, rows.high[j], column[0], column[1]);
        if constexpr (kWide) ptx::mma_tf32_m16n8k8(d, rows.low[j], column[0], column[1]);
      }
    }
  }

  /// Stores a 16×8 tile of sums: experts from `expert`, tokens from `token`.
  VARMOE_DEVICE static void store(const abi::RouterProductParams& p, i32 partial, const float (&d)[4], i32 expert, i64 token, i64 tokens) {
    float* base = p.partials + static_cast<i64>(partial) * p.tokens * kExperts;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const i64 t = token + lane() % 4 * 2 + i % 2;
      const i32 e = expert + row() + i / 2 * 8;
      if (t < tokens && e < kExperts) base[t * kExperts + e] = d[i];
    }
  }

  VARMOE_DEVICE static i64 tokens_of(const abi::RouterProductParams& p) {
    return p.token_count == nullptr ? p.tokens : min_of(p.tokens, *p.token_count);
  }
};

/// Few tokens: a warp a block, grid (tokens, experts, chunks) in tiles.
template <class Product>
VARMOE_DEVICE void router_gemv(const abi::RouterProductParams& p) {
  using F = RouterFragments<Product>;
  // Slabs that are asked for at once.
  constexpr i32 kBatch = F::kWide ? 4 : 7;
  const i64 first_token = static_cast<i64>(blockIdx.x) * kRouterGemvTokens;
  const i32 first_expert = static_cast<i32>(blockIdx.y) * kRouterGemvExperts;
  const i32 chunk = static_cast<i32>(blockIdx.z);
  ptx::follow_earlier_kernels();
  const i64 tokens = F::tokens_of(p);
  if (first_token >= tokens) return;

  const i64 token = first_token + F::row();
  const char* x = static_cast<const char*>(p.x) + token * p.x_stride * 2;
  const i32 expert = first_expert + F::row();
  const char* w = static_cast<const char*>(p.weight) + static_cast<i64>(expert) * p.weight_stride * F::kWeightBytes;
  const i64 next_rows = 8 * p.weight_stride * F::kWeightBytes;
  const i32 end = min_of(F::kHidden, (chunk + 1) * F::kChunk);
  float sum[4] = {};
#pragma unroll 1
  for (i32 begin = chunk * F::kChunk; begin < end; begin += kBatch * F::kSlab) {
    u32 a[kBatch][2][F::kWords], b[kBatch][4];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const i32 k = begin + i * F::kSlab + F::k_of_lane();
      const bool here = k < end;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int part = 0; part < F::kWords / 4; ++part) {
          Vec16 v{};
          if (here && expert + 8 * r < F::kExperts)
            v = *reinterpret_cast<const Vec16*>(w + r * next_rows + static_cast<i64>(k) * F::kWeightBytes + part * 16);
#pragma unroll
          for (int j = 0; j < 4; ++j) a[i][r][part * 4 + j] = v.v[j];
        }
      }
      Vec16 v{};
      if (here && token < tokens) v = *reinterpret_cast<const Vec16*>(x + static_cast<i64>(k) * 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) b[i][j] = v.v[j];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) F::multiply(sum, F::rows_of(a[i]), b[i]);
  }
  F::store(p, chunk, sum, first_expert, first_token, tokens);
}

/// Many tokens: four warps, each 32 experts × 32 tokens of a 64 × 64 tile; grid (tokens, experts) in tiles, and chunks where `split`.
template <class Product>
struct RouterGemm {
  using F = RouterFragments<Product>;
  static constexpr i32 kThreads = 128;
  static constexpr i32 kStages = 3;
  static constexpr i32 kStageK = kRouterStageK;
  static constexpr i32 kTileTokens = kRouterGemmTokens, kTileExperts = kRouterGemmExperts;
  static constexpr i32 kWeightStage = kTileExperts * kStageK * F::kWeightBytes;
  static constexpr i32 kInputStage = kTileTokens * kStageK * 2;
  static constexpr i32 kStageBytes = kWeightStage + kInputStage;
  static constexpr i32 kSmemBytes = kStages * kStageBytes;
  static constexpr i32 kSlabs = kStageK / F::kSlab;
  static_assert(F::kChunk % kStageK == 0);

  /// Copies one operand's [rows, kStageK] at K = k to [slab][row][32]: a warp's reads of 16 bytes a lane then meet no bank twice.
  template <i32 kRows, i32 kBytes>
  VARMOE_DEVICE static void copy(u32 to, const void* from, i64 stride, i64 first, i64 rows, i32 k) {
    constexpr i32 kPieces = kStageK * kBytes / 16, kPerSlab = F::kSlab * kBytes / 16;
#pragma unroll
    for (i32 i = 0; i < kRows * kPieces / kThreads; ++i) {
      const i32 at = i * kThreads + static_cast<i32>(threadIdx.x);
      const i32 row = at / kPieces, piece = at % kPieces;
      const i32 at_k = k + piece * 16 / kBytes;
      const char* source = static_cast<const char*>(from) + ((first + row) * stride + at_k) * kBytes;
      ptx::cp_async_16(to + ((piece / kPerSlab * kRows + row) * kPerSlab + piece % kPerSlab) * 16, source, first + row < rows && at_k < F::kHidden);
    }
  }

  VARMOE_DEVICE static void run(const abi::RouterProductParams& p, const Vec16* shared) {
    const i64 first_token = static_cast<i64>(blockIdx.x) * kTileTokens;
    const i32 first_expert = static_cast<i32>(blockIdx.y) * kTileExperts;
    ptx::follow_earlier_kernels();
    const i64 tokens = F::tokens_of(p);
    if (first_token >= tokens) return;
    constexpr i32 kChunkStages = F::kChunk / kStageK, kAllStages = ceil_div(F::kHidden, kStageK);
    const i32 partial = p.split != 0 ? static_cast<i32>(blockIdx.z) : 0;
    const i32 begin = partial * kChunkStages;
    const i32 end = p.split != 0 ? min_of(begin + kChunkStages, kAllStages) : kAllStages;

    const u32 base = ptx::shared_address(shared);
    const auto fetch = [&](i32 stage) {
      if (stage < end) {
        const u32 at = base + static_cast<u32>(stage % kStages * kStageBytes);
        copy<kTileExperts, F::kWeightBytes>(at, p.weight, p.weight_stride, first_expert, F::kExperts, stage * kStageK);
        copy<kTileTokens, 2>(at + kWeightStage, p.x, p.x_stride, first_token, tokens, stage * kStageK);
      }
      ptx::cp_async_commit();
    };
#pragma unroll
    for (i32 s = 0; s < kStages - 1; ++s) fetch(begin + s);

    const i32 warp = static_cast<i32>(threadIdx.x) / 32;
    const i32 expert = warp / 2 * 32, token = warp % 2 * 32;
    float sum[2][4][4] = {}, total[2][4][4] = {};
#pragma unroll 1
    for (i32 stage = begin; stage < end; ++stage) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(stage + kStages - 1);
      const Vec16* weights = shared + stage % kStages * (kStageBytes / 16);
      const Vec16* inputs = weights + kWeightStage / 16;
      // Both slabs of fp32 weights at once would take more registers than there are.
#pragma unroll(F::kWide ? 1 : kSlabs)
      for (i32 slab = 0; slab < kSlabs; ++slab) {
        u32 b[4][4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const i32 row = slab * kTileTokens + token + n * 8 + F::row();
          const Vec16 v = inputs[row * 4 + F::lane() % 4];
#pragma unroll
          for (int j = 0; j < 4; ++j) b[n][j] = v.v[j];
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          u32 a[2][F::kWords];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const i32 row = slab * kTileExperts + expert + m * 16 + r * 8 + F::row();
            if constexpr (F::kWide) {
              // Odd rows read their second half first: eight lanes then fall into different banks.
              const i32 from = row * 8 + F::lane() % 4 * 2, odd = F::row() % 2;
              const Vec16 one = weights[from + odd], other = weights[from + (odd ^ 1)];
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                a[r][j] = odd != 0 ? other.v[j] : one.v[j];
                a[r][4 + j] = odd != 0 ? one.v[j] : other.v[j];
              }
            } else {
              const Vec16 v = weights[row * 4 + F::lane() % 4];
#pragma unroll
              for (int j = 0; j < 4; ++j) a[r][j] = v.v[j];
            }
          }
          const typename F::Rows rows = F::rows_of(a);
#pragma unroll
          for (int n = 0; n < 4; ++n) F::multiply(sum[m][n], rows, b[n]);
        }
      }
      if ((stage + 1) % kChunkStages == 0 || stage + 1 == end) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[m][n][i] += sum[m][n][i];
              sum[m][n][i] = 0;
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) F::store(p, partial, total[m][n], first_expert + expert + m * 16, first_token + token + n * 8, tokens);
    }
  }
};

template <class Product>
VARMOE_DEVICE void router_gemm(const abi::RouterProductParams& p) {
  extern __shared__ Vec16 shared[];
  RouterGemm<Product>::run(p, shared);
}

}  // namespace varmoe::moe
