#pragma once

#include "epilogue/activation_gradient.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/grid_dependency.cuh"
#include "ptx/memory.cuh"
#include "schedule/tile_map.cuh"

// Between the two products of the backward pass, for each routed row r of token t with weight w, from g = W2ᵀ·dout_t and z:
// dz = w·g ∘ activation'(z), w·h, and the weight's gradient ⟨g, h⟩ (+ ⟨b2, dout_t⟩). kLanes lanes a row, 16 bytes of each operand
// at a time; sums in one order. Columns from the width to the next multiple of 64 get zeroes, since the products that follow take
// whole stages.
namespace varmoe::moe {

template <class Layer, int kThreads>
class ActivationGradient {
  using Activation = typename Layer::Activation;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kGated = Activation::kGated;
  static constexpr int kTopK = Layer::kTopK;
  static constexpr int kRouted = kTopK - Layer::kSharedExperts;
  static constexpr int kLanes = Layer::kLanes;
  static constexpr int kRowsPerBlock = kThreads / kLanes;

 public:
  VARMOE_DEVICE explicit ActivationGradient(const abi::ActivationGradientParams& params) : p(params) {}

  VARMOE_DEVICE void run() const {
    clear_absent();
    const i32 rows = p.tile_counts->rows;
    const i32 step = static_cast<i32>(gridDim.x) * kRowsPerBlock;
    // All lanes of a warp go round equally often: they sum together.
    for (i32 first = static_cast<i32>(blockIdx.x) * kRowsPerBlock; first < rows; first += step) {
      const i32 row = first + static_cast<i32>(threadIdx.x) / kLanes;
      visit(min_of(row, rows - 1), row < rows);
    }
  }

 private:
  VARMOE_DEVICE void clear_absent() const {
    if (p.topk_gradient == nullptr) return;
    i32 tokens = p.tokens;
    if (p.token_count != nullptr) tokens = max_of(0, min_of(tokens, *p.token_count));
    const i32 step = static_cast<i32>(gridDim.x) * kThreads;
    for (i32 i = static_cast<i32>(blockIdx.x) * kThreads + static_cast<i32>(threadIdx.x); i < tokens * kRouted; i += step) {
      if (p.slot_row[i / kRouted * kTopK + i % kRouted] < 0) p.topk_gradient[i] = 0.0f;
    }
  }

