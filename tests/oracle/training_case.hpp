#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "oracle/backward_oracle.hpp"
#include "oracle/gradient_buffers.hpp"
#include "oracle/random_case.hpp"

/// A backward with all its options, what memory holds before it, and what must lie there after it.
namespace oracle {

struct TrainingOptions {
  bool save_preactivation = true;
  bool fp32 = false;  ///< of weight gradients
  Storage gradient_storage = Storage::blocks;
  bool dx = true, dtopk_weights = true, weight_gradients = true;
  bool accumulate_dx = false, accumulate_weights = false;
  std::int64_t dout_stride = 0, dx_stride = 0;  ///< 0: H
  std::int64_t token_count = -1;                ///< −1: none
  std::vector<std::int32_t> expert_map{};       ///< empty: none
  bool ids_64 = false;
  bool round_z = false;  ///< the reference's z is rounded: for kinks that many z come near
};

/// What a backward writes.
struct TrainingOutput {
  Buffer16 dx;               ///< [T, dx_stride]
  std::vector<float> dtopk;  ///< [T, k]
  GradientBuffers gradients;
  bool operator==(const TrainingOutput& other) const {
    return std::equal(dx.data(), dx.data() + dx.size(), other.dx.data(), other.dx.data() + other.dx.size()) &&
           dtopk.size() == other.dtopk.size() &&
           (dtopk.empty() || std::memcmp(dtopk.data(), other.dtopk.data(), dtopk.size() * 4) == 0) &&
           gradients == other.gradients;
  }
};

/// Relative Frobenius errors, and the first thing that is wrong.
struct TrainingComparison {
  double dx = 0, dw1 = 0, dw2 = 0, dtopk = 0, biases = 0, shared_gate = 0;
  std::string problem;
  bool pass() const { return problem.empty(); }
  std::string text() const {
    std::ostringstream s;
    s << (pass() ? "pass" : "FAIL: " + problem) << "; dx " << dx << ", dW1 " << dw1 << ", dW2 " << dw2
      << ", dtopk_weights " << dtopk << ", biases " << biases << ", shared gate " << shared_gate;
    return s.str();
  }
};

namespace detail {

/// Of one quantity in several pieces.
struct ErrorSum {
  double error = 0, norm = 0;
  void add(const std::vector<double>& found, const std::vector<double>& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double off = found.at(i) - expected[i];
      error += off * off;  // NaN stays
      norm += expected[i] * expected[i];
    }
  }
  /// A reference of zeros must be met exactly. `scale`: the norm to measure by where the reference's is
  /// smaller.
  double relative(double scale = 0) const {
    if (norm == 0) return error == 0 ? 0.0 : std::numeric_limits<double>::infinity();
    return std::sqrt(error / std::max(norm, scale * scale));
  }
};

}  // namespace detail

struct TrainingCase {
  RandomCase layer;
  TrainingOptions options;
  Buffer16 dout;  ///< [T, dout_stride], gaps poison
  std::int64_t dout_stride = 0, dx_stride = 0;
  TrainingOutput before;  ///< poison, or numbers where results are added

  std::int64_t live_tokens() const {
    const std::int64_t tokens = layer.options.tokens;
    return options.token_count >= 0 ? std::min(options.token_count, tokens) : tokens;
  }
  OracleCall oracle_call() const {
    OracleCall call = layer.oracle_call();
    if (!options.expert_map.empty()) {
      call.expert_map = options.expert_map.data();
      call.global_experts = static_cast<std::int64_t>(options.expert_map.size());
    }
    return call;
  }
  TrainingOutput fresh() const {
    TrainingOutput out;
    out.dx = Buffer16(before.dx.size());
    std::copy_n(before.dx.data(), before.dx.size(), out.dx.data());
    out.dtopk = before.dtopk;
    out.gradients = before.gradients.clone();
    return out;
  }

  RealGradients reference(int threads = 0) const {
    const OracleLayer view = layer.oracle_layer();
    const std::int64_t live = live_tokens(), hidden = layer.spec.hidden_size;
    return oracle_backward(real_layer(view), real_call(view, oracle_call(), live),
                           real_rows(layer.spec.dtype, dout.data(), live, dout_stride, hidden),
                           options.round_z ? &layer.spec.dtype : nullptr, threads);
  }

