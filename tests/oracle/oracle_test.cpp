#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "oracle/oracle.hpp"
#include "oracle/random_case.hpp"

using oracle::activate;
using varmoe::Activation;
using varmoe::DType;

namespace {

const varmoe::ActivationParams kParams{1.702f, 7.0f};

std::vector<std::uint16_t> encode_all(DType t, const std::vector<double>& values) {
  std::vector<std::uint16_t> bits;
  for (const double v : values) bits.push_back(oracle::encode(t, v));
  return bits;
}

/// A layer of one-wide experts with H = 2, small enough for a pencil.
struct Pencil {
  DType dtype = DType::bf16;
  std::vector<std::uint16_t> gate, up, down, x, old_out;  // [E][2], [E][2], [E][2], [T][2]
  std::vector<std::int64_t> ids;
  std::vector<float> weights;

  std::vector<double> run(Activation a, std::int64_t top_k, bool accumulate = false,
                          bool round_rows = true) const {
    oracle::OracleLayer layer{2, top_k, a, kParams, dtype, {}, round_rows};
    for (std::size_t e = 0; e < up.size() / 2; ++e) {
      layer.experts.push_back({1,
                               {gate.empty() ? nullptr : gate.data() + 2 * e, 2, 1},
                               {up.data() + 2 * e, 2, 1},
                               {down.data() + 2 * e, 1, 1}});
    }
    const oracle::OracleCall call{
        x.data(), 0, ids.data(), weights.data(), accumulate ? old_out.data() : nullptr, 0};
    return oracle::oracle_forward(layer, call, static_cast<std::int64_t>(x.size() / 2), 1);
  }
};

}  // namespace

TEST_CASE("activations at known points") {
  // Values to ten digits from tables of the logistic, tanh and error functions.
  const auto f = [](Activation a, double gate, double up) { return activate(a, kParams, gate, up); };
  CHECK(f(Activation::silu, 0, 1) == doctest::Approx(0.7310585786).epsilon(1e-9));
  CHECK(f(Activation::silu, 0, -2) == doctest::Approx(-0.2384058440).epsilon(1e-9));
  CHECK(f(Activation::silu_mul, 1, 3) == doctest::Approx(2.1931757359).epsilon(1e-9));
  CHECK(f(Activation::gelu_erf, 0, 1) == doctest::Approx(0.8413447461).epsilon(1e-9));
  CHECK(f(Activation::gelu_erf, 0, -1) == doctest::Approx(-0.1586552539).epsilon(1e-9));
  CHECK(f(Activation::gelu_erf_mul, 1, -2) == doctest::Approx(-1.6826894921).epsilon(1e-9));
  CHECK(f(Activation::gelu_tanh, 0, 1) == doctest::Approx(0.8411919906).epsilon(1e-9));
  CHECK(f(Activation::gelu_tanh, 0, -1) == doctest::Approx(-0.1588080094).epsilon(1e-9));
  CHECK(f(Activation::gelu_tanh_mul, 1, 2) == doctest::Approx(1.6823839812).epsilon(1e-9));
  CHECK(f(Activation::relu, 0, -3) == 0);
  CHECK(f(Activation::relu, 0, 3) == 3);
  CHECK(f(Activation::relu2, 0, -3) == 0);
  CHECK(f(Activation::relu2, 0, 3) == 9);
  CHECK(f(Activation::identity, 0, -3) == -3);
  // 1 · sigmoid(1.702) · (0 + 1); the fp32 value of 1.702 enters.
  CHECK(f(Activation::swiglu_oai, 1, 0) == doctest::Approx(0.8457957659).epsilon(1e-7));
  CHECK(f(Activation::swiglu_oai, 100, 0) == doctest::Approx(7.0).epsilon(1e-4));
  CHECK(f(Activation::swiglu_oai, 100, 50) == f(Activation::swiglu_oai, 7, 7));
  CHECK(f(Activation::swiglu_oai, 1, -50) == doctest::Approx(0.8457957659 * -6).epsilon(1e-7));
  CHECK(f(Activation::swiglu_oai, -100, 0) ==
        doctest::Approx(0).epsilon(1e-9));  // the gate has no lower limit
  for (const auto a : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
    CHECK(std::isnan(f(a, 0, std::numeric_limits<double>::quiet_NaN())));
  }
}

TEST_CASE("a layer done by hand") {
  Pencil p;
  p.up = encode_all(p.dtype, {3, -1, 0.5, 0.25});
  p.down = encode_all(p.dtype, {2, 0.5, -1, 4});
  p.x = encode_all(p.dtype, {1, 2, 4, 8});
  p.ids = {0, 1, 1, 0};
  p.weights = {0.5f, 0.25f, 1.0f, 2.0f};
  // Token 0: expert 0: 3 − 2 = 1 → 1² = 1 → (2, 0.5)·0.5; expert 1: 0.5 + 0.5 = 1 → 1 → (−1, 4)·0.25.
  // Token 1: expert 1: 2 + 2 = 4 → 16 → (−16, 64)·1; expert 0: 12 − 8 = 4 → 16 → (32, 8)·2.
  CHECK(p.run(Activation::relu2, 2) == std::vector<double>{0.75, 1.25, 48, 80});
}

