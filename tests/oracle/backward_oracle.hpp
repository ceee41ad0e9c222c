#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/oracle.hpp"
#include "oracle/parallel.hpp"
#include "varmoe/layer_spec.hpp"

/// The layer and its gradients in plain fp64, without any rounding: of loss = ⟨dout, out⟩,
///
///   z = W1·x + b1, h = f(z), y = W2·h + b2, out_t = Σ w·y;   g = W2ᵀ·dout_t,
///   dw = ⟨g, h⟩ + ⟨b2, dout_t⟩, dz = w·g∘f'(z), dx_t = Σ W1ᵀ·dz, dW1 = Σ dz⊗x_t, dW2 = Σ dout_t⊗w·h,
///   db1 = Σ dz, db2 = Σ w·dout_t; shared experts have w = 1, or σ(x·w_g) with gradients through it.
///
/// Where the weight is of the input, z = W1·(w·x) + b1 and out_t = Σ y of routed rows: then dz = g∘f'(z),
/// dw = ⟨dz, W1·x⟩, dx_t = Σ w·W1ᵀ·dz, dW1 = Σ dz⊗w·x_t, dW2 = Σ dout_t⊗h, db2 = Σ dout_t.
///
/// Shares no code with src/. Everything is decoded to numbers first, so that finite differences can move what
/// a 16-bit format could not.
namespace oracle {

struct RealExpert {
  std::int64_t width = 0;
  std::vector<double> gate, up, down;                 ///< [width, H] (gate: of gated layers), [H, width]
  std::vector<double> gate_bias, up_bias, down_bias;  ///< [width], [width], [H]; empty without biases
};

/// A layer's parameters, or their gradients.
struct RealLayer {
  std::int64_t hidden_size = 0, top_k = 0;
  varmoe::Activation activation = varmoe::Activation::silu_mul;
  varmoe::ActivationParams params;
  bool weight_on_input = false;
  std::vector<RealExpert> experts, shared;
  std::vector<double> shared_gate;  ///< [H]; empty without
};

struct RealCall {
  std::int64_t tokens = 0;
  std::vector<double> x;              ///< [T, H]
  std::vector<std::int64_t> experts;  ///< [T, k]: the layer's expert, or −1
  std::vector<double> weights;        ///< [T, k]
};

struct RealGradients {
  RealLayer layer;                    ///< of the parameters
  std::vector<double> dx;             ///< [T, H]
  std::vector<double> dtopk_weights;  ///< [T, k]; 0 for slots without an expert
  std::vector<std::int64_t> rows;     ///< of each routed expert
  /// Norms that dtopk_weights and the shared gate's gradient would have if the terms of each dw had random
  /// signs: what their errors are measured against where the terms happen to cancel.
  double dtopk_scale = 0, shared_gate_scale = 0;
};

inline RealLayer real_layer(const OracleLayer& from) {
  const double* table = detail::decode_table(from.dtype);
  const std::int64_t H = from.hidden_size;
  const bool gated = is_gated(from.activation);
  const auto matrix = [&](const OracleMatrix& m, std::int64_t outputs, std::int64_t depth) {
    std::vector<double> values(static_cast<std::size_t>(outputs * depth));
    for (std::int64_t o = 0; o < outputs; ++o)
      for (std::int64_t k = 0; k < depth; ++k)
        values[static_cast<std::size_t>(o * depth + k)] = table[m.data[o * m.out_stride + k * m.k_stride]];
    return values;
  };
  const auto vector = [&](const OracleVector& v, std::int64_t count) {
    std::vector<double> values;
    for (std::int64_t i = 0; v.data != nullptr && i < count; ++i)
      values.push_back(table[v.data[i * v.stride]]);
    return values;
  };
  RealLayer layer;
  layer.hidden_size = H;
  layer.top_k = from.top_k;
  layer.activation = from.activation;
  layer.params = from.params;
  layer.weight_on_input = from.weight_on_input;
  const auto decode_all = [&](const std::vector<OracleExpert>& source, std::vector<RealExpert>& to) {
    to.resize(source.size());
    parallel_for(static_cast<std::int64_t>(source.size()), 0, [&](std::int64_t e) {
      const OracleExpert& w = source[static_cast<std::size_t>(e)];
      RealExpert& r = to[static_cast<std::size_t>(e)];
      r.width = w.width;
      if (gated) r.gate = matrix(w.gate, w.width, H);
      r.up = matrix(w.up, w.width, H);
      r.down = matrix(w.down, H, w.width);
      if (gated) r.gate_bias = vector(w.gate_bias, w.width);
      r.up_bias = vector(w.up_bias, w.width);
      r.down_bias = vector(w.down_bias, H);
    });
  };
  decode_all(from.experts, layer.experts);
  decode_all(from.shared, layer.shared);
  if (from.shared_gate != nullptr)
    for (std::int64_t i = 0; i < H; ++i) layer.shared_gate.push_back(table[from.shared_gate[i]]);
  return layer;
}

/// The first `tokens` tokens of a call.
inline RealCall real_call(const OracleLayer& layer, const OracleCall& call, std::int64_t tokens) {
  const double* table = detail::decode_table(layer.dtype);
  const std::int64_t H = layer.hidden_size, stride = call.x_stride != 0 ? call.x_stride : H;
  RealCall r;
  r.tokens = tokens;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t i = 0; i < H; ++i) r.x.push_back(table[call.x[t * stride + i]]);
  for (std::int64_t s = 0; s < tokens * layer.top_k; ++s) {
    std::int64_t e = call.ids[s];
    if (call.expert_map != nullptr) e = e >= 0 && e < call.global_experts ? call.expert_map[e] : -1;
    r.experts.push_back(e >= 0 && e < static_cast<std::int64_t>(layer.experts.size()) ? e : -1);
    r.weights.push_back(static_cast<double>(call.weights[s]));
  }
  return r;
}