  /// `bar`: of each quantity over all experts; of one expert alone twice that.
  TrainingComparison compare(const RealGradients& expected, const TrainingOutput& after, double bar) const {
    TrainingComparison result;
    const auto fail = [&](const auto&... parts) {
      if (!result.problem.empty()) return;
      std::ostringstream s;
      (s << ... << parts);
      result.problem = s.str();
    };
    const auto within = [&](const std::string& name, double error, double limit) {
      if (!(error <= limit)) fail(name, " is off by ", error, ", the bar is ", limit);
    };
    const std::int64_t T = layer.options.tokens, live = live_tokens(), H = layer.spec.hidden_size,
                       k = layer.spec.top_k;
    const varmoe::DType dtype = layer.spec.dtype;

    if (options.dx) {
      std::vector<double> reference = expected.dx;
      if (options.accumulate_dx) {
        const auto old = real_rows(dtype, before.dx.data(), live, dx_stride, H);
        for (std::size_t i = 0; i < reference.size(); ++i) reference[i] += old[i];
      }
      detail::ErrorSum sum;
      sum.add(real_rows(dtype, after.dx.data(), live, dx_stride, H), reference);
      result.dx = sum.relative();
      within("dx", result.dx, bar);
    }
    for (std::int64_t i = 0; i < after.dx.size(); ++i) {
      const bool written = options.dx && i / dx_stride < live && i % dx_stride < H;
      if (!written && after.dx[i] != before.dx[i]) fail("dx: element ", i, " is not to be written");
    }
    if (options.dtopk_weights) {
      detail::ErrorSum sum;
      sum.add({after.dtopk.begin(), after.dtopk.begin() + live * k}, expected.dtopk_weights);
      result.dtopk = sum.relative(expected.dtopk_scale);
      within("dtopk_weights", result.dtopk, bar);
      const RealCall call = real_call(layer.oracle_layer(), oracle_call(), live);
      for (std::size_t s = 0; s < call.experts.size(); ++s)
        if (call.experts[s] < 0 && after.dtopk[s] != 0)
          fail("dtopk_weights of slot ", s, ", which has no row, is ", after.dtopk[s]);
    }
    for (std::int64_t s = options.dtopk_weights ? live * k : 0; s < T * k; ++s)
      if (std::memcmp(&after.dtopk[static_cast<std::size_t>(s)], &before.dtopk[static_cast<std::size_t>(s)],
                      4) != 0)
        fail("dtopk_weights of slot ", s, " is not to be written");

    if (!options.weight_gradients) {
      if (!(after.gradients == before.gradients)) fail("weight gradients are not to be written");
      return result;
    }
    if (!after.gradients.gaps_are_poison()) fail("a gap between weight gradients was written");
    const RealLayer found = after.gradients.read(), old = before.gradients.read();
    detail::ErrorSum dw1, dw2, biases, shared_gate;
    const auto add = [&](const std::string& name, detail::ErrorSum& all, const std::vector<double>& values,
                         const std::vector<double>& earlier, std::vector<double> wanted, bool rows,
                         double scale = 0) {
      if (wanted.empty()) return;
      if (!rows) {  // exactly zero, or exactly what was there
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          const double exact = options.accumulate_weights ? earlier[i] : 0.0;
          if (!(values[i] == exact)) fail(name, "[", i, "] of an expert without rows is ", values[i]);
        }
      }
      if (options.accumulate_weights)
        for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += earlier[i];
      detail::ErrorSum one;
      one.add(values, wanted);
      all.error += one.error;
      all.norm += one.norm;
      within(name, one.relative(scale), 2 * bar);
    };
    const auto experts = [&](const std::string& kind, const std::vector<RealExpert>& values,
                             const std::vector<RealExpert>& earlier, const std::vector<RealExpert>& wanted) {
      for (std::size_t e = 0; e < wanted.size(); ++e) {
        const std::string name = kind + std::to_string(e) + ": ";
        const bool rows = kind == "shared " ? live > 0 : expected.rows[e] > 0;
        add(name + "dW1 gate", dw1, values[e].gate, earlier[e].gate, wanted[e].gate, rows);
        add(name + "dW1 up", dw1, values[e].up, earlier[e].up, wanted[e].up, rows);
        add(name + "dW2", dw2, values[e].down, earlier[e].down, wanted[e].down, rows);
        add(name + "db1 gate", biases, values[e].gate_bias, earlier[e].gate_bias, wanted[e].gate_bias, rows);
        add(name + "db1 up", biases, values[e].up_bias, earlier[e].up_bias, wanted[e].up_bias, rows);
        add(name + "db2", biases, values[e].down_bias, earlier[e].down_bias, wanted[e].down_bias, rows);
      }
    };
    experts("expert ", found.experts, old.experts, expected.layer.experts);
    experts("shared ", found.shared, old.shared, expected.layer.shared);
    add("dw_g", shared_gate, found.shared_gate, old.shared_gate, expected.layer.shared_gate, live > 0,
        expected.shared_gate_scale);
    result.dw1 = dw1.relative();
    result.dw2 = dw2.relative();
    result.biases = biases.relative();
    result.shared_gate = shared_gate.relative(expected.shared_gate_scale);
    within("dW1", result.dw1, bar);
    within("dW2", result.dw2, bar);
    within("db", result.biases, bar);
    within("dw_g", result.shared_gate, bar);
    return result;
  }
};