  VARMOE_DEVICE void visit(i32 row, bool valid) const {
    const i32 lane = static_cast<i32>(threadIdx.x) % kLanes;
    i32 expert = 0, width = 0;
    if constexpr (Layer::kUniformWidth > 0 && !Layer::kBias) {
      width = Layer::kUniformWidth;
    } else {
      expert = schedule::upper_position(p.expert_offsets, Layer::kExperts, row);
      width = p.experts[expert].width;
    }
    const u32 source = static_cast<u32>(p.row_source[row]);
    const i32 token = static_cast<i32>(source / kTopK), slot = static_cast<i32>(source % kTopK);
    float weight = 1.0f;
    if (slot < kRouted) {
      weight = p.topk_weights[static_cast<i64>(token) * kRouted + slot];
    } else if constexpr (Layer::kSharedGate) {
      weight = p.shared_weight[token];
    }
    const char* const g = static_cast<const char*>(p.g) + row * p.g_stride * 2;
    const char* const z = static_cast<const char*>(p.z) + row * p.z_stride * 2;
    char* const h = static_cast<char*>(p.weighted_h) + row * p.g_stride * 2;
    char* const dz = static_cast<char*>(p.dz) + row * p.z_stride * 2;
    const i32 whole = ceil_div(width, 64) * 64;  // of one half
    float sum = 0.0f;
    for (i32 c = lane * 8; c < whole; c += kLanes * 8) {
      const Vec16 zero{{0, 0, 0, 0}};
      const bool there = c < width;
      if constexpr (kGated) {
        Vec16 dgate = zero, dup = zero, dh = zero;
        if (there) chunk(sum, weight, ptx::load16_streaming(g + c * 2), ptx::load16_streaming(z + c * 2),
                         ptx::load16_streaming(z + (whole + c) * 2), dgate, dup, dh);
        if (!valid) continue;
        ptx::store16(h + c * 2, dh);
        if constexpr (Layer::kAlternating) {
          // As many zeroes at the end as whole stages of 2·width columns ask for: no more than 2·whole.
          ptx::store16(dz + c * 4, alternate(dgate.v[0], dup.v[0], dgate.v[1], dup.v[1]));
          ptx::store16(dz + c * 4 + 16, alternate(dgate.v[2], dup.v[2], dgate.v[3], dup.v[3]));
        } else {
          ptx::store16(dz + c * 2, dgate);
          ptx::store16(dz + (whole + c) * 2, dup);
        }
      } else {
        Vec16 d = zero, dh = zero, none = zero;
        if (there) chunk(sum, weight, ptx::load16_streaming(g + c * 2), ptx::load16_streaming(z + c * 2), zero, d, none, dh);
        if (!valid) continue;
        ptx::store16(h + c * 2, dh);
        ptx::store16(dz + c * 2, d);
      }
    }
    const bool routed = slot < kRouted;
    const bool wanted = routed ? p.topk_gradient != nullptr : Layer::kSharedGate;
    if constexpr (Layer::kBias) {
      const char* const dout = static_cast<const char*>(p.dout) + token * p.dout_stride * 2;
      const char* const bias = reinterpret_cast<const char*>(p.biases[expert].down);
      for (i32 c = lane * 8; c < Layer::kHidden; c += kLanes * 8) {
        const Vec16 v = ptx::load16(dout + c * 2);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          float d[2], b[2];
          ptx::unpack2<kElement>(d[0], d[1], v.v[i / 2]);
          // A bias is aligned to its element.
          ptx::unpack2<kElement>(b[0], b[1], ptx::load2(bias + (c + i) * 2) | ptx::load2(bias + (c + i + 1) * 2) << 16);
          sum += d[0] * b[0] + d[1] * b[1];
        }
      }
    }
#pragma unroll
    for (int far = kLanes / 2; far > 0; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
    if (lane == 0 && valid && wanted) {
      if (routed) {
        p.topk_gradient[static_cast<i64>(token) * kRouted + slot] = sum;
      } else if constexpr (Layer::kSharedGate) {
        p.shared_gradient[static_cast<i64>(token) * Layer::kSharedExperts + slot - kRouted] = sum;
      }
    }
  }

  /// Eight columns: adds to `sum`, and makes the packed results.
  VARMOE_DEVICE static void chunk(float& sum, float weight, const Vec16& g, const Vec16& gate, const Vec16& up, Vec16& dgate, Vec16& dup,
                                  Vec16& wh) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float dh[2], a[2], b[2], da[2], db[2], h[2];
      ptx::unpack2<kElement>(dh[0], dh[1], g.v[i]);
      ptx::unpack2<kElement>(a[0], a[1], gate.v[i]);
      ptx::unpack2<kElement>(b[0], b[1], up.v[i]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if constexpr (kGated) {
          const activation::GatedGradient d = activation::gradient(Activation{}, a[e], b[e], weight * dh[e]);
          h[e] = d.h;
          da[e] = d.gate;
          db[e] = d.up;
        } else {
          const activation::PlainGradient d = activation::gradient(Activation{}, a[e], weight * dh[e]);
          h[e] = d.h;
          da[e] = d.value;
          db[e] = 0.0f;
        }
        sum += dh[e] * h[e];
      }
      dgate.v[i] = ptx::pack2<kElement>(da[0], da[1]);
      dup.v[i] = ptx::pack2<kElement>(db[0], db[1]);
      wh.v[i] = ptx::pack2<kElement>(weight * h[0], weight * h[1]);
    }
  }

  /// (a0 a1), (b0 b1), (a2 a3), (b2 b3) → a0 b0 a1 b1 a2 b2 a3 b3.
  VARMOE_DEVICE static Vec16 alternate(u32 a, u32 b, u32 c, u32 d) {
    return Vec16{{__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410), __byte_perm(c, d, 0x7632)}};
  }

  const abi::ActivationGradientParams& p;
};

template <class Layer, int kThreads>
VARMOE_DEVICE void activation_gradient(const abi::ActivationGradientParams& p) {
  ptx::follow_earlier_kernels();
  ActivationGradient<Layer, kThreads>(p).run();
}

}  // namespace varmoe::moe
