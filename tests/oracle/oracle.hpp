#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/parallel.hpp"
#include "varmoe/layer_spec.hpp"

/// What a Mixture-of-Experts layer computes, as a plain fp64 loop with the rounding points of the library's
/// conventions:
///
///   fc1 accumulates (weight on input: is multiplied by the routing weight) and gets its bias; the activation
///   is applied; h is rounded ONCE to the activation dtype; fc2 accumulates, gets its bias and is multiplied
///   by the routing weight (unless fc1 was); the row is rounded to the output dtype (where rows are stored
///   before the combine); the combine sums in ascending k; the old `out` is added when accumulating; one
///   final rounding to the output dtype. Shared experts come after the routed ones, each with weight 1 or
///   with the token's gate, sigmoid(x · w_g).
///
/// Shares no code with src/: it reads the spec's enumerators and nothing else of the library.
namespace oracle {

/// A weight matrix: element (output o, reduction index k) lies at data[o * out_stride + k * k_stride]. Every
/// layout, gate order and slice is such a view.
struct OracleMatrix {
  const std::uint16_t* data = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t k_stride = 0;
};

/// A vector: element i lies at data[i · stride]. Null: zeroes.
struct OracleVector {
  const std::uint16_t* data = nullptr;
  std::int64_t stride = 1;
};

struct OracleExpert {
  std::int64_t width = 0;
  OracleMatrix gate;  ///< [width, H]; unread when the activation is not gated
  OracleMatrix up;    ///< [width, H]
  OracleMatrix down;  ///< [H, width]
  OracleVector gate_bias = {}, up_bias = {}, down_bias = {};
};

struct OracleLayer {
  std::int64_t hidden_size = 0;
  std::int64_t top_k = 0;
  varmoe::Activation activation = varmoe::Activation::silu_mul;
  varmoe::ActivationParams params;
  varmoe::DType dtype = varmoe::DType::bf16;
  std::vector<OracleExpert> experts;
  bool round_rows = true;                      ///< rows are stored (rounded) before the combine
  bool round_output = true;                    ///< false: the sum before its final rounding
  std::vector<OracleExpert> shared{};          ///< every token visits them, after its routed ones
  const std::uint16_t* shared_gate = nullptr;  ///< w_g [H]; null: weight 1
  bool weight_on_input = false;
};

/// One forward's inputs, host memory.
struct OracleCall {
  const std::uint16_t* x = nullptr;
  std::int64_t x_stride = 0;               ///< 0: H
  const std::int64_t* ids = nullptr;       ///< [T, k]; outside 0 … E−1 contributes zero
  const float* weights = nullptr;          ///< [T, k]
  const std::uint16_t* old_out = nullptr;  ///< null: out is written, else accumulated into
  std::int64_t out_stride = 0;             ///< of old_out; 0: H
  const std::int32_t* expert_map =
      nullptr;  ///< null, or [global_experts]: ids index it, and it names experts
  std::int64_t global_experts = 0;
};

inline bool is_gated(varmoe::Activation a) {
  switch (a) {
    case varmoe::Activation::silu_mul:
    case varmoe::Activation::gelu_tanh_mul:
    case varmoe::Activation::gelu_erf_mul:
    case varmoe::Activation::swiglu_oai:
      return true;
    case varmoe::Activation::silu:
    case varmoe::Activation::gelu_tanh:
    case varmoe::Activation::gelu_erf:
    case varmoe::Activation::relu:
    case varmoe::Activation::relu2:
    case varmoe::Activation::identity:
      return false;
  }
  throw std::logic_error("oracle: unknown activation");
}

/// The activation in fp64. `gate` is ignored when it is not gated.
inline double activate(varmoe::Activation a, const varmoe::ActivationParams& p, double gate, double up) {
  const auto silu = [](double v) { return v / (1.0 + std::exp(-v)); };
  const auto gelu_tanh = [](double v) {
    const double sqrt_2_over_pi = 0.79788456080286535588;
    return 0.5 * v * (1.0 + std::tanh(sqrt_2_over_pi * (v + 0.044715 * v * v * v)));
  };
  const auto gelu_erf = [](double v) { return 0.5 * v * std::erfc(-v * 0.70710678118654752440); };
  switch (a) {
    case varmoe::Activation::silu_mul:
      return silu(gate) * up;
    case varmoe::Activation::gelu_tanh_mul:
      return gelu_tanh(gate) * up;
    case varmoe::Activation::gelu_erf_mul:
      return gelu_erf(gate) * up;
    case varmoe::Activation::swiglu_oai: {
      const double limit = p.limit, alpha = p.alpha;
      const double g = gate > limit ? limit : gate;
      const double u = up > limit ? limit : (up < -limit ? -limit : up);
      return g / (1.0 + std::exp(-alpha * g)) * (u + 1.0);
    }
    case varmoe::Activation::silu:
      return silu(up);
    case varmoe::Activation::gelu_tanh:
      return gelu_tanh(up);
    case varmoe::Activation::gelu_erf:
      return gelu_erf(up);
    case varmoe::Activation::relu:
      return up < 0 ? 0.0 : up;
    case varmoe::Activation::relu2:
      return up < 0 ? 0.0 : up * up;
    case varmoe::Activation::identity:
      return up;
  }
  throw std::logic_error("oracle: unknown activation");
}

namespace detail {

/// 16 bits → number, by a table made with decode().
inline const double* decode_table(varmoe::DType dtype) {
  static const auto make = [](varmoe::DType t) {
    std::vector<double> table(65536);
    for (int i = 0; i < 65536; ++i)
      table[static_cast<std::size_t>(i)] = decode(t, static_cast<std::uint16_t>(i));
    return table;
  };
  static const std::vector<double> bf16 = make(varmoe::DType::bf16), fp16 = make(varmoe::DType::fp16);
  return (dtype == varmoe::DType::bf16 ? bf16 : fp16).data();
}

/// result[o] = Σ_k a[k] · w(first + o, k), each sum in ascending k.
inline void product(const double* table, const OracleMatrix& w, const double* a, std::int64_t depth,
                    std::int64_t first, std::int64_t count, double* result) {
  for (std::int64_t o = 0; o < count; ++o) result[o] = 0;
  const std::uint16_t* base = w.data + first * w.out_stride;
  if (w.out_stride <= w.k_stride) {  // walk along the outputs
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::uint16_t* row = base + k * w.k_stride;
      for (std::int64_t o = 0; o < count; ++o) result[o] += a[k] * table[row[o * w.out_stride]];
    }
    return;
  }
  std::int64_t o = 0;
  for (; o + 4 <= count; o += 4) {  // four sums at once: they do not wait for each other
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    const std::uint16_t* r0 = base + o * w.out_stride;
    const std::uint16_t *r1 = r0 + w.out_stride, *r2 = r1 + w.out_stride, *r3 = r2 + w.out_stride;
    for (std::int64_t k = 0; k < depth; ++k) {
      const std::int64_t at = k * w.k_stride;
      s0 += a[k] * table[r0[at]];
      s1 += a[k] * table[r1[at]];
      s2 += a[k] * table[r2[at]];
      s3 += a[k] * table[r3[at]];
    }
    result[o] = s0, result[o + 1] = s1, result[o + 2] = s2, result[o + 3] = s3;
  }
  for (; o < count; ++o) {
    for (std::int64_t k = 0; k < depth; ++k)
      result[o] += a[k] * table[base[o * w.out_stride + k * w.k_stride]];
  }
}

}  // namespace detail