/// 1e-2 in bf16, a quarter of it in fp16.
inline double training_bar(varmoe::DType dtype) {
  return dtype == varmoe::DType::bf16 ? 1e-2 : 2.5e-3;
}

inline TrainingCase make_training_case(RandomCase layer, TrainingOptions options) {
  TrainingCase c;
  const varmoe::LayerSpec& spec = layer.spec;
  const std::int64_t T = layer.options.tokens, H = spec.hidden_size;
  const std::uint64_t seed = layer.options.seed;
  c.options = std::move(options);
  c.dout_stride = c.options.dout_stride != 0 ? c.options.dout_stride : H;
  c.dx_stride = c.options.dx_stride != 0 ? c.options.dx_stride : H;
  const auto table = detail::value_table(spec.dtype, 1.0);
  const auto rows = [&](std::int64_t stride, bool numbers, std::uint64_t stream) {
    Buffer16 b(T * stride);
    for (std::int64_t i = 0; i < b.size(); ++i)
      b[i] = numbers && i % stride < H ? table[detail::mix(seed, stream, static_cast<std::uint64_t>(i)) >> 48]
                                       : kPoison;
    return b;
  };
  c.dout = rows(c.dout_stride, true, 21);
  c.before.dx = rows(c.dx_stride, c.options.accumulate_dx, 22);
  c.before.dtopk.assign(static_cast<std::size_t>(T * spec.top_k), std::numeric_limits<float>::quiet_NaN());
  c.before.gradients = GradientBuffers(spec, c.options.gradient_storage, c.options.fp32, seed);
  if (c.options.accumulate_weights) c.before.gradients.fill(seed + 1);
  c.layer = std::move(layer);
  return c;
}

/// For layers with weight_on_input: no gradient may divide by a weight.
inline void zero_some_weights(TrainingCase& c) {
  for (std::size_t s = 2; s < c.layer.topk_weights.size(); s += 7) c.layer.topk_weights[s] = 0.0f;
}

/// How large drawn cases may be.
struct TrainingLimits {
  std::int64_t hidden = 256, width = 200, experts = 24, tokens = 120, top_k = 6;
  double elements = 4e6;  ///< of all experts' matrices, roughly
};

