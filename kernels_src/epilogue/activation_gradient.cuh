#pragma once

#include "epilogue/activation.cuh"
#include "prelude.cuh"

// The activations with their derivatives, in fp32: one overload an activation of epilogue/activation.cuh. At kinks the derivative is 0.
namespace varmoe::activation {

/// h and what dh makes of it.
struct GatedGradient {
  float h, gate, up;
};
struct PlainGradient {
  float h, value;
};

/// value and slope of x·σ(x).
VARMOE_DEVICE PlainGradient silu_gradient(float x) {
  const float s = sigmoid(x);
  return {x * s, s + x * s * (1.0f - s)};
}

/// x·σ(2u): σ + x·σ(1 − σ)·2u′.
VARMOE_DEVICE PlainGradient gelu_tanh_gradient(float x) {
  const float s = sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
  return {x * s, s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x)};
}

/// x·Φ(x): Φ(x) + x·φ(x); Φ as in gelu_erf.
VARMOE_DEVICE PlainGradient gelu_erf_gradient(float x) {
  const float z = 0.70710678118654752f * fabsf(x);
  const float t = reciprocal_approx(1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float e = exp2_approx(-1.4426950408889634f * z * z);
  const float half_erfc = 0.5f * p * t * e;
  const float below = x < 0.0f ? half_erfc : 1.0f - half_erfc;
  return {x * below, below + x * 0.39894228040143268f * e};
}

template <class Plain>
VARMOE_DEVICE GatedGradient of_product(Plain gate, float up, float dh) {
  return {gate.h * up, dh * up * gate.value, dh * gate.h};
}

VARMOE_DEVICE GatedGradient gradient(SiluMul, float gate, float up, float dh) { return of_product(silu_gradient(gate), up, dh); }
VARMOE_DEVICE GatedGradient gradient(GeluTanhMul, float gate, float up, float dh) { return of_product(gelu_tanh_gradient(gate), up, dh); }
VARMOE_DEVICE GatedGradient gradient(GeluErfMul, float gate, float up, float dh) { return of_product(gelu_erf_gradient(gate), up, dh); }
template <u32 kAlphaBits, u32 kLimitBits>
VARMOE_DEVICE GatedGradient gradient(SwigluOai<kAlphaBits, kLimitBits>, float gate, float up, float dh) {
  const float alpha = __uint_as_float(kAlphaBits), limit = __uint_as_float(kLimitBits);
  const float g = gate > limit ? limit : gate;
  const float u = up > limit ? limit : (up < -limit ? -limit : up);
  const float s = sigmoid(alpha * g);
  const float h = g * s * (u + 1.0f);
  const float dgate = gate >= limit ? 0.0f : dh * (u + 1.0f) * (s + alpha * g * s * (1.0f - s));
  const float dup = up >= limit || up <= -limit ? 0.0f : dh * g * s;
  return {h, dgate, dup};
}

VARMOE_DEVICE PlainGradient times(PlainGradient v, float dh) { return {v.h, v.value * dh}; }
VARMOE_DEVICE PlainGradient gradient(Silu, float v, float dh) { return times(silu_gradient(v), dh); }
VARMOE_DEVICE PlainGradient gradient(GeluTanh, float v, float dh) { return times(gelu_tanh_gradient(v), dh); }
VARMOE_DEVICE PlainGradient gradient(GeluErf, float v, float dh) { return times(gelu_erf_gradient(v), dh); }
VARMOE_DEVICE PlainGradient gradient(Relu, float v, float dh) { return {v < 0.0f ? 0.0f : v, v <= 0.0f ? 0.0f : dh}; }
VARMOE_DEVICE PlainGradient gradient(Relu2, float v, float dh) { return {v < 0.0f ? 0.0f : v * v, v <= 0.0f ? 0.0f : 2.0f * v * dh}; }
VARMOE_DEVICE PlainGradient gradient(Identity, float v, float dh) { return {v, dh}; }

}  // namespace varmoe::activation
