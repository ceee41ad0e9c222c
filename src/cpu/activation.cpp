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

/// A function's value and derivative.
struct Point {
  float value, slope;
};

inline Point swish_point(float v, float a) {
  const float s = 1.0f / (1.0f + std::exp(-a * v));
  return {v * s, s + a * v * s * (1.0f - s)};
}
inline Point gelu_tanh_point(float v) {
  constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  const float s = 1.0f / (1.0f + std::exp(-kTwoSqrt2OverPi * (v + 0.044715f * v * v * v)));
  const float bend = s * (1.0f - s);
  // Where the sigmoid has saturated, v² may be infinite.
  if (bend == 0) return {v * s, s};
  return {v * s, s + v * bend * kTwoSqrt2OverPi * (1.0f + 3 * 0.044715f * v * v)};
}
inline Point gelu_erf_point(float v) {
  const float phi = 0.5f * std::erfc(v * -0.70710678118654752f);
  return {v * phi, phi + v * std::exp(-0.5f * v * v) * 0.39894228040143268f};
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

void activation_slopes(Activation activation, const ActivationParams& params, const float* gate,
                       const float* up, std::int64_t count, float* h, float* d_gate, float* d_up) {
  const auto gated = [&](const auto& point_of) {
    for (std::int64_t i = 0; i < count; ++i) {
      const Point p = point_of(gate[i]);
      h[i] = p.value * up[i];
      d_gate[i] = p.slope * up[i];
      d_up[i] = p.value;
    }
  };
  const auto ungated = [&](const auto& point_of) {
    for (std::int64_t i = 0; i < count; ++i) {
      const Point p = point_of(up[i]);
      h[i] = p.value;
      d_up[i] = p.slope;
    }
  };
  const auto silu_point = [](float v) { return swish_point(v, 1.0f); };
  switch (activation) {
    case Activation::silu_mul:
      return gated(silu_point);
    case Activation::gelu_tanh_mul:
      return gated(gelu_tanh_point);
    case Activation::gelu_erf_mul:
      return gated(gelu_erf_point);
    case Activation::swiglu_oai: {
      const float limit = params.limit;
      for (std::int64_t i = 0; i < count; ++i) {
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : (up[i] < -limit ? -limit : up[i]);
        const Point p = swish_point(g, params.alpha);
        h[i] = p.value * (u + 1.0f);
        d_gate[i] = gate[i] >= limit ? 0.0f : p.slope * (u + 1.0f);
        d_up[i] = up[i] >= limit || up[i] <= -limit ? 0.0f : p.value;
      }
      return;
    }
    case Activation::silu:
      return ungated(silu_point);
    case Activation::gelu_tanh:
      return ungated(gelu_tanh_point);
    case Activation::gelu_erf:
      return ungated(gelu_erf_point);
    case Activation::relu:
      return ungated([](float v) { return Point{relu(v), v > 0 ? 1.0f : 0.0f}; });
    case Activation::relu2:
      return ungated([](float v) {
        const float r = relu(v);
        return Point{r * r, 2 * r};
      });
    case Activation::identity:
      return ungated([](float v) { return Point{v, 1.0f}; });
  }
}

}  // namespace varmoe::cpu