/// A backward of which every option is drawn.
inline TrainingCase draw_training_case(std::uint64_t seed, const TrainingLimits& limits) {
  std::mt19937_64 random(seed);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  const auto log_between = [&](double low, double high) {
    const double u = static_cast<double>(random() >> 11) * 0x1p-53;
    return static_cast<std::int64_t>(std::llround(low * std::pow(high / low, u)));
  };
  varmoe::LayerSpec spec;
  TrainingOptions o;
  spec.activation = static_cast<varmoe::Activation>(below(10));
  if (spec.activation == varmoe::Activation::swiglu_oai && below(2) == 0) {
    spec.activation_params.limit = 1.0f;
    o.round_z = true;
  }
  spec.dtype = below(3) == 0 ? varmoe::DType::fp16 : varmoe::DType::bf16;
  spec.fc1_layout = below(2) ? varmoe::WeightLayout::kn : varmoe::WeightLayout::nk;
  spec.fc2_layout = below(3)   ? spec.fc1_layout
                    : below(2) ? varmoe::WeightLayout::kn
                               : varmoe::WeightLayout::nk;
  spec.gate_order = static_cast<varmoe::GateOrder>(below(3));
  spec.top_k = 1 + below(limits.top_k);
  const std::int64_t experts = log_between(1, static_cast<double>(limits.experts));
  spec.hidden_size = 8 * log_between(8, static_cast<double>(limits.hidden / 8));
  const double room = limits.elements / (3.0 * static_cast<double>(spec.hidden_size * experts));
  const auto widest =
      static_cast<std::int64_t>(std::min(static_cast<double>(limits.width), std::max(64.0, room)));
  const std::int64_t classes = below(3) == 0 ? 1 : below(4) == 0 ? 40 : 1 + below(8);
  std::vector<std::int64_t> widths;
  for (std::int64_t i = 0; i < classes; ++i) widths.push_back(8 * (1 + below(widest / 8)));
  for (std::int64_t e = 0; e < experts; ++e)
    spec.expert_widths.push_back(widths[static_cast<std::size_t>(below(classes))]);
  if (below(3) == 0) {
    spec.bias = true;
  } else if (below(2) == 0) {
    for (std::int64_t s = 1 + below(3); s > 0; --s) spec.shared_widths.push_back(8 * (1 + below(widest / 8)));
    spec.shared_gate = below(2) == 0;
  }
  // Another generator: the cases of old seeds stay what they are in all else.
  spec.weight_on_input = detail::mix(seed, 23, 0) % 4 == 0;
  // z is made of a rounded product there, which a bias may take across relu's kink.
  if (spec.weight_on_input && spec.bias && spec.activation == varmoe::Activation::relu) o.round_z = true;

  CaseOptions c;
  c.seed = seed;
  c.tokens = below(12) == 0 ? 0 : log_between(1, static_cast<double>(limits.tokens));
  c.routing = static_cast<Routing>(below(4));
  c.invalid_fraction = below(3) == 0 ? 0.2 : 0;
  c.duplicate_fraction = below(4) == 0 ? 0.2 : 0;
  c.empty_every = below(3) == 0 && experts > 1 ? 2 : 0;
  c.x_stride = spec.hidden_size + 8 * below(3);
  const auto draw_storage = [&] {
    Storage s;
    do s = static_cast<Storage>(below(7));
    while (!storage_fits(spec, s));
    return s;
  };
  c.storage = draw_storage();
  o.gradient_storage = draw_storage();
  o.save_preactivation = below(3) != 0;
  o.fp32 = below(2) == 0;
  const std::int64_t wanted = below(8);  // one of eight goes without one output
  o.dx = wanted != 0;
  o.dtopk_weights = wanted != 1;
  o.weight_gradients = wanted != 2;
  o.accumulate_dx = o.dx && below(3) == 0;
  o.accumulate_weights = below(3) == 0;
  o.dout_stride = spec.hidden_size + 8 * below(3);
  o.dx_stride = spec.hidden_size + 8 * below(3);
  if (below(4) == 0) o.token_count = c.tokens * 2 / 3;
  if (below(4) == 0)
    for (std::int64_t i = 0; i < experts + 2; ++i)
      o.expert_map.push_back(i % 5 == 4 ? -1 : static_cast<std::int32_t>((i + 1) % experts));
  o.ids_64 = below(2) == 0;
  TrainingCase drawn = make_training_case(make_case(spec, c), std::move(o));
  if (spec.weight_on_input) zero_some_weights(drawn);
  return drawn;
}

}  // namespace oracle
