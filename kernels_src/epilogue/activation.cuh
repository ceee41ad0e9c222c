#pragma once

#include "prelude.cuh"

// The functions between fc1 and fc2, in fp32. One struct an activation: kGated says whether it takes gate and up (apply(g, u)) or
// one value (apply(v)). The emitter names the struct; the table is activation_info (src/model/layer_spec.cpp).
namespace varmoe::activation {

VARMOE_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

VARMOE_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / (1 + e^−x); e^−x overflows to +inf for very negative x and gives 0, as it should.
VARMOE_DEVICE float sigmoid(float x) { return reciprocal_approx(1.0f + exp2_approx(-1.4426950408889634f * x)); }

VARMOE_DEVICE float silu(float x) { return x * sigmoid(x); }

/// 0.5·x·(1 + tanh(u)) = x·σ(2u), u = √(2/π)·(x + 0.044715·x³) (Hendrycks & Gimpel, arXiv 1606.08415).
VARMOE_DEVICE float gelu_tanh(float x) {
  const float twice_u = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x * sigmoid(twice_u);
}

/// x·Φ(x) = x·(1 − erfc(z)/2) for x ≥ 0, x·erfc(z)/2 below, z = |x|/√2. erfc by Abramowitz & Stegun 7.1.26 (absolute error below
/// 1.5e−7, far under a rounding of h); erff's two polynomials, 128 times in an epilogue, took as long to compile as the kernel.
VARMOE_DEVICE float gelu_erf(float x) {
  const float z = 0.70710678118654752f * fabsf(x);
  const float t = reciprocal_approx(1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float half_erfc = 0.5f * p * t * exp2_approx(-1.4426950408889634f * z * z);
  return x * (x < 0.0f ? half_erfc : 1.0f - half_erfc);
}

struct SiluMul {
  static constexpr bool kGated = true;
  VARMOE_DEVICE float operator()(float gate, float up) const { return silu(gate) * up; }
};
struct GeluTanhMul {
  static constexpr bool kGated = true;
  VARMOE_DEVICE float operator()(float gate, float up) const { return gelu_tanh(gate) * up; }
};
struct GeluErfMul {
  static constexpr bool kGated = true;
  VARMOE_DEVICE float operator()(float gate, float up) const { return gelu_erf(gate) * up; }
};
/// gpt-oss: the gate is clamped from above, up on both sides; parameters as bit patterns of floats.
template <u32 kAlphaBits, u32 kLimitBits>
struct SwigluOai {
  static constexpr bool kGated = true;
  VARMOE_DEVICE float operator()(float gate, float up) const {
    const float alpha = __uint_as_float(kAlphaBits), limit = __uint_as_float(kLimitBits);
    // Comparisons, not fminf: a NaN passes through.
    const float g = gate > limit ? limit : gate;
    const float u = up > limit ? limit : (up < -limit ? -limit : up);
    return g * sigmoid(alpha * g) * (u + 1.0f);
  }
};
struct Silu {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return silu(v); }
};
struct GeluTanh {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return gelu_tanh(v); }
};
struct GeluErf {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return gelu_erf(v); }
};
struct Relu {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return v < 0.0f ? 0.0f : v; }
};
struct Relu2 {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return v < 0.0f ? 0.0f : v * v; }
};
struct Identity {
  static constexpr bool kGated = false;
  VARMOE_DEVICE float operator()(float v) const { return v; }
};

}  // namespace varmoe::activation