TEST_CASE("biases and a weight on the input by hand") {
  const auto t = DType::bf16;
  const auto up = encode_all(t, {3, -1}), down = encode_all(t, {2, 0.5}), x = encode_all(t, {1, 2}),
             up_bias = encode_all(t, {0.25, 99}), down_bias = encode_all(t, {1, -1});
  const std::int64_t ids[] = {0, 5, 2};
  const float weights[] = {0.5f, 8.0f, 16.0f};
  const std::int32_t map[] = {-1, -1, 0, 0, 7, 0};
  oracle::OracleLayer layer{2, 1, Activation::identity, kParams, t, {}};
  oracle::OracleExpert expert;
  expert.width = 1;
  expert.up = {up.data(), 2, 1};
  expert.down = {down.data(), 1, 1};
  expert.up_bias = {up_bias.data(), 2};
  expert.down_bias = {down_bias.data(), 1};
  layer.experts.push_back(expert);
  oracle::OracleCall call;
  call.x = x.data();
  call.ids = ids;
  call.weights = weights;
  // 3 − 2 = 1, + 0.25; (2.5, 0.625) + (1, −1) = (3.5, −0.375); halved.
  CHECK(oracle::oracle_forward(layer, call, 1, 1) == std::vector<double>{1.75, -0.1875});
  layer.weight_on_input = true;  // 1 · 0.5 + 0.25 = 0.75; (1.5, 0.375) + (1, −1)
  CHECK(oracle::oracle_forward(layer, call, 1, 1) == std::vector<double>{2.5, -0.625});
  // Ids of six experts elsewhere: 0 is nobody's here; 5 and 2 are this expert, 4 none.
  call.expert_map = map;
  call.global_experts = 6;
  CHECK(oracle::oracle_forward(layer, call, 1, 1) == std::vector<double>{0, 0});
  call.ids = ids + 1;
  call.weights = weights;
  CHECK(oracle::oracle_forward(layer, call, 1, 1) == std::vector<double>{2.5, -0.625});
  call.global_experts = 5;
  CHECK(oracle::oracle_forward(layer, call, 1, 1) == std::vector<double>{0, 0});
}

TEST_CASE("gate and up have their places") {
  Pencil p;
  p.gate = encode_all(p.dtype, {1, 0});
  p.up = encode_all(p.dtype, {0, 1});
  p.down = encode_all(p.dtype, {1, 0});
  p.x = encode_all(p.dtype, {16, -3});
  p.ids = {0};
  p.weights = {1};
  // silu(16)·(−3): sigmoid(16) is 1 − 1.1e-7, gone after rounding; exchanged it would be silu(−3)·16 = −2.28.
  CHECK(p.run(Activation::silu_mul, 1) == std::vector<double>{-48, 0});
}

TEST_CASE("h is rounded to the activation dtype, ties to even") {
  Pencil p;
  p.x = encode_all(p.dtype, {1, 0.00390625});  // 1, 2^-8
  p.up = encode_all(p.dtype, {1, 1});          // h = 1 + 2^-8 → 1 in bf16
  p.down = encode_all(p.dtype, {256, 0});
  p.ids = {0};
  p.weights = {1};
  CHECK(p.run(Activation::identity, 1) ==
        std::vector<double>{256, 0});  // 257 = 256·(1 + 2^-8) would round to 256 too …
  p.down = encode_all(p.dtype, {192, 0});
  CHECK(p.run(Activation::identity, 1) == std::vector<double>{192, 0});  // … but 192.75 would be 193
  p.up = encode_all(p.dtype, {1, 3});                                    // 1 + 3·2^-8 → 1 + 2^-6
  CHECK(p.run(Activation::identity, 1) == std::vector<double>{195, 0});
}

TEST_CASE("rows are rounded before they are summed, unless they are not stored") {
  Pencil p;
  p.x = encode_all(p.dtype, {1, 0});
  p.up = encode_all(p.dtype, {1, 0, 1, 0});
  p.down = encode_all(p.dtype, {1, 0, 1, 0});
  p.ids = {0, 1};
  p.weights = {1.005859375f,
               1.00390625f};  // rows 1.0078125 and 1: 2.0078125 ties to 2; unrounded 2.009765625 → 2.015625
  CHECK(p.run(Activation::identity, 2) == std::vector<double>{2, 0});
  CHECK(p.run(Activation::identity, 2, false, false) == std::vector<double>{2.015625, 0});
}

