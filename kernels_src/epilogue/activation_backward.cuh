#pragma once

#include "epilogue/activation_gradient.cuh"
#include "epilogue/scale_and_bias.cuh"
#include "prelude.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"

// From fp32 sums of g = W2ᵀ·dout and from z, for a routed row of weight w: dz = w·g ∘ activation'(z), w·h, and what ⟨g, h⟩ gets. Eight
// columns of a row at a time, 16 bytes of each operand. Columns from the width to the next multiple of 64 get zeroes, since the products
// that follow take whole stages.
//
// Of a layer whose weights multiply its input (kForwardWeightOnInput) z = w·u + b1 is made here of what was kept, u = W1·x: then h is not
// weighted, dz still is (W1ᵀ·dz and dz ⊗ x want w once), and the weight's gradient is ⟨dz/w, u⟩, before the product with w, which may be 0.
// Rows of its shared experts are as those of every layer. Where it has biases too, their gradient wants rows of dz without weights.
namespace varmoe::epilogue {

/// Nothing, unless the layer needs it.
template <bool kKept>
struct ExpertAndWidth {
  VARMOE_DEVICE ExpertAndWidth(i32, i32) {}
};
template <>
struct ExpertAndWidth<true> {
  i32 expert, width;
  VARMOE_DEVICE ExpertAndWidth(i32 e, i32 w) : expert(e), width(w) {}
};

/// Eight columns of every kRows-th row from one on; kRows is 0 for one row alone. Layer (emitted): kElement, Forward (the activation of the
/// layer whose gradient this is), kAlternating (dz's gate and up alternate), kStoresH (else there is dz alone), kExperts, kSharedExperts,
/// kForwardWeightOnInput, kForwardBias (of weight on input alone: without it z has its bias).
template <class Layer, int kRows>
class ActivationBackward : ExpertAndWidth<Layer::kForwardWeightOnInput> {
  using Where = ExpertAndWidth<Layer::kForwardWeightOnInput>;

 public:
  using Activation = typename Layer::Forward;
  static constexpr Element kElement = Layer::kElement;
  static constexpr bool kGated = Activation::kGated;
  static constexpr bool kAlternating = kGated && Layer::kAlternating;
  static constexpr bool kOnInput = Layer::kForwardWeightOnInput, kBiased = kOnInput && Layer::kForwardBias;
  /// Of many rows: the next one's z is loaded before a row is stored. Biases and a second dz leave no registers for it.
  static constexpr bool kLoadsAhead = !kBiased;

  /// Eight columns of z; an ungated layer's are `gate`.
  struct Z {
    Vec16 gate, up;
  };

  /// Columns of one half that rows of z, dz and w·h have, zeroes and all.
  VARMOE_DEVICE static i32 whole(i32 width) { return ceil_div(width, 64) * 64; }

  /// Where z of a row has its columns from `column` on.
  VARMOE_DEVICE static const char* z_at(const abi::GemmParams& p, i32 row, i32 column) {
    return static_cast<const char*>(p.z) + row * p.z_stride * 2 + static_cast<i64>(column) * 2;
  }

  VARMOE_DEVICE ActivationBackward(const abi::GemmParams& params, i32 expert, i32 row, i32 column, i32 width)
      : Where(expert, width),
        p(params),
        z_(z_at(p, row, column)),
        h_(static_cast<char*>(p.out) + row * p.out_stride * 2 + static_cast<i64>(column) * 2),
        up_(whole(width) * 2),
        column_(column) {}

  /// z of the next row; zeroes unless `there`. Called before store(), where it loads ahead once more than that.
  VARMOE_DEVICE void load(Z& z, bool there) {
    z.gate = ptx::load16_streaming(z_, there);
    if constexpr (kGated) z.up = ptx::load16_streaming(z_ + up_, there);
    if constexpr (kRows > 0) z_ += p.z_stride * (2 * kRows);
  }

  /// Stores dz and w·h of the next row if `stored`, and adds what these columns give its weight's gradient to `sum`, in ascending order.
  /// Zeroes of g and z make zeroes.
  VARMOE_DEVICE void store(const float (&g)[8], const Z& z, float weight, float& sum, bool stored) {
    if constexpr (kOnInput) {
      store_weighted_input(g, z, weight, sum, stored);
    } else {
      Vec16 gate, up, h;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float a[2], b[2], da[2], db[2], wh[2];
        ptx::unpack2<kElement>(a[0], a[1], z.gate.v[i]);
        if constexpr (kGated) ptx::unpack2<kElement>(b[0], b[1], z.up.v[i]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float dh = g[2 * i + e];
          float value;
          if constexpr (kGated) {
            const activation::GatedGradient d = activation::gradient(Activation{}, a[e], b[e], weight * dh);
            value = d.h;
            da[e] = d.gate;
            db[e] = d.up;
          } else {
            const activation::PlainGradient d = activation::gradient(Activation{}, a[e], weight * dh);
            value = d.h;
            da[e] = d.value;
          }
          wh[e] = weight * value;
          sum += dh * value;
        }
        gate.v[i] = ptx::pack2<kElement>(da[0], da[1]);
        if constexpr (kGated) up.v[i] = ptx::pack2<kElement>(db[0], db[1]);
        h.v[i] = ptx::pack2<kElement>(wh[0], wh[1]);
      }
      if (stored) put(gate, up, h);
    }
    if constexpr (kRows > 0) h_ += p.out_stride * (2 * kRows);
  }

  /// Stores zeroes there instead.
  VARMOE_DEVICE void store_zeroes() const {
    const Vec16 zero{{0, 0, 0, 0}};
    put(zero, zero, zero);
    if constexpr (kBiased) {
      for (int i = 0; i < 4; ++i) put_unweighted(i, 0, 0);
    }
  }