/// Rows of 16-bit numbers as one contiguous fp64 matrix.
inline std::vector<double> real_rows(varmoe::DType dtype, const std::uint16_t* data, std::int64_t rows,
                                     std::int64_t stride, std::int64_t columns) {
  const double* table = detail::decode_table(dtype);
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < columns; ++i) values.push_back(table[data[r * stride + i]]);
  return values;
}

/// ∂f/∂gate and ∂f/∂up. At the kinks 0.
struct Slopes {
  double gate, up;
};
inline Slopes slopes(varmoe::Activation a, const varmoe::ActivationParams& p, double gate, double up) {
  // Of v·σ(a·v), and both gelus: written by the product rule, without the library's rearrangements.
  const auto sigmoid = [](double v) { return 1.0 / (1.0 + std::exp(-v)); };
  const auto swish_slope = [&](double v, double alpha) {
    return sigmoid(alpha * v) + v * alpha * sigmoid(alpha * v) * sigmoid(-alpha * v);
  };
  const auto gelu_tanh_slope = [](double v) {
    const double c = 0.79788456080286535588, u = c * (v + 0.044715 * v * v * v), t = std::tanh(u);
    return 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * v * v);
  };
  const auto gelu_erf_slope = [](double v) {
    return 0.5 * std::erfc(-v * 0.70710678118654752440) + v * std::exp(-0.5 * v * v) * 0.39894228040143267794;
  };
  using varmoe::Activation;
  switch (a) {
    case Activation::silu_mul:
      return {swish_slope(gate, 1) * up, activate(Activation::silu, p, 0, gate)};
    case Activation::gelu_tanh_mul:
      return {gelu_tanh_slope(gate) * up, activate(Activation::gelu_tanh, p, 0, gate)};
    case Activation::gelu_erf_mul:
      return {gelu_erf_slope(gate) * up, activate(Activation::gelu_erf, p, 0, gate)};
    case Activation::swiglu_oai: {
      const double limit = p.limit, alpha = p.alpha;
      const double g = std::min(gate, limit), u = std::max(-limit, std::min(up, limit));
      return {gate < limit ? swish_slope(gate, alpha) * (u + 1.0) : 0.0,
              up > -limit && up < limit ? g * sigmoid(alpha * g) : 0.0};
    }
    case Activation::silu:
      return {0, swish_slope(up, 1)};
    case Activation::gelu_tanh:
      return {0, gelu_tanh_slope(up)};
    case Activation::gelu_erf:
      return {0, gelu_erf_slope(up)};
    case Activation::relu:
      return {0, up > 0 ? 1.0 : 0.0};
    case Activation::relu2:
      return {0, up > 0 ? 2.0 * up : 0.0};
    case Activation::identity:
      return {0, 1.0};
  }
  throw std::logic_error("oracle: unknown activation");
}

