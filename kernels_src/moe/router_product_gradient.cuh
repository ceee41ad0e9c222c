#pragma once

#include "moe/logit_element.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/mma_tf32.cuh"

// The backward pass of the router's product: dx = dlogits · W and dW = dlogitsᵀ · x, in fp32. One tiled kernel for both: tiles of 64 × 64, sums over stages of
// 32 experts or tokens, which lie as fp32 in shared memory. There the tensor cores' operands are read one by one, so that it is of no consequence which way a matrix
// lies. dlogits and an fp32 weight are two tf32 parts each. Every sum has one order; one block owns a tile, whatever there is to sum up.
namespace varmoe::moe {

template <class Product, bool kOfWeight>
struct RouterProductGradient {
  static constexpr i32 kThreads = 128;
  static constexpr i32 kTile = 64, kStage = 32;
  static constexpr i32 kHidden = Product::kHidden, kExperts = Product::kExperts;
  /// Stages that one accumulator sums: tensor cores cut what they add, so a long sum is one of short ones.
  static constexpr i32 kStagesOfSum = 8;
  /// The right operand: x, or W.
  static constexpr LogitElement kRight = kOfWeight ? (Product::kInput == Element::bf16 ? LogitElement::bf16 : LogitElement::fp16) : Product::kWeight;
  static constexpr bool kRightInParts = kRight == LogitElement::fp32;
  static constexpr i32 kRightBytes = kRightInParts ? 4 : 2;
  static constexpr LogitElement kOut =
      kOfWeight ? Product::kWeightGradient : (Product::kInput == Element::bf16 ? LogitElement::bf16 : LogitElement::fp16);
  /// dlogits in shared memory as they lie: rows of experts. Pitches that let the reads of a fragment meet no bank twice.
  static constexpr i32 kLeftInner = kOfWeight ? kTile : kStage, kLeftOuter = kOfWeight ? kStage : kTile;
  static constexpr i32 kLeftPitch = kLeftInner + (kOfWeight ? 8 : 4), kRightPitch = kTile + 8;
  static constexpr i32 kLeftLoads = kTile * kStage / kThreads;
  static constexpr i32 kPieces = kTile * kStage / 8 / kThreads;  // of eight elements of the right operand
  static constexpr i32 kWords = kRightBytes * 8 / 4;

  struct Shared {
    float left[2][kLeftOuter * kLeftPitch];
    Vec16 right[2][kStage * kRightPitch / 4];
  };
  struct Loaded {
    float left[kLeftLoads];
    u32 right[kPieces][kWords];
  };

  VARMOE_DEVICE static i32 thread() { return static_cast<i32>(threadIdx.x); }
  VARMOE_DEVICE static i32 lane() { return thread() % 32; }

  VARMOE_DEVICE static void split(u32& high, u32& low, float value) {
    high = ptx::to_tf32(value);
    const float rest = value - __uint_as_float(high);
    // An infinite or NaN number is all in the first part.
    low = (high & 0x7f800000u) == 0x7f800000u ? 0u : ptx::to_tf32(rest);
  }

  VARMOE_DEVICE static void fetch(Loaded& to, const abi::RouterProductGradientParams& p, i64 first_row, i32 first_column, i64 first_k, i64 tokens) {
#pragma unroll
    for (i32 i = 0; i < kLeftLoads; ++i) {
      const i32 at = i * kThreads + thread(), inner = at % kLeftInner, outer = at / kLeftInner;
      const i64 token = (kOfWeight ? first_k : first_row) + outer, expert = (kOfWeight ? first_row : first_k) + inner;
      to.left[i] = token < tokens && expert < kExperts ? p.dlogits[token * p.dlogit_stride + expert] : 0.0f;
    }
    const void* right = kOfWeight ? p.x : p.weight;
    const i64 stride = kOfWeight ? p.x_stride : p.weight_stride, rows = kOfWeight ? tokens : kExperts;
#pragma unroll
    for (i32 i = 0; i < kPieces; ++i) {
      const i32 at = i * kThreads + thread(), column = first_column + at % (kTile / 8) * 8;
      const i64 row = first_k + at / (kTile / 8);
      const bool there = row < rows && column < kHidden && (!kOfWeight || p.dweight != nullptr);
#pragma unroll
      for (i32 part = 0; part < kWords / 4; ++part) {
        Vec16 v{};
        if (there) v = reinterpret_cast<const Vec16*>(static_cast<const char*>(right) + (row * stride + column) * kRightBytes)[part];
#pragma unroll
        for (int j = 0; j < 4; ++j) to.right[i][part * 4 + j] = v.v[j];
      }
    }
  }