 private:
  VARMOE_DEVICE void store_weighted_input(const float (&g)[8], const Z& z, float weight, float& sum, bool stored) const {
    // Values chosen, not branches: they would stand between accumulators and their next product.
    const bool routed = Layer::kSharedExperts == 0 || Where::expert < Layer::kExperts - Layer::kSharedExperts;
    const float input = routed ? weight : 1.0f, output = routed ? 1.0f : weight;
    Vec16 gate, up, h;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float a[2], b[2], a_bias[2] = {}, b_bias[2] = {}, da[2], db[2], value[2];
      ptx::unpack2<kElement>(a[0], a[1], z.gate.v[i]);
      if constexpr (kGated) ptx::unpack2<kElement>(b[0], b[1], z.up.v[i]);
      if constexpr (kBiased) {
        const abi::ExpertBias& bias = p.biases[Where::expert];
        // An ungated layer's z is `gate` here, its bias `up`.
        load_biases(a_bias, kGated ? bias.gate : bias.up, bias.fc1_stride, 2 * i);
        if constexpr (kGated) load_biases(b_bias, bias.up, bias.fc1_stride, 2 * i);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float dh = g[2 * i + e];
        const float first = of_input(a[e], input, a_bias[e]);
        if constexpr (kGated) {
          const activation::GatedGradient d = activation::gradient(Activation{}, first, of_input(b[e], input, b_bias[e]), output * dh);
          value[e] = d.h;
          da[e] = d.gate;
          db[e] = d.up;
          sum += routed ? d.gate * a[e] + d.up * b[e] : dh * d.h;
        } else {
          const activation::PlainGradient d = activation::gradient(Activation{}, first, output * dh);
          value[e] = d.h;
          da[e] = d.value;
          sum += routed ? d.value * a[e] : dh * d.h;
        }
      }
      gate.v[i] = ptx::pack2<kElement>(input * da[0], input * da[1]);
      if constexpr (kGated) up.v[i] = ptx::pack2<kElement>(input * db[0], input * db[1]);
      h.v[i] = ptx::pack2<kElement>(output * value[0], output * value[1]);
      if constexpr (kBiased) {
        if (stored) put_unweighted(i, ptx::pack2<kElement>(da[0], da[1]), kGated ? ptx::pack2<kElement>(db[0], db[1]) : 0u);
      }
    }
    if (stored) put(gate, up, h);
  }

  /// As the forward's fc1 makes what its activation is applied to.
  VARMOE_DEVICE static float of_input(float product, float weight, float bias) {
    const float z = scaled(product, weight);
    return kBiased ? biased(z, bias) : z;
  }

  /// Of these columns' i-th and the next; 0 beyond the width, which columns have by eights.
  VARMOE_DEVICE void load_biases(float (&bias)[2], u64 from, i64 stride, int i) const {
    const i64 first = min_of(column_, Where::width - 8) + i;
    const u32 bits = load_bias(from, first * stride, true) | load_bias(from, (first + 1) * stride, true) << 16;
    ptx::unpack2<kElement>(bias[0], bias[1], column_ < Where::width ? bits : 0u);
  }

  VARMOE_DEVICE void put(const Vec16& gate, const Vec16& up, const Vec16& h) const {
    if constexpr (Layer::kStoresH) ptx::store16(h_, h);
    // Where z is, but for the rows that load() is ahead (this one's, and the next): an address less to keep.
    char* const dz = const_cast<char*>(z_) + (static_cast<char*>(p.dz) - static_cast<const char*>(p.z) - p.z_stride * (2 * kLoaded * kRows));
    if constexpr (kAlternating) {
      // As many zeroes at the end as whole stages of 2·width columns ask for: no more than twice those of one half.
      ptx::store16(dz + column_ * 2, alternate(gate.v[0], up.v[0], gate.v[1], up.v[1]));
      ptx::store16(dz + column_ * 2 + 16, alternate(gate.v[2], up.v[2], gate.v[3], up.v[3]));
    } else {
      ptx::store16(dz, gate);
      if constexpr (kGated) ptx::store16(dz + up_, up);
    }
  }

  /// Columns 2·i and 2·i + 1 of the eight, as soon as they are there: registers are short.
  VARMOE_DEVICE void put_unweighted(int i, u32 gate, u32 up) const {
    char* const dz = const_cast<char*>(z_) + (static_cast<char*>(p.unweighted_dz) - static_cast<const char*>(p.z) - p.z_stride * (2 * kLoaded * kRows)) + 4 * i;
    if constexpr (kAlternating) {
      ptx::store4(dz + column_ * 2 + 4 * i, __byte_perm(gate, up, 0x5410));
      ptx::store4(dz + column_ * 2 + 4 * i + 4, __byte_perm(gate, up, 0x7632));
    } else {
      ptx::store4(dz, gate);
      if constexpr (kGated) ptx::store4(dz + up_, up);
    }
  }

  /// (a0 a1), (b0 b1), (a2 a3), (b2 b3) → a0 b0 a1 b1 a2 b2 a3 b3.
  VARMOE_DEVICE static Vec16 alternate(u32 a, u32 b, u32 c, u32 d) {
    return Vec16{{__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410), __byte_perm(c, d, 0x7632)}};
  }

  static constexpr int kLoaded = kLoadsAhead ? 2 : 1;  // rows that z_ has gone by

  const abi::GemmParams& p;
  const char* z_;
  char* h_;
  i32 up_;      // bytes from gate's columns to up's
  i32 column_;  // where gate and up alternate
};

}  // namespace varmoe::epilogue