namespace detail {

// Eight sums side by side: the compiler may not regroup one.
inline double dot(const double* a, const double* b, std::int64_t n) {
  double lane[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) lane[l] += a[i + l] * b[i + l];
  }
  for (; i < n; ++i) lane[0] += a[i] * b[i];
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}
inline void add_scaled(double* to, double scale, const double* from, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) to[i + l] += scale * from[i + l];
  }
  for (; i < n; ++i) to[i] += scale * from[i];
}

/// One expert's rows in ascending (token, slot), and what belongs to them, [rows, width] and [rows, H].
struct ExpertRows {
  const RealExpert* expert = nullptr;
  std::vector<std::int64_t> token, slot;   ///< slot: of k + S
  std::vector<double> input, output;       ///< what x and y are multiplied by
  std::vector<double> gate, up, h, g;      ///< z's halves; h; g, then unread
  std::vector<double> gate_of_x, up_of_x;  ///< W1·x, of weight on input
  std::vector<double> dgate, dup;
  std::vector<double> dx, dw, dw_scale;  ///< dw_scale: squared, see RealGradients
  std::int64_t count() const { return static_cast<std::int64_t>(token.size()); }
};

inline std::vector<ExpertRows> rows_of(const RealLayer& layer, const RealCall& call,
                                       const std::vector<double>& gates) {
  const auto E = static_cast<std::int64_t>(layer.experts.size()),
             S = static_cast<std::int64_t>(layer.shared.size());
  std::vector<ExpertRows> all(static_cast<std::size_t>(E + S));
  for (std::int64_t e = 0; e < E + S; ++e)
    all[static_cast<std::size_t>(e)].expert =
        e < E ? &layer.experts[static_cast<std::size_t>(e)] : &layer.shared[static_cast<std::size_t>(e - E)];
  for (std::int64_t t = 0; t < call.tokens; ++t) {
    for (std::int64_t j = 0; j < layer.top_k + S; ++j) {
      const auto at = static_cast<std::size_t>(t * layer.top_k + j);
      const std::int64_t e = j < layer.top_k ? call.experts[at] : E + j - layer.top_k;
      if (e < 0) continue;
      ExpertRows& rows = all[static_cast<std::size_t>(e)];
      rows.token.push_back(t);
      rows.slot.push_back(j);
      const double weight = j < layer.top_k ? call.weights[at] : gates[static_cast<std::size_t>(t)];
      const bool on_input = layer.weight_on_input && j < layer.top_k;
      rows.input.push_back(on_input ? weight : 1.0);
      rows.output.push_back(on_input ? 1.0 : weight);
    }
  }
  return all;
}

inline std::vector<double> gates_of(const RealLayer& layer, const RealCall& call) {
  std::vector<double> gates(static_cast<std::size_t>(call.tokens), 1.0);
  for (std::int64_t t = 0; !layer.shared_gate.empty() && t < call.tokens; ++t)
    gates[static_cast<std::size_t>(t)] =
        1.0 / (1.0 + std::exp(-dot(call.x.data() + t * layer.hidden_size, layer.shared_gate.data(),
                                   layer.hidden_size)));
  return gates;
}

/// (expert, first column, columns) of at most 16 columns of every expert.
struct Columns {
  std::size_t expert;
  std::int64_t first, count;
};
inline std::vector<Columns> columns_of(const std::vector<ExpertRows>& all) {
  std::vector<Columns> items;
  for (std::size_t e = 0; e < all.size(); ++e)
    for (std::int64_t j = 0; j < all[e].expert->width; j += 16)
      items.push_back({e, j, std::min<std::int64_t>(16, all[e].expert->width - j)});
  return items;
}