  VARMOE_DEVICE static void put(Shared& s, i32 buffer, const Loaded& from) {
#pragma unroll
    for (i32 i = 0; i < kLeftLoads; ++i) {
      const i32 at = i * kThreads + thread();
      s.left[buffer][at / kLeftInner * kLeftPitch + at % kLeftInner] = from.left[i];
    }
#pragma unroll
    for (i32 i = 0; i < kPieces; ++i) {
      const i32 at = i * kThreads + thread();
      Vec16* to = &s.right[buffer][(at / (kTile / 8) * kRightPitch + at % (kTile / 8) * 8) / 4];
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        Vec16 v;
        if constexpr (kRightInParts) {
#pragma unroll
          for (int j = 0; j < 4; ++j) v.v[j] = from.right[i][half * 4 + j];
        } else {
          constexpr Element kElement = kRight == LogitElement::bf16 ? Element::bf16 : Element::fp16;
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float low, high;
            ptx::unpack2<kElement>(low, high, from.right[i][half * 2 + j]);
            v.v[2 * j] = __float_as_uint(low);
            v.v[2 * j + 1] = __float_as_uint(high);
          }
        }
        to[half] = v;
      }
    }
  }

  /// One stage's product into each warp's 32 × 32.
  VARMOE_DEVICE static void multiply(float (&sum)[2][4][4], const Shared& s, i32 buffer, i32 row, i32 column) {
    const float* left = s.left[buffer];
    const float* right = reinterpret_cast<const float*>(s.right[buffer]);
    const i32 g = lane() / 4, t = lane() % 4;
    // A whole stage of fp32 weights at once would take more registers than there are.
#pragma unroll(kRightInParts ? 1 : kStage / 8)
    for (i32 k = 0; k < kStage; k += 8) {
      u32 b[4][2], b_low[kRightInParts ? 4 : 1][2];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float value = right[(k + t + 4 * i) * kRightPitch + column + n * 8 + g];
          if constexpr (kRightInParts) {
            split(b[n][i], b_low[n][i], value);
          } else {
            b[n][i] = __float_as_uint(value);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        u32 a[4], a_low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const i32 at_row = row + m * 16 + g + i % 2 * 8, at_k = k + t + i / 2 * 4;
          split(a[i], a_low[i], kOfWeight ? left[at_k * kLeftPitch + at_row] : left[at_row * kLeftPitch + at_k]);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          ptx::mma_tf32_m16n8k8(sum[m][n], a, b[n][0], b[n][1]);
          ptx::mma_tf32_m16n8k8(sum[m][n], a_low, b[n][0], b[n][1]);
          if constexpr (kRightInParts) ptx::mma_tf32_m16n8k8(sum[m][n], a, b_low[n][0], b_low[n][1]);
        }
      }
    }
  }

  /// Two neighbouring results of one row.
  VARMOE_DEVICE static void store(void* base, i64 at, float first, float second, bool accumulate) {
    if constexpr (kOut == LogitElement::fp32) {
      float* to = static_cast<float*>(base) + at;
      to[0] = accumulate ? to[0] + first : first;
      to[1] = accumulate ? to[1] + second : second;
    } else {
      constexpr Element kElement = kOut == LogitElement::bf16 ? Element::bf16 : Element::fp16;
      u32* to = reinterpret_cast<u32*>(static_cast<unsigned short*>(base) + at);
      if (accumulate) {
        float low, high;
        ptx::unpack2<kElement>(low, high, *to);
        first += low;
        second += high;
      }
      *to = ptx::pack2<kElement>(first, second);
    }
  }

  VARMOE_DEVICE static void run(const abi::RouterProductGradientParams& p, Shared& s) {
    const i64 first_row = static_cast<i64>(kOfWeight ? blockIdx.y : blockIdx.x) * kTile;
    const i32 first_column = static_cast<i32>(kOfWeight ? blockIdx.x : blockIdx.y) * kTile;
    ptx::follow_earlier_kernels();
    const i64 tokens = p.token_count == nullptr ? p.tokens : max_of(0, min_of(p.tokens, *p.token_count));
    const i64 rows = kOfWeight ? kExperts : tokens, depth = kOfWeight ? tokens : kExperts;
    if (first_row >= rows) return;
    const i32 stages = static_cast<i32>((depth + kStage - 1) / kStage);
    const i32 warp = thread() / 32, row = warp / 2 * 32, column = warp % 2 * 32;
    // Of the first column of blocks, a thread an expert.
    const bool sums_bias = kOfWeight && p.dlogit_bias != nullptr && first_column == 0 && thread() < kTile;
    float bias = 0;

    float total[2][4][4] = {}, sum[2][4][4] = {};
    Loaded next;
    if (stages > 0) {
      fetch(next, p, first_row, first_column, 0, tokens);
      put(s, 0, next);
    }
    __syncthreads();
#pragma unroll 1
    for (i32 stage = 0; stage < stages; ++stage) {
      if (stage + 1 < stages) fetch(next, p, first_row, first_column, static_cast<i64>(stage + 1) * kStage, tokens);
      multiply(sum, s, stage % 2, row, column);
      if constexpr (kOfWeight) {
        if (sums_bias) {
          float part = 0;
#pragma unroll 8
          for (i32 k = 0; k < kStage; ++k) part += s.left[stage % 2][k * kLeftPitch + thread()];
          bias += part;
        }
      }
      if ((stage + 1) % kStagesOfSum == 0 || stage + 1 == stages) {
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
      if (stage + 1 < stages) put(s, (stage + 1) % 2, next);
      __syncthreads();
    }

    void* out = kOfWeight ? p.dweight : p.dx;
    const i64 stride = kOfWeight ? p.dweight_stride : p.dx_stride;
    if (out != nullptr) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const i64 at_row = first_row + row + m * 16 + i * 8 + lane() / 4;
            const i32 at_column = first_column + column + n * 8 + lane() % 4 * 2;
            if (at_row < rows && at_column < kHidden)
              store(out, at_row * stride + at_column, total[m][n][2 * i], total[m][n][2 * i + 1], p.accumulate != 0);
          }
        }
      }
    }
    if (sums_bias && first_row + thread() < kExperts) {
      float* to = p.dlogit_bias + first_row + thread();
      *to = p.accumulate != 0 ? *to + bias : bias;
    }
  }
};

/// Grid (tokens, hidden) in tiles.
template <class Product>
VARMOE_DEVICE void router_dx(const abi::RouterProductGradientParams& p) {
  __shared__ typename RouterProductGradient<Product, false>::Shared shared;
  RouterProductGradient<Product, false>::run(p, shared);
}

/// Grid (hidden, experts) in tiles.
template <class Product>
VARMOE_DEVICE void router_dweight(const abi::RouterProductGradientParams& p) {
  __shared__ typename RouterProductGradient<Product, true>::Shared shared;
  RouterProductGradient<Product, true>::run(p, shared);
}

}  // namespace varmoe::moe
