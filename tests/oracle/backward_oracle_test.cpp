#include "oracle/backward_oracle.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "oracle/random_case.hpp"

// The oracle's gradients against central finite differences of its own forward, and that forward against the
// oracle that rounds.

using oracle::RealCall;
using oracle::RealExpert;
using oracle::RealLayer;
using varmoe::Activation;
using varmoe::GateOrder;
using varmoe::WeightLayout;

namespace {

constexpr Activation kActivations[] = {
    Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
    Activation::silu,     Activation::gelu_tanh,     Activation::gelu_erf,     Activation::relu,
    Activation::relu2,    Activation::identity};

varmoe::LayerSpec tiny(Activation activation) {
  varmoe::LayerSpec spec;
  spec.hidden_size = 16;
  spec.expert_widths = {8, 16, 24};
  spec.top_k = 2;
  spec.activation = activation;
  spec.activation_params.limit = 0.75f;  // some z beyond it
  return spec;
}

std::vector<double> some_dout(std::int64_t count) {
  std::vector<double> dout;
  for (std::int64_t i = 0; i < count; ++i)
    dout.push_back(2 * oracle::detail::unit(oracle::detail::mix(41, static_cast<std::uint64_t>(i))) - 1);
  return dout;
}

/// Every number of x, of the routing weights and of the parameters is moved to both sides.
void check_differences(const oracle::RandomCase& c, const std::vector<std::int32_t>* map = nullptr) {
  auto call16 = c.oracle_call();
  if (map != nullptr) {
    call16.expert_map = map->data();
    call16.global_experts = static_cast<std::int64_t>(map->size());
  }
  RealLayer layer = oracle::real_layer(c.oracle_layer());
  RealCall call = oracle::real_call(c.oracle_layer(), call16, c.options.tokens);
  const auto dout = some_dout(c.options.tokens * c.spec.hidden_size);
  const auto gradients = oracle::oracle_backward(layer, call, dout, nullptr, 1);
  const auto loss = [&] {
    const auto out = oracle::real_forward(layer, call, 1);
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
    return sum;
  };
  constexpr double kStep = 1e-5;
  double worst = 0;
  std::string worst_at;
  std::size_t checked = 0;
  const auto check = [&](const std::string& name, std::vector<double>& values,
                         const std::vector<double>& found) {
    REQUIRE(values.size() == found.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double before = values[i];
      values[i] = before + kStep;
      const double above = loss();
      values[i] = before - kStep;
      const double below = loss();
      values[i] = before;
      const double error = std::fabs((above - below) / (2 * kStep) - found[i]);
      if (!(error <= worst)) worst = error, worst_at = name + "[" + std::to_string(i) + "]";
      ++checked;
    }
  };
  check("x", call.x, gradients.dx);
  check("topk_weights", call.weights, gradients.dtopk_weights);
  const auto experts = [&](const std::string& kind, std::vector<RealExpert>& values,
                           const std::vector<RealExpert>& found) {
    REQUIRE(values.size() == found.size());
    for (std::size_t e = 0; e < values.size(); ++e) {
      const std::string name = kind + " " + std::to_string(e) + " ";
      check(name + "gate", values[e].gate, found[e].gate);
      check(name + "up", values[e].up, found[e].up);
      check(name + "down", values[e].down, found[e].down);
      check(name + "gate_bias", values[e].gate_bias, found[e].gate_bias);
      check(name + "up_bias", values[e].up_bias, found[e].up_bias);
      check(name + "down_bias", values[e].down_bias, found[e].down_bias);
    }
  };
  experts("expert", layer.experts, gradients.layer.experts);
  experts("shared", layer.shared, gradients.layer.shared);
  check("shared_gate", layer.shared_gate, gradients.layer.shared_gate);
  CHECK(checked > 1000);
  CHECK_MESSAGE(worst < 1e-7, worst_at << " is off by " << worst);
}

}  // namespace

TEST_CASE("backward oracle: slopes of the activations at known points, and 0 at the kinks") {
  const auto at = [](Activation a, double gate, double up) {
    return oracle::slopes(a, {1.702f, 7.0f}, gate, up);
  };
  CHECK(at(Activation::silu, 0, 0).up == doctest::Approx(0.5));
  CHECK(at(Activation::silu, 0, 1).up == doctest::Approx(0.9276705119).epsilon(1e-9));
  CHECK(at(Activation::gelu_erf, 0, 1).up == doctest::Approx(1.0833154706).epsilon(1e-9));
  CHECK(at(Activation::gelu_tanh, 0, 1).up == doctest::Approx(1.0829640838).epsilon(1e-9));
  CHECK(at(Activation::silu_mul, 1, 3).gate == doctest::Approx(3 * 0.9276705119).epsilon(1e-9));
  CHECK(at(Activation::silu_mul, 1, 3).up == doctest::Approx(0.7310585786).epsilon(1e-9));
  CHECK(at(Activation::relu, 0, 0).up == 0);
  CHECK(at(Activation::relu, 0, 1e-30).up == 1);
  CHECK(at(Activation::relu2, 0, 0).up == 0);
  CHECK(at(Activation::relu2, 0, 3).up == 6);
  CHECK(at(Activation::identity, 0, -3).up == 1);
  CHECK(at(Activation::swiglu_oai, 7, 1).gate == 0);
  CHECK(at(Activation::swiglu_oai, 1, 7).up == 0);
  CHECK(at(Activation::swiglu_oai, 1, -7).up == 0);
  CHECK(at(Activation::swiglu_oai, -9, 1).gate != 0);  // the gate has no lower clamp
}