/// z, h and W1·x of some columns. `z_dtype`: see oracle_backward.
inline void fill_z(const RealLayer& layer, const RealCall& call, ExpertRows& rows, const Columns& c,
                   const varmoe::DType* z_dtype) {
  const RealExpert& w = *rows.expert;
  const std::int64_t H = layer.hidden_size;
  const bool gated = is_gated(layer.activation);
  const auto rounded = [&](double z) { return z_dtype != nullptr ? round_to(*z_dtype, z) : z; };
  // What the library keeps is rounded: z, or of weight on input W1·x.
  const auto product = [&](const std::vector<double>& matrix, const std::vector<double>& bias_of,
                           std::size_t row, const double* x, std::int64_t j, double& of_x) {
    const double bias = bias_of.empty() ? 0.0 : bias_of[static_cast<std::size_t>(j)];
    of_x = dot(x, matrix.data() + j * H, H);
    if (!layer.weight_on_input) return rounded(of_x + bias);
    of_x = rounded(of_x);
    return rows.input[row] * of_x + bias;
  };
  for (std::int64_t r = 0; r < rows.count(); ++r) {
    const auto row = static_cast<std::size_t>(r);
    const double* x = call.x.data() + rows.token[row] * H;
    for (std::int64_t j = c.first; j < c.first + c.count; ++j) {
      const auto at = static_cast<std::size_t>(r * w.width + j);
      const double gate = gated ? product(w.gate, w.gate_bias, row, x, j, rows.gate_of_x[at]) : 0,
                   up = product(w.up, w.up_bias, row, x, j, rows.up_of_x[at]);
      rows.gate[at] = gate;
      rows.up[at] = up;
      rows.h[at] = activate(layer.activation, layer.params, gate, up);
    }
  }
}

inline void resize(ExpertRows& rows, std::int64_t hidden, bool backward) {
  const auto elements = static_cast<std::size_t>(rows.count() * rows.expert->width);
  for (auto* v : {&rows.gate, &rows.up, &rows.h, &rows.gate_of_x, &rows.up_of_x}) v->resize(elements);
  rows.dx.assign(static_cast<std::size_t>(rows.count() * hidden), 0.0);
  if (!backward) return;
  for (auto* v : {&rows.g, &rows.dgate, &rows.dup}) v->resize(elements);
  rows.dw.resize(rows.token.size());
  rows.dw_scale.resize(rows.token.size());
}

}  // namespace detail

/// out [T, H].
inline std::vector<double> real_forward(const RealLayer& layer, const RealCall& call, int threads = 0) {
  const std::int64_t H = layer.hidden_size;
  auto all = detail::rows_of(layer, call, detail::gates_of(layer, call));
  for (auto& rows : all) detail::resize(rows, H, false);
  const auto items = detail::columns_of(all);
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    const auto& item = items[static_cast<std::size_t>(i)];
    detail::fill_z(layer, call, all[item.expert], item, nullptr);
  });
  std::vector<double> out(static_cast<std::size_t>(call.tokens * H));
  for (const auto& rows : all) {
    const RealExpert& w = *rows.expert;
    for (std::int64_t r = 0; r < rows.count(); ++r) {
      const auto at = static_cast<std::size_t>(r);
      for (std::int64_t i = 0; i < H; ++i) {
        double y = detail::dot(w.down.data() + i * w.width, rows.h.data() + r * w.width, w.width);
        if (!w.down_bias.empty()) y += w.down_bias[static_cast<std::size_t>(i)];
        out[static_cast<std::size_t>(rows.token[at] * H + i)] += rows.output[at] * y;
      }
    }
  }
  return out;
}

