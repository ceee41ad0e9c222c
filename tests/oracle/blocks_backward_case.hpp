#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "oracle/backward_oracle.hpp"
#include "oracle/blocks_case.hpp"
#include "oracle/gradient_buffers.hpp"
#include "oracle/training_case.hpp"

/// The backward passes of up and down on a case's rows in any layout: what each must leave, in fp64, from
/// what it was given.
namespace oracle {

struct BlocksBackwardOptions {
  bool fp32 = false;        ///< of weights' gradients
  bool accumulate = false;  ///< to numbers that are there
  bool from_z = false;      ///< down_backward takes z and makes dz; else h and dh
  Storage storage = Storage::blocks;
};

struct BlocksBackwardOutput {
  std::int64_t h_stride = 0, z_stride = 0;
  std::vector<std::uint16_t> x, dy, h, z;  ///< what was given: rows of x and dy; h and z as `up` left them
  std::vector<std::uint16_t> dh, dz, dx;
  std::vector<float> weights, down_dw, up_dw;  ///< [R]
  GradientBuffers gradients;
  bool operator==(const BlocksBackwardOutput& o) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
    };
    return h == o.h && z == o.z && dh == o.dh && dz == o.dz && dx == o.dx && same(down_dw, o.down_dw) &&
           same(up_dw, o.up_dw) && gradients == o.gradients;
  }
};

inline constexpr float kUnwritten = -77.0f;