/// The output rows of `tokens` (any sample of 0 … T−1, any order), row after row, H numbers each. Only these
/// tokens' inputs and their experts' weights are read. `threads` 0: one per core; the result does not depend
/// on it.
inline std::vector<double> oracle_forward(const OracleLayer& layer, const OracleCall& call,
                                          std::span<const std::int64_t> tokens, int threads = 0) {
  struct Route {
    std::int64_t token;
    const OracleExpert* expert;
    double weight;
    bool shared;
    std::vector<double> x, h, y;
  };
  const std::int64_t H = layer.hidden_size, k = layer.top_k;
  const auto E = static_cast<std::int64_t>(layer.experts.size());
  const std::int64_t x_stride = call.x_stride != 0 ? call.x_stride : H;
  const std::int64_t out_stride = call.out_stride != 0 ? call.out_stride : H;
  const double* table = detail::decode_table(layer.dtype);
  const bool gated = is_gated(layer.activation);
  const auto bias = [table](const OracleVector& v, std::int64_t i) {
    return v.data != nullptr ? table[v.data[i * v.stride]] : 0.0;
  };

  std::vector<Route> routes;
  std::vector<std::size_t> first_route;  // of each sampled token, and the end
  for (const std::int64_t t : tokens) {
    first_route.push_back(routes.size());
    for (std::int64_t j = 0; j < k; ++j) {
      std::int64_t e = call.ids[t * k + j];
      if (call.expert_map != nullptr) e = e >= 0 && e < call.global_experts ? call.expert_map[e] : -1;
      if (e < 0 || e >= E) continue;
      routes.push_back({t,
                        &layer.experts[static_cast<std::size_t>(e)],
                        static_cast<double>(call.weights[t * k + j]),
                        false,
                        {},
                        {},
                        {}});
    }
    double gate = 1;
    if (layer.shared_gate != nullptr) {
      double sum = 0;
      for (std::int64_t i = 0; i < H; ++i)
        sum += table[call.x[t * x_stride + i]] * table[layer.shared_gate[i]];
      gate = 1 / (1 + std::exp(-sum));
    }
    for (const OracleExpert& expert : layer.shared) routes.push_back({t, &expert, gate, true, {}, {}, {}});
  }
  first_route.push_back(routes.size());
  for (auto& r : routes) {
    r.x.resize(static_cast<std::size_t>(H));
    for (std::int64_t i = 0; i < H; ++i)
      r.x[static_cast<std::size_t>(i)] = table[call.x[r.token * x_stride + i]];
    r.h.resize(static_cast<std::size_t>(r.expert->width));
    r.y.resize(static_cast<std::size_t>(H));
  }

  constexpr std::int64_t kChunk = 64;  // outputs a work item computes
  struct Item {
    std::size_t route;
    std::int64_t first, count;
  };
  const auto items_of = [&](auto outputs_of) {
    std::vector<Item> items;
    for (std::size_t r = 0; r < routes.size(); ++r) {
      const std::int64_t outputs = outputs_of(routes[r]);
      for (std::int64_t f = 0; f < outputs; f += kChunk)
        items.push_back({r, f, std::min(kChunk, outputs - f)});
    }
    return items;
  };

  const auto fc1 = items_of([](const Route& r) { return static_cast<std::int64_t>(r.h.size()); });
  parallel_for(static_cast<std::int64_t>(fc1.size()), threads, [&](std::int64_t i) {
    const Item& item = fc1[static_cast<std::size_t>(i)];
    Route& r = routes[item.route];
    const OracleExpert& expert = *r.expert;
    double gate[kChunk] = {}, up[kChunk];
    if (gated) detail::product(table, expert.gate, r.x.data(), H, item.first, item.count, gate);
    detail::product(table, expert.up, r.x.data(), H, item.first, item.count, up);
    const double weight = layer.weight_on_input && !r.shared ? r.weight : 1.0;
    for (std::int64_t o = 0; o < item.count; ++o) {
      gate[o] = gate[o] * weight + bias(expert.gate_bias, item.first + o);
      up[o] = up[o] * weight + bias(expert.up_bias, item.first + o);
      r.h[static_cast<std::size_t>(item.first + o)] =
          round_to(layer.dtype, activate(layer.activation, layer.params, gate[o], up[o]));
    }
  });

  const auto fc2 = items_of([&](const Route&) { return H; });
  parallel_for(static_cast<std::int64_t>(fc2.size()), threads, [&](std::int64_t i) {
    const Item& item = fc2[static_cast<std::size_t>(i)];
    Route& r = routes[item.route];
    const OracleExpert& expert = *r.expert;
    double* y = r.y.data() + item.first;
    detail::product(table, expert.down, r.h.data(), expert.width, item.first, item.count, y);
    for (std::int64_t o = 0; o < item.count; ++o) {
      y[o] += bias(expert.down_bias, item.first + o);
      if (!layer.weight_on_input || r.shared) y[o] *= r.weight;
      if (layer.round_rows) y[o] = round_to(layer.dtype, y[o]);
    }
  });

  std::vector<double> result(tokens.size() * static_cast<std::size_t>(H));
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    for (std::int64_t i = 0; i < H; ++i) {
      double sum = 0;
      for (std::size_t r = first_route[n]; r < first_route[n + 1]; ++r)
        sum += routes[r].y[static_cast<std::size_t>(i)];
      if (call.old_out != nullptr) sum += table[call.old_out[tokens[n] * out_stride + i]];
      result[n * static_cast<std::size_t>(H) + static_cast<std::size_t>(i)] =
          layer.round_output ? round_to(layer.dtype, sum) : sum;
    }
  }
  return result;
}

