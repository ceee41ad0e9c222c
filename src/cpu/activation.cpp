#include "cpu/activation.hpp"

#include <cmath>

namespace varmoe::cpu {

namespace {

// v · sigmoid(a·v). For v → −∞ exp overflows to infinity and the quotient is −0, as it should be.
inline float swish(float v, float a) {
  return v / (1.0f + std::exp(-a * v));
}
inline float silu(float v) {
  return v / (1.0f + std::exp(-v));
}

// 0.5·v·(1 + tanh u) = v · sigmoid(2u), without the cancellation for negative v.
inline float gelu_tanh(float v) {
  constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  return v / (1.0f + std::exp(-kTwoSqrt2OverPi * (v + 0.044715f * v * v * v)));
}

// erfc instead of 1 + erf for the same reason.
inline float gelu_erf(float v) {
  return 0.5f * v * std::erfc(v * -0.70710678118654752f);
}

// Comparisons are turned so that NaN goes through.
inline float relu(float v) {
  return v < 0 ? 0.0f : v;
}

template <class F>
void each(const float* gate, const float* up, std::int64_t step, std::int64_t count, float* out, const F& f) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = f(gate[i * step], up[i * step]);
}
template <class F>
void each(const float* up, std::int64_t step, std::int64_t count, float* out, const F& f) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = f(up[i * step]);
}

}  // namespace

void apply_activation(Activation activation, const ActivationParams& params, const float* gate,
                      const float* up, std::int64_t step, std::int64_t count, float* out) {
  switch (activation) {
    case Activation::silu_mul:
      return each(gate, up, step, count, out, [](float g, float u) { return silu(g) * u; });
    case Activation::gelu_tanh_mul:
      return each(gate, up, step, count, out, [](float g, float u) { return gelu_tanh(g) * u; });
    case Activation::gelu_erf_mul:
      return each(gate, up, step, count, out, [](float g, float u) { return gelu_erf(g) * u; });
    case Activation::swiglu_oai:
      return each(gate, up, step, count, out, [alpha = params.alpha, limit = params.limit](float g, float u) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : (u < -limit ? -limit : u);
        return swish(g, alpha) * (u + 1.0f);
      });
    case Activation::silu:
      return each(up, step, count, out, [](float v) { return silu(v); });
    case Activation::gelu_tanh:
      return each(up, step, count, out, [](float v) { return gelu_tanh(v); });
    case Activation::gelu_erf:
      return each(up, step, count, out, [](float v) { return gelu_erf(v); });
    case Activation::relu:
      return each(up, step, count, out, [](float v) { return relu(v); });
    case Activation::relu2:
      return each(up, step, count, out, [](float v) {
        const float r = relu(v);
        return r * r;
      });
    case Activation::identity:
      return each(up, step, count, out, [](float v) { return v; });
  }
}

}  // namespace varmoe::cpu