/// Runs up, down_backward and up_backward on poisoned memory. `Memory`: as run_blocks'. `before`: what lies
/// where gradients go. `dy`: [R, H] numbers, whose rows of padding are poisoned here.
template <class Memory>
BlocksBackwardOutput run_blocks_backward(varmoe::Blocks& blocks, const BlocksCase& b,
                                         const BlocksBackwardOptions& options, const GradientBuffers& before,
                                         Memory& memory, std::uint8_t workspace_fill) {
  const auto must = [](const varmoe::Status& status, const char* what) {
    if (!status) throw std::runtime_error(std::string(what) + ": " + status.error().message());
  };
  const varmoe::LayerSpec& spec = b.spec();
  const RandomCase& c = *b.source;
  const auto rows = static_cast<std::size_t>(b.rows), hidden = static_cast<std::size_t>(spec.hidden_size);
  const bool weighted = blocks.options().weighted_down, gated = is_gated(spec.activation);
  const std::int64_t widest = (spec.widest_of_all() + 63) / 64 * 64;
  BlocksBackwardOutput o;
  o.h_stride = widest + 8;
  o.z_stride = widest * (gated ? 2 : 1) + 16;
  const auto poison = [](std::size_t n) { return std::vector<std::uint16_t>(n, kPoison); };
  const auto h_size = rows * static_cast<std::size_t>(o.h_stride),
             z_size = rows * static_cast<std::size_t>(o.z_stride);
  o.x = o.dy = poison(rows * hidden);
  o.weights.assign(rows, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t r = 0; r < rows; ++r) {
    if (b.row_expert[r] < 0) continue;
    const std::int64_t slot = b.row_map[r], t = slot / b.slots();
    const bool routed = slot % b.slots() < spec.top_k;
    // One row of weight 0: its gradients are zeros, but not its weight's.
    o.weights[r] = r % 7 == 3 ? 0.0f : spec.weight_on_input && !routed ? 1.0f : b.weight_of(slot);
    for (std::size_t i = 0; i < hidden; ++i) {
      o.x[r * hidden + i] = c.x[t * c.x_stride + static_cast<std::int64_t>(i)];
      o.dy[r * hidden + i] = encode(
          spec.dtype, 2 * detail::unit(detail::mix(99, static_cast<std::uint64_t>(slot) * hidden + i)) - 1);
    }
  }
  const varmoe::RowsByExpert by_expert = put_rows(b, memory);
  auto* const x = memory.put(o.x);
  auto* const dy = memory.put(o.dy);
  auto* const weights = memory.put(o.weights);
  const auto bytes = blocks.workspace_bytes(b.rows), backward_bytes = blocks.backward_workspace_bytes(b.rows);
  if (!bytes) throw std::runtime_error(bytes.error().message());
  if (!backward_bytes) throw std::runtime_error(backward_bytes.error().message());
  auto* const workspace =
      memory.put(std::vector<std::uint8_t>(std::max(*bytes, *backward_bytes), workspace_fill));
  std::array<const void*, GradientBuffers::kParts> at{};
  std::array<std::uint16_t*, GradientBuffers::kParts> parts{};
  for (std::size_t i = 0; i < GradientBuffers::kParts; ++i) {
    const Buffer16& part = before.part(i);
    parts[i] = memory.put(std::vector<std::uint16_t>(part.data(), part.data() + part.size()));
    at[i] = parts[i];
  }
  must(blocks.bind_gradients(before.weights(at)), "bind_gradients");

  varmoe::GroupedUpArgs up;
  up.by_expert = by_expert;
  up.x = x;
  up.row_weights = spec.weight_on_input ? weights : nullptr;
  auto* const h = memory.put(poison(h_size));
  auto* const z = memory.put(poison(z_size));
  up.h = h;
  up.h_stride = o.h_stride;
  up.z = z;
  up.z_stride = o.z_stride;
  up.workspace = workspace;
  up.workspace_bytes = *bytes;
  up.stream = memory.stream();
  must(blocks.up(up), "up");

  varmoe::GroupedDownBackwardArgs down;
  down.by_expert = by_expert;
  down.dy = dy;
  down.row_weights = weighted ? weights : nullptr;
  auto* const dh = memory.put(poison(h_size));
  auto* const dz = memory.put(poison(z_size));
  auto* const down_dw = memory.put(std::vector<float>(rows, kUnwritten));
  auto* const up_dw = memory.put(std::vector<float>(rows, kUnwritten));
  auto* const dx = memory.put(poison(rows * hidden));
  if (options.from_z) {
    down.z = z;
    down.dz = dz;
  } else {
    down.h = h;
    down.dh = dh;
  }
  down.h_stride = o.h_stride;
  down.z_stride = o.z_stride;
  down.drow_weights = weighted ? down_dw : nullptr;
  down.accumulate_weight_gradients = options.accumulate;
  down.workspace = workspace;
  down.workspace_bytes = *backward_bytes;
  down.stream = memory.stream();
  must(blocks.down_backward(down), "down_backward");

  varmoe::GroupedUpBackwardArgs back;
  back.by_expert = by_expert;
  back.x = x;
  if (!options.from_z) {
    back.z = z;
    back.dh = dh;
    back.dh_stride = o.h_stride;
  }
  back.z_stride = o.z_stride;
  back.row_weights = up.row_weights;
  back.dz = dz;
  back.dx = dx;
  back.drow_weights = spec.weight_on_input ? up_dw : nullptr;
  back.accumulate_weight_gradients = options.accumulate;
  back.workspace = workspace;
  back.workspace_bytes = *backward_bytes;
  back.stream = memory.stream();
  must(blocks.up_backward(back), "up_backward");
  memory.synchronize();
  o.h = memory.get(h, h_size);
  o.z = memory.get(z, z_size);
  o.dh = memory.get(dh, h_size);
  o.dz = memory.get(dz, z_size);
  o.dx = memory.get(dx, rows * hidden);
  o.down_dw = memory.get(down_dw, rows);
  o.up_dw = memory.get(up_dw, rows);
  o.gradients = before.clone();
  for (std::size_t i = 0; i < GradientBuffers::kParts; ++i) {
    const auto found = memory.get(parts[i], static_cast<std::size_t>(before.part(i).size()));
    std::copy(found.begin(), found.end(), o.gradients.part(i).data());
  }
  return o;
}