/// h of one of a token's slots (the shared experts' come after its k routed ones), rounded; empty where the
/// slot names no expert.
inline std::vector<double> oracle_h(const OracleLayer& layer, const OracleCall& call, std::int64_t token,
                                    std::int64_t slot) {
  const std::int64_t H = layer.hidden_size, k = layer.top_k;
  const OracleExpert* expert = nullptr;
  if (slot >= k) {
    expert = &layer.shared.at(static_cast<std::size_t>(slot - k));
  } else {
    const std::int64_t id = call.ids[token * k + slot];
    if (id < 0 || id >= static_cast<std::int64_t>(layer.experts.size())) return {};
    expert = &layer.experts[static_cast<std::size_t>(id)];
  }
  const double* table = detail::decode_table(layer.dtype);
  std::vector<double> x, h(static_cast<std::size_t>(expert->width)), gate(h.size());
  for (std::int64_t i = 0; i < H; ++i)
    x.push_back(table[call.x[token * (call.x_stride != 0 ? call.x_stride : H) + i]]);
  if (is_gated(layer.activation))
    detail::product(table, expert->gate, x.data(), H, 0, expert->width, gate.data());
  detail::product(table, expert->up, x.data(), H, 0, expert->width, h.data());
  if (layer.weight_on_input && slot < k) {
    const double weight = call.weights[token * k + slot];
    for (std::size_t i = 0; i < h.size(); ++i) gate[i] *= weight, h[i] *= weight;
  }
  const auto bias = [table](const OracleVector& v, std::size_t i) {
    return v.data != nullptr ? table[v.data[static_cast<std::int64_t>(i) * v.stride]] : 0.0;
  };
  for (std::size_t i = 0; i < h.size(); ++i)
    h[i] =
        round_to(layer.dtype, activate(layer.activation, layer.params, gate[i] + bias(expert->gate_bias, i),
                                       h[i] + bias(expert->up_bias, i)));
  return h;
}

/// The output rows of tokens 0 … count−1.
inline std::vector<double> oracle_forward(const OracleLayer& layer, const OracleCall& call,
                                          std::int64_t count, int threads = 0) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), std::int64_t{0});
  return oracle_forward(layer, call, tokens, threads);
}

}  // namespace oracle