TEST_CASE("accumulate adds the old out before the one final rounding") {
  Pencil p;
  p.x = encode_all(p.dtype, {1, 0});
  p.up = encode_all(p.dtype, {1, 0, 1, 0});
  p.down = encode_all(p.dtype, {0.25, 3, 0.25, 3});
  p.ids = {0, 1};
  p.weights = {1, 1};
  p.old_out = encode_all(p.dtype, {128, 0.5});
  // 0.25 + 0.25 + 128: 128.5 ties to 128; were each addition rounded, likewise; so against 129 (odd) it goes
  // up.
  CHECK(p.run(Activation::identity, 2, true) == std::vector<double>{128, 6.5});
  p.old_out = encode_all(p.dtype, {129, 0.5});
  CHECK(p.run(Activation::identity, 2, true) ==
        std::vector<double>{130, 6.5});  // step by step it would stay 129
}

TEST_CASE("ids of no expert contribute nothing, and nothing of them is read") {
  Pencil p;
  p.x = encode_all(p.dtype, {1, 1, 1, 1});
  p.up = encode_all(p.dtype, {1, 1});
  p.down = encode_all(p.dtype, {1, 2});
  p.ids = {-1, 0, 1, 4294967296};
  p.weights = {std::numeric_limits<float>::quiet_NaN(), 1, 1, 1};
  CHECK(p.run(Activation::identity, 2) == std::vector<double>{2, 4, 0, 0});
  p.ids = {0, 0, -5, 7};  // an expert named twice counts twice
  p.weights = {1, 0.5f, 1, 1};
  p.old_out = encode_all(p.dtype, {0, 0, 5, 6});
  CHECK(p.run(Activation::identity, 2, true) == std::vector<double>{3, 6, 5, 6});
}

TEST_CASE("every token visits the shared experts, after its routed ones, with weight 1 or its gate") {
  const auto x = encode_all(DType::bf16, {1, 1, 2, 0});
  const auto up = encode_all(DType::bf16, {1, 1}), down = encode_all(DType::bf16, {1, 2});
  const auto gate = encode_all(DType::bf16, {0, 0});
  const std::vector<std::int64_t> ids = {0, -1};  // 1 would name the shared expert, were it nameable
  const std::vector<float> weights = {0.5f, 1};
  oracle::OracleLayer layer;
  layer.hidden_size = 2;
  layer.top_k = 1;
  layer.activation = Activation::identity;
  layer.experts.push_back({1, {}, {up.data(), 2, 1}, {down.data(), 1, 1}});
  layer.shared.push_back({1, {}, {up.data(), 2, 1}, {down.data(), 1, 1}});
  const oracle::OracleCall call{x.data(), 0, ids.data(), weights.data(), nullptr, 0};
  // Token 0: h = 2, 0.5·(2, 4) + (2, 4); token 1 has no routed expert: h = 2.
  CHECK(oracle::oracle_forward(layer, call, 2, 1) == std::vector<double>{3, 6, 2, 4});
  layer.shared_gate = gate.data();  // sigmoid(0)
  CHECK(oracle::oracle_forward(layer, call, 2, 1) == std::vector<double>{2, 4, 1, 2});
  layer.shared.push_back(layer.shared[0]);
  CHECK(oracle::oracle_forward(layer, call, 2, 1) == std::vector<double>{3, 6, 2, 4});
  const std::vector<std::int64_t> named = {1, 1};
  const oracle::OracleCall beyond{x.data(), 0, named.data(), weights.data(), nullptr, 0};
  CHECK(oracle::oracle_forward(layer, beyond, 2, 1) == std::vector<double>{2, 4, 2, 4});
}

TEST_CASE("fp16 overflows to infinity and keeps subnormals") {
  Pencil p;
  p.dtype = DType::fp16;
  p.x = encode_all(p.dtype, {256, 0, 0.0009765625, 0});  // 256, 2^-10
  p.up = encode_all(p.dtype, {256, 0});
  p.down = encode_all(p.dtype, {1, 0.5});
  p.ids = {0, 0};
  p.weights = {1, 1};
  const auto out = p.run(Activation::identity, 1);
  CHECK(std::isinf(out[0]));
  CHECK(std::isinf(out[1]));
  CHECK(out[2] == 0.25);
  p.up = encode_all(p.dtype, {std::ldexp(1.0, -10), 0});  // h = 2^-20, subnormal
  CHECK(p.run(Activation::identity, 1)[2] == std::ldexp(1.0, -20));
}

TEST_CASE("a sample of tokens and any number of threads give the same numbers") {
  varmoe::LayerSpec spec;
  spec.hidden_size = 128;
  spec.expert_widths = {72, 8, 128, 136};
  spec.top_k = 3;
  oracle::CaseOptions options;
  options.tokens = 33;
  options.invalid_fraction = 0.1;
  const auto c = oracle::make_case(spec, options);
  const auto all = c.reference(1);
  CHECK(c.reference(7) == all);
  const std::vector<std::int64_t> sample = {32, 5, 0};
  const auto some = c.reference(sample, 2);
  for (std::size_t n = 0; n < sample.size(); ++n) {
    for (std::size_t i = 0; i < 128; ++i) {
      CHECK(some[n * 128 + i] == all[static_cast<std::size_t>(sample[n]) * 128 + i]);
    }
  }
}