namespace detail {

/// Of a case's expert, shared ones too.
inline const RealExpert& expert_at(const RealLayer& layer, std::int64_t e) {
  const auto i = static_cast<std::size_t>(e);
  return i < layer.experts.size() ? layer.experts[i] : layer.shared[i - layer.experts.size()];
}

/// y = matrix · x of [rows, columns], or its transpose.
inline std::vector<double> times(const std::vector<double>& matrix, std::int64_t rows, std::int64_t columns,
                                 const std::vector<double>& x, bool transposed) {
  std::vector<double> y(static_cast<std::size_t>(transposed ? columns : rows), 0.0);
  for (std::int64_t r = 0; r < rows; ++r) {
    const double* line = matrix.data() + r * columns;
    if (transposed)
      add_scaled(y.data(), x[static_cast<std::size_t>(r)], line, columns);
    else
      y[static_cast<std::size_t>(r)] = dot(line, x.data(), columns);
  }
  return y;
}

}  // namespace detail

/// What is wrong; empty: nothing. Rows are checked by every `step`-th, the weights' gradients whole.
inline std::string blocks_backward_problem(const BlocksCase& b, const BlocksBackwardOptions& options,
                                           const GradientBuffers& before, const BlocksBackwardOutput& o,
                                           bool weighted_down, std::int64_t step = 1) {
  const auto fail = [](const auto&... parts) {
    std::ostringstream s;
    (s << ... << parts);
    return s.str();
  };
  const varmoe::LayerSpec& spec = b.spec();
  OracleLayer view = b.source->oracle_layer();
  view.weight_on_input = false;  // the rows' weights are this file's business
  const RealLayer layer = real_layer(view);
  const double* table = detail::decode_table(spec.dtype);
  const std::int64_t H = spec.hidden_size;
  const bool gated = is_gated(spec.activation);
  const bool alternating = gated && spec.fc1_layout == varmoe::WeightLayout::kn &&
                           spec.gate_order == varmoe::GateOrder::interleaved;
  Bars bars = bars_of(spec.dtype);
  bars.frobenius = bars.row;
  const std::int64_t first[] = {0};
  const auto decoded = [&](const std::uint16_t* at, std::int64_t count) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(table[at[i]]);
    return values;
  };
  const auto close = [&](float found, double expected, double size) {
    const double bar = spec.dtype == varmoe::DType::bf16 ? 4e-3 : 1e-3;
    return std::fabs(static_cast<double>(found) - expected) <= bar * size;
  };

  // What the weights' gradients must be: of what was given and of dz as it lies there.
  RealLayer expected = before.read();
  const auto gradient_of = [&](std::int64_t e) -> RealExpert& {
    const auto i = static_cast<std::size_t>(e);
    return i < expected.experts.size() ? expected.experts[i] : expected.shared[i - expected.experts.size()];
  };
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    RealExpert& g = gradient_of(e);
    if (options.accumulate) continue;
    for (auto* v : {&g.gate, &g.up, &g.down, &g.gate_bias, &g.up_bias, &g.down_bias})
      std::fill(v->begin(), v->end(), 0.0);
  }
  for (std::int64_t r = 0; r < b.rows; ++r) {
    const std::int64_t e = b.row_expert[static_cast<std::size_t>(r)];
    const std::int64_t width = e >= 0 ? spec.width_of(e) : 0, whole = (width + 63) / 64 * 64;
    const std::uint16_t *x = o.x.data() + r * H, *dy = o.dy.data() + r * H, *h = o.h.data() + r * o.h_stride,
                        *z = o.z.data() + r * o.z_stride, *dh = o.dh.data() + r * o.h_stride,
                        *dz = o.dz.data() + r * o.z_stride, *dx = o.dx.data() + r * H;
    const auto at = static_cast<std::size_t>(r);
    for (std::int64_t i = whole; i < o.h_stride; ++i)
      if (dh[i] != kPoison) return fail("dh[", r, ", ", i, "] was written");
    for (std::int64_t i = whole * (gated ? 2 : 1); i < o.z_stride; ++i)
      if (z[i] != kPoison || dz[i] != kPoison) return fail("z or dz[", r, ", ", i, "] was written");
    if (e < 0) {
      for (std::int64_t i = 0; i < H; ++i)
        if (dx[i] != kPoison) return fail("up_backward wrote row ", r, ", which is none");
      if (o.down_dw[at] != kUnwritten || o.up_dw[at] != kUnwritten)
        return fail("a weight's gradient was written for row ", r, ", which is none");
      continue;
    }
    const RealExpert& w = detail::expert_at(layer, e);
    RealExpert& grad = gradient_of(e);
    const double down_weight = weighted_down ? static_cast<double>(o.weights[at]) : 1.0;
    const double up_weight = spec.weight_on_input ? static_cast<double>(o.weights[at]) : 1.0;
    const std::vector<double> xs = decoded(x, H), dys = decoded(dy, H);
    const std::int64_t up_at = gated ? whole : 0;
    std::vector<double> zs_gate(static_cast<std::size_t>(width), 0.0), zs_up = decoded(z + up_at, width);
    if (gated) zs_gate = decoded(z, width);
    // h: what was given, or activation(z) where z was.
    std::vector<double> hs = decoded(h, width);
    if (options.from_z)
      for (std::int64_t j = 0; j < width; ++j)
        hs[static_cast<std::size_t>(j)] =
            activate(spec.activation, spec.activation_params, zs_gate[static_cast<std::size_t>(j)],
                     zs_up[static_cast<std::size_t>(j)]);
    // dz as found, of which dx and dW1 are made.
    std::vector<double> dz_gate, dz_up;
    for (std::int64_t j = 0; j < width; ++j) {
      if (gated) dz_gate.push_back(table[dz[alternating ? 2 * j : j]]);
      dz_up.push_back(table[dz[alternating ? 2 * j + 1 : up_at + j]]);
    }
    for (std::int64_t j = 0; j < width; ++j) {
      const auto c = static_cast<std::size_t>(j);
      for (std::int64_t n = 0; n < H; ++n)
        grad.down[static_cast<std::size_t>(n * width + j)] +=
            dys[static_cast<std::size_t>(n)] * down_weight * hs[c];
      detail::add_scaled(grad.up.data() + j * H, up_weight * dz_up[c], xs.data(), H);
      if (gated) detail::add_scaled(grad.gate.data() + j * H, up_weight * dz_gate[c], xs.data(), H);
      if (!grad.up_bias.empty()) grad.up_bias[c] += dz_up[c];
      if (!grad.gate_bias.empty()) grad.gate_bias[c] += dz_gate[c];
    }
    if (!grad.down_bias.empty()) detail::add_scaled(grad.down_bias.data(), down_weight, dys.data(), H);
    if (r % step != 0) continue;

    // z: as the forward's h has it, whose inverse is not asked for.
    std::vector<double> z_ref = detail::times(w.up, width, H, xs, false);
    for (std::int64_t j = 0; j < width; ++j)
      z_ref[static_cast<std::size_t>(j)] = z_ref[static_cast<std::size_t>(j)] * up_weight +
                                           (w.up_bias.empty() ? 0.0 : w.up_bias[static_cast<std::size_t>(j)]);
    auto compared = compare_rows(spec.dtype, z_ref, z + up_at, o.z_stride, width, first, bars);
    if (!compared.pass) return fail("z of row ", r, ", expert ", e, ": ", compared.text());
    // dh, or straight away dz.
    const std::vector<double> g = detail::times(w.down, H, width, dys, true);
    std::vector<double> dh_ref;
    for (const double v : g) dh_ref.push_back(down_weight * v);
    if (!options.from_z) {
      compared = compare_rows(spec.dtype, dh_ref, dh, o.h_stride, width, first, bars);
      if (!compared.pass) return fail("dh of row ", r, ", expert ", e, ": ", compared.text());
      dh_ref = decoded(dh, width);
    }
    std::vector<double> gate_ref, up_ref;
    for (std::size_t j = 0; j < g.size(); ++j) {
      const Slopes s = slopes(spec.activation, spec.activation_params, zs_gate[j], zs_up[j]);
      gate_ref.push_back(dh_ref[j] * s.gate);
      up_ref.push_back(dh_ref[j] * s.up);
    }
    const auto half = [&](const std::vector<double>& ref, const std::vector<double>& found,
                          const char* name) -> std::string {
      std::vector<std::uint16_t> bits;
      for (const double v : found) bits.push_back(encode(spec.dtype, v));
      const auto c = compare_rows(spec.dtype, ref, bits.data(), width, width, first, bars);
      return c.pass ? std::string() : fail("dz's ", name, " of row ", r, ", expert ", e, ": ", c.text());
    };
    if (std::string p = half(up_ref, dz_up, "up"); !p.empty()) return p;
    if (gated)
      if (std::string p = half(gate_ref, dz_gate, "gate"); !p.empty()) return p;
    for (std::int64_t j = width; j < whole; ++j)
      if ((gated && table[dz[alternating ? 2 * j : j]] != 0) ||
          table[dz[alternating ? 2 * j + 1 : up_at + j]] != 0)
        return fail("dz[", r, "] is no zero behind its width");
    // The gradient of down's weight.
    if (weighted_down) {
      double sum = 0, size = 0;
      const auto add = [&](double a, double v) {
        sum += a * v;
        size += std::fabs(a * v);
      };
      for (std::size_t j = 0; j < g.size(); ++j) add(g[j], hs[j]);
      for (std::size_t n = 0; n < w.down_bias.size(); ++n) add(w.down_bias[n], dys[n]);
      if (!close(o.down_dw[at], sum, size))
        return fail("the weight's gradient of down's row ", r, " is ", o.down_dw[at], ", not ", sum);
    } else if (o.down_dw[at] != kUnwritten) {
      return fail("a weight's gradient of row ", r, ", which has no weight");
    }
    // dx of dz as it is.
    std::vector<double> p = detail::times(w.up, width, H, dz_up, true);
    if (gated) {
      const std::vector<double> more = detail::times(w.gate, width, H, dz_gate, true);
      for (std::size_t n = 0; n < p.size(); ++n) p[n] += more[n];
    }
    if (spec.weight_on_input) {
      double sum = 0, size = 0;
      for (std::size_t n = 0; n < p.size(); ++n) {
        sum += p[n] * xs[n];
        size += std::fabs(p[n] * xs[n]);
        p[n] *= up_weight;
      }
      if (!close(o.up_dw[at], sum, size))
        return fail("the weight's gradient of up's row ", r, " is ", o.up_dw[at], ", not ", sum);
    }
    compared = compare_rows(spec.dtype, p, dx, H, H, first, bars);
    if (!compared.pass) return fail("dx of row ", r, ", expert ", e, ": ", compared.text());
  }
  // Gradients, expert by expert.
  const RealLayer found = o.gradients.read();
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const RealExpert &ref = gradient_of(e), &is = detail::expert_at(found, e);
    const double bar = spec.dtype == varmoe::DType::bf16 ? 8e-3 : 2e-3;
    const auto check = [&](const std::vector<double>& is_there, const std::vector<double>& wanted,
                           const char* name) -> std::string {
      detail::ErrorSum sum;
      sum.add(is_there, wanted);
      const double off = sum.relative();
      return off <= bar ? std::string() : fail(name, " of expert ", e, " is off by ", off);
    };
    for (const std::string& problem :
         {check(is.gate, ref.gate, "dW1 (gate)"), check(is.up, ref.up, "dW1 (up)"),
          check(is.down, ref.down, "dW2"), check(is.gate_bias, ref.gate_bias, "db1 (gate)"),
          check(is.up_bias, ref.up_bias, "db1 (up)"), check(is.down_bias, ref.down_bias, "db2")})
      if (!problem.empty()) return problem;
  }
  if (!o.gradients.gaps_are_poison()) return "something between the gradients was written";
  return {};
}

}  // namespace oracle