/// Gradients of ⟨dout, out⟩; dout [T, H] contiguous. `z_dtype` not null: z is rounded to it before anything
/// is made of it, as the library does; for layers whose kinks many z come near, where a rounded z may lie on
/// the other side.
inline RealGradients oracle_backward(const RealLayer& layer, const RealCall& call,
                                     const std::vector<double>& dout, const varmoe::DType* z_dtype = nullptr,
                                     int threads = 0) {
  const std::int64_t H = layer.hidden_size, T = call.tokens, k = layer.top_k;
  const bool gated = is_gated(layer.activation);
  const auto gates = detail::gates_of(layer, call);
  auto all = detail::rows_of(layer, call, gates);
  for (auto& rows : all) detail::resize(rows, H, true);

  RealGradients result;
  RealLayer& d = result.layer;
  d.hidden_size = H;
  d.top_k = k;
  d.activation = layer.activation;
  d.params = layer.params;
  d.weight_on_input = layer.weight_on_input;
  for (const auto& rows : all) {
    const RealExpert& w = *rows.expert;
    const bool routed = d.experts.size() < layer.experts.size();
    if (routed) result.rows.push_back(rows.count());
    RealExpert& made = (routed ? d.experts : d.shared).emplace_back();
    made.width = w.width;
    made.gate.resize(w.gate.size());
    made.up.resize(w.up.size());
    made.down.resize(w.down.size());
    made.gate_bias.resize(w.gate_bias.size());
    made.up_bias.resize(w.up_bias.size());
    made.down_bias.resize(w.down_bias.size());
  }
  const auto gradient_of = [&](std::size_t e) -> RealExpert& {
    return e < d.experts.size() ? d.experts[e] : d.shared[e - d.experts.size()];
  };

  // By columns of each expert: all but what sums over columns.
  const auto items = detail::columns_of(all);
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    const detail::Columns& c = items[static_cast<std::size_t>(i)];
    detail::ExpertRows& rows = all[c.expert];
    const RealExpert& w = *rows.expert;
    RealExpert& grad = gradient_of(c.expert);
    detail::fill_z(layer, call, rows, c, z_dtype);
    std::vector<double> down(static_cast<std::size_t>(c.count * H)), ddown(down.size());  // transposed
    for (std::int64_t n = 0; n < H; ++n)
      for (std::int64_t j = 0; j < c.count; ++j)
        down[static_cast<std::size_t>(j * H + n)] =
            w.down[static_cast<std::size_t>(n * w.width + c.first + j)];
    for (std::int64_t r = 0; r < rows.count(); ++r) {
      const auto row = static_cast<std::size_t>(r);
      const double *x = call.x.data() + rows.token[row] * H, *dy = dout.data() + rows.token[row] * H;
      for (std::int64_t j = 0; j < c.count; ++j) {
        const auto column = static_cast<std::size_t>(c.first + j),
                   at = static_cast<std::size_t>(r * w.width) + column;
        const double g = detail::dot(down.data() + j * H, dy, H);
        const Slopes s = slopes(layer.activation, layer.params, rows.gate[at], rows.up[at]);
        rows.g[at] = g;
        const double input = rows.input[row], output = rows.output[row];
        rows.dgate[at] = output * g * s.gate;
        rows.dup[at] = output * g * s.up;
        detail::add_scaled(ddown.data() + j * H, output * rows.h[at], dy, H);
        detail::add_scaled(grad.up.data() + (c.first + j) * H, input * rows.dup[at], x, H);
        if (gated) detail::add_scaled(grad.gate.data() + (c.first + j) * H, input * rows.dgate[at], x, H);
        if (!grad.up_bias.empty()) grad.up_bias[column] += rows.dup[at];
        if (!grad.gate_bias.empty()) grad.gate_bias[column] += rows.dgate[at];
      }
    }
    for (std::int64_t n = 0; n < H; ++n)
      for (std::int64_t j = 0; j < c.count; ++j)
        grad.down[static_cast<std::size_t>(n * w.width + c.first + j)] =
            ddown[static_cast<std::size_t>(j * H + n)];
  });

  // By rows: the sums over columns.
  struct Block {
    std::size_t expert;
    std::int64_t first, end;
  };
  std::vector<Block> blocks;
  for (std::size_t e = 0; e < all.size(); ++e)
    for (std::int64_t r = 0; r < all[e].count(); r += 8)
      blocks.push_back({e, r, std::min(r + 8, all[e].count())});
  parallel_for(static_cast<std::int64_t>(blocks.size()), threads, [&](std::int64_t i) {
    const Block& b = blocks[static_cast<std::size_t>(i)];
    detail::ExpertRows& rows = all[b.expert];
    const RealExpert& w = *rows.expert;
    for (std::int64_t j = 0; j < w.width; ++j) {
      for (std::int64_t r = b.first; r < b.end; ++r) {
        const auto at = static_cast<std::size_t>(r * w.width + j);
        const double input = rows.input[static_cast<std::size_t>(r)];
        detail::add_scaled(rows.dx.data() + r * H, input * rows.dup[at], w.up.data() + j * H, H);
        if (gated)
          detail::add_scaled(rows.dx.data() + r * H, input * rows.dgate[at], w.gate.data() + j * H, H);
      }
    }
    for (std::int64_t r = b.first; r < b.end; ++r) {
      const auto row = static_cast<std::size_t>(r);
      const auto add_dot = [&](const std::vector<double>& left, const std::vector<double>& right) {
        rows.dw[row] += detail::dot(left.data() + r * w.width, right.data() + r * w.width, w.width);
        for (std::int64_t j = r * w.width; j < (r + 1) * w.width; ++j) {
          const double term = left[static_cast<std::size_t>(j)] * right[static_cast<std::size_t>(j)];
          rows.dw_scale[row] += term * term;
        }
      };
      const bool on_input = layer.weight_on_input && rows.slot[row] < k;
      if (on_input) {
        if (gated) add_dot(rows.dgate, rows.gate_of_x);
        add_dot(rows.dup, rows.up_of_x);
      } else {
        add_dot(rows.g, rows.h);
      }
      if (on_input || w.down_bias.empty()) continue;
      const double* dy = dout.data() + rows.token[row] * H;
      rows.dw[row] += detail::dot(w.down_bias.data(), dy, H);
      for (std::int64_t n = 0; n < H; ++n) {
        const double term = w.down_bias[static_cast<std::size_t>(n)] * dy[n];
        rows.dw_scale[row] += term * term;
      }
    }
  });

  result.dx.resize(static_cast<std::size_t>(T * H));
  result.dtopk_weights.resize(static_cast<std::size_t>(T * k));
  std::vector<double> dgates(static_cast<std::size_t>(T)), gate_scales(dgates.size());
  for (std::size_t e = 0; e < all.size(); ++e) {
    const detail::ExpertRows& rows = all[e];
    RealExpert& grad = gradient_of(e);
    for (std::int64_t r = 0; r < rows.count(); ++r) {
      const auto row = static_cast<std::size_t>(r);
      const std::int64_t t = rows.token[row];
      detail::add_scaled(result.dx.data() + t * H, 1.0, rows.dx.data() + r * H, H);
      if (rows.slot[row] < k) {
        result.dtopk_weights[static_cast<std::size_t>(t * k + rows.slot[row])] = rows.dw[row];
        result.dtopk_scale += rows.dw_scale[row];
      } else {
        dgates[static_cast<std::size_t>(t)] += rows.dw[row];
        gate_scales[static_cast<std::size_t>(t)] += rows.dw_scale[row];
      }
      if (!grad.down_bias.empty())
        detail::add_scaled(grad.down_bias.data(), rows.output[row], dout.data() + t * H, H);
    }
  }
  result.dtopk_scale = std::sqrt(result.dtopk_scale);
  if (!layer.shared_gate.empty()) {
    d.shared_gate.resize(layer.shared_gate.size());
    for (std::int64_t t = 0; t < T; ++t) {
      const double gate = gates[static_cast<std::size_t>(t)];
      const double s = gate * (1.0 - gate) * dgates[static_cast<std::size_t>(t)];
      const double* x = call.x.data() + t * H;
      detail::add_scaled(d.shared_gate.data(), s, x, H);
      result.shared_gate_scale += gate_scales[static_cast<std::size_t>(t)] * detail::dot(x, x, H) * gate *
                                  gate * (1.0 - gate) * (1.0 - gate);
      detail::add_scaled(result.dx.data() + t * H, s, layer.shared_gate.data(), H);
    }
  }
  result.shared_gate_scale = std::sqrt(result.shared_gate_scale);
  return result;
}

}  // namespace oracle