TEST_CASE("backward oracle: finite differences of every activation, with biases and without") {
  for (const Activation activation : kActivations) {
    for (const bool bias : {false, true}) {
      auto spec = tiny(activation);
      spec.bias = bias;
      CAPTURE(tuning_signature(spec));
      check_differences(oracle::make_case(spec, {.tokens = 5, .seed = 3, .threads = 1}));
    }
  }
}

TEST_CASE("backward oracle: finite differences of shared experts with a gate and without") {
  for (const Activation activation : {Activation::silu_mul, Activation::relu2}) {
    for (const bool gate : {false, true}) {
      auto spec = tiny(activation);
      spec.shared_widths = {16, 8};
      spec.shared_gate = gate;
      CAPTURE(gate);
      check_differences(oracle::make_case(spec, {.tokens = 4, .seed = 4, .threads = 1}));
    }
  }
}

TEST_CASE("backward oracle: finite differences of weights on the input") {
  for (const Activation activation : kActivations) {
    for (int kind = 0; kind < 4; ++kind) {
      auto spec = tiny(activation);
      spec.weight_on_input = true;
      spec.bias = kind == 1;
      if (kind >= 2) spec.shared_widths = {16, 8};
      spec.shared_gate = kind == 3;
      CAPTURE(tuning_signature(spec));
      auto c = oracle::make_case(spec, {.tokens = 5, .seed = 8, .invalid_fraction = 0.1, .threads = 1});
      // Not by division by the weight. Without biases z is 0 there, a kink of two.
      const bool kink = activation == Activation::relu || activation == Activation::relu2;
      if (!kink || spec.bias) c.topk_weights[0] = c.topk_weights[3] = 0.0f;
      check_differences(c);
    }
  }
}

TEST_CASE("backward oracle: finite differences of layouts, gate orders, strange ids and an expert map") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
      auto spec = tiny(Activation::silu_mul);
      spec.fc1_layout = layout;
      spec.fc2_layout = order == GateOrder::up_first ? WeightLayout::nk : layout;
      spec.gate_order = order;
      auto c = oracle::make_case(spec, {.tokens = 6,
                                        .seed = 5,
                                        .storage = oracle::Storage::strided,
                                        .invalid_fraction = 0.3,
                                        .duplicate_fraction = 0.3,
                                        .x_stride = 24,
                                        .threads = 1});
      check_differences(c);
      const std::vector<std::int32_t> map{2, -1, 0};
      check_differences(c, &map);
    }
  }
}

TEST_CASE("backward oracle: what it differentiates is what the rounding oracle computes") {
  for (const Activation activation : kActivations) {
    auto spec = tiny(activation);
    spec.weight_on_input = activation == Activation::silu_mul || activation == Activation::relu2;
    spec.hidden_size = 64;
    spec.dtype = varmoe::DType::fp16;
    spec.shared_widths = {16};
    spec.shared_gate = true;
    const auto c = oracle::make_case(spec, {.tokens = 9, .seed = 6, .invalid_fraction = 0.2, .threads = 1});
    const auto rounded = c.reference(1);
    const auto exact = oracle::real_forward(oracle::real_layer(c.oracle_layer()),
                                            oracle::real_call(c.oracle_layer(), c.oracle_call(), 9), 1);
    REQUIRE(rounded.size() == exact.size());
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      error += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);
      norm += exact[i] * exact[i];
    }
    CHECK(norm > 0);
    CHECK(std::sqrt(error / norm) < 1e-3);
  }
}

TEST_CASE(
    "backward oracle: the number of threads does not matter, slots without an expert have no gradient") {
  auto spec = tiny(Activation::silu_mul);
  const auto c =
      oracle::make_case(spec, {.tokens = 40, .seed = 7, .invalid_fraction = 0.4, .empty_every = 2});
  const auto layer = oracle::real_layer(c.oracle_layer());
  const auto call = oracle::real_call(c.oracle_layer(), c.oracle_call(), 40);
  const auto dout = some_dout(40 * 16);
  const auto one = oracle::oracle_backward(layer, call, dout, nullptr, 1),
             three = oracle::oracle_backward(layer, call, dout, nullptr, 3);
  CHECK(one.dx == three.dx);
  CHECK(one.dtopk_weights == three.dtopk_weights);
  for (std::size_t e = 0; e < 3; ++e) {
    CHECK(one.layer.experts[e].up == three.layer.experts[e].up);
    CHECK(one.layer.experts[e].down == three.layer.experts[e].down);
  }
  std::size_t without = 0;
  for (std::size_t s = 0; s < call.experts.size(); ++s) {
    if (call.experts[s] >= 0) continue;
    ++without;
    CHECK(one.dtopk_weights[s] == 0);
  }
  CHECK(without > 10);
  CHECK(one.rows[1] == 0);
  CHECK(one.layer.experts[1].up == std::vector<double>(16 * 16));
}
