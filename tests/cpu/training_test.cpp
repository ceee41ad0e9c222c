#include "cpu/training.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "cpu/activation.hpp"
#include "cpu_case.hpp"
#include "oracle/training_case.hpp"

// Backward on the CPU against the fp64 oracle, whose gradients tests/oracle holds against finite differences.

using oracle::GradientBuffers;
using oracle::TrainingCase;
using oracle::TrainingOutput;
using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;
using varmoe::cpu::CpuTrainingLayer;

namespace {

/// 256-byte aligned poison with a guard behind it.
struct Memory {
  explicit Memory(std::size_t size) : bytes(size), buffer(static_cast<std::int64_t>(size / 2 + 128)) {
    std::fill_n(buffer.data(), buffer.size(), oracle::kPoison);
  }
  bool guard_untouched() const {
    for (auto i = static_cast<std::int64_t>((bytes + 1) / 2); i < buffer.size(); ++i)
      if (buffer[i] != oracle::kPoison) return false;
    return true;
  }
  std::size_t bytes;
  oracle::Buffer16 buffer;
};

class Trained {
 public:
  explicit Trained(const TrainingCase& c, int threads = 2, const std::string& instruction_set = {}) : c_(c) {
    varmoe::TrainingOptions options;
    options.save_preactivation = c.options.save_preactivation;
    options.gradient_type = c.options.fp32 ? varmoe::GradientType::fp32 : varmoe::GradientType::layer_dtype;
    auto made = CpuTrainingLayer::create(c.layer.spec, options, threads, instruction_set);
    REQUIRE_MESSAGE(made.ok(), (made.ok() ? "" : made.error().message()));
    layer_ = std::move(*made);
    const auto weights = c.layer.host_weights();
    REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
    REQUIRE(layer_->bind(*weights).ok());
  }

  /// Forward into poison, then backward from what it saved.
  TrainingOutput run() {
    const std::int64_t tokens = c_.layer.options.tokens;
    TrainingOutput out = c_.fresh();
    const varmoe::Weights gradients = out.gradients.weights();
    REQUIRE(gradients.validate(c_.layer.spec).ok());
    REQUIRE(layer_->bind_gradients(gradients).ok());
    varmoe::BackwardArgs args;
    args.tokens = tokens;
    args.accumulate_weight_gradients = c_.options.accumulate_weights;
    args.weight_gradients = c_.options.weight_gradients;
    if (tokens == 0) {  // nothing but what may be null
      REQUIRE(layer_->backward(args).ok());
      return out;
    }
    Memory saved(layer_->saved_bytes(tokens)), workspace(layer_->workspace_bytes(tokens));
    const auto count = static_cast<std::int32_t>(c_.options.token_count);
    forward_out_ = oracle::Buffer16(tokens * c_.layer.spec.hidden_size);
    std::fill_n(forward_out_.data(), forward_out_.size(), oracle::kPoison);
    varmoe::ForwardArgs forward;
    const auto both = [&](auto& a) {
      a.tokens = tokens;
      a.x = c_.layer.x.data();
      a.x_stride = c_.layer.x_stride;
      a.topk_ids =
          c_.options.ids_64 ? static_cast<const void*>(c_.layer.ids64.data()) : c_.layer.ids32.data();
      a.id_type = c_.options.ids_64 ? varmoe::IdType::int64 : varmoe::IdType::int32;
      a.topk_weights = c_.layer.topk_weights.data();
      if (c_.options.token_count >= 0) a.token_count = &count;
      if (!c_.options.expert_map.empty()) {
        a.expert_map = c_.options.expert_map.data();
        a.num_global_experts = static_cast<std::int64_t>(c_.options.expert_map.size());
      }
      a.workspace = workspace.buffer.data();
      a.workspace_bytes = workspace.bytes;
    };
    both(forward);
    forward.out = forward_out_.data();
    REQUIRE(layer_->forward(forward, saved.bytes > 0 ? saved.buffer.data() : nullptr).ok());
    CHECK(saved.guard_untouched());
    CHECK(workspace.guard_untouched());
    std::fill_n(workspace.buffer.data(), workspace.buffer.size(), oracle::kPoison);
    both(args);
    args.dout = c_.dout.data();
    args.dout_stride = c_.dout_stride;
    args.saved = saved.bytes > 0 ? saved.buffer.data() : nullptr;
    args.saved_bytes = saved.bytes;
    if (c_.options.dx) args.dx = out.dx.data();
    args.dx_stride = c_.dx_stride;
    if (c_.options.dtopk_weights) args.dtopk_weights = out.dtopk.data();
    args.accumulate_dx = c_.options.accumulate_dx;
    REQUIRE(layer_->backward(args).ok());
    CHECK(workspace.guard_untouched());
    return out;
  }
  CpuTrainingLayer& layer() { return *layer_; }
  const oracle::Buffer16& forward_out() const { return forward_out_; }

 private:
  const TrainingCase& c_;
  std::unique_ptr<CpuTrainingLayer> layer_;
  oracle::Buffer16 forward_out_;
};

void check(const TrainingCase& c, const TrainingOutput& out) {
  const auto comparison = c.compare(c.reference(), out, oracle::training_bar(c.layer.spec.dtype));
  CHECK_MESSAGE(comparison.pass(), comparison.text());
}

varmoe::LayerSpec small_spec(Activation activation = Activation::silu_mul) {
  auto spec = cpu_test::small_spec();
  spec.activation = activation;
  return spec;
}

}  // namespace

TEST_CASE("backward: random layers with all options agree with the oracle") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    const auto c = oracle::draw_training_case(700 + seed, {});
    CAPTURE(tuning_signature(c.layer.spec));
    check(c, Trained(c).run());
  }
}

TEST_CASE("backward: every activation, layout, gate order and instruction set") {
  for (const auto& set : varmoe::cpu::instruction_sets()) {
    for (int a = 0; a < 10; ++a) {
      const auto activation = static_cast<Activation>(a);
      for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
        for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
          if (!oracle::is_gated(activation) && order != GateOrder::gate_first) continue;
          auto spec = small_spec(activation);
          spec.dtype = a % 2 == 0 ? DType::bf16 : DType::fp16;
          spec.fc1_layout = spec.fc2_layout = layout;
          spec.gate_order = order;
          spec.bias = a % 3 == 0;
          CAPTURE(set);
          CAPTURE(tuning_signature(spec));
          const auto c = oracle::make_training_case(
              oracle::make_case(spec, {.tokens = 29, .seed = 5, .invalid_fraction = 0.1, .threads = 1}), {});
          check(c, Trained(c, 2, set).run());
        }
      }
    }
  }
}

TEST_CASE("backward: weights on the input, some of them 0") {
  for (int a = 0; a < 10; ++a) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (int kind = 0; kind < 4; ++kind) {
        auto spec = small_spec(static_cast<Activation>(a));
        spec.weight_on_input = true;
        spec.dtype = a % 2 == 0 ? DType::bf16 : DType::fp16;
        spec.fc1_layout = spec.fc2_layout = layout;
        if (kind % 2 == 0) spec.gate_order = GateOrder::interleaved;
        spec.bias = kind == 1;
        if (kind >= 2) spec.shared_widths = {104, 8};
        spec.shared_gate = kind == 3;
        CAPTURE(tuning_signature(spec));
        auto c = oracle::make_training_case(
            oracle::make_case(spec, {.tokens = 45, .seed = 6, .invalid_fraction = 0.1, .threads = 1}),
            {.save_preactivation = kind != 2, .fp32 = kind == 1});
        oracle::zero_some_weights(c);
        check(c, Trained(c, 2).run());
      }
    }
  }
}

TEST_CASE("backward: several tiles of rows and columns, experts without rows, fp32 and 16-bit gradients") {
  for (const bool fp32 : {false, true}) {
    for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
      varmoe::LayerSpec spec;
      spec.hidden_size = 328;
      spec.expert_widths = {136, 264, 40, 136, 72, 200};
      spec.top_k = 3;
      spec.fc1_layout = spec.fc2_layout = layout;
      spec.gate_order = GateOrder::interleaved;
      for (const bool accumulate : {false, true}) {
        CAPTURE(fp32);
        CAPTURE(accumulate);
        const auto c = oracle::make_training_case(
            oracle::make_case(
                spec, {.tokens = 331, .seed = 8, .routing = oracle::Routing::half_on_one, .empty_every = 3}),
            {.fp32 = fp32,
             .gradient_storage = oracle::Storage::strided,
             .accumulate_dx = accumulate,
             .accumulate_weights = accumulate});
        const auto reference = c.reference();
        CHECK(reference.rows[1] == 0);
        CHECK(reference.rows[4] == 0);
        check(c, Trained(c).run());
      }
    }
  }
}

TEST_CASE("backward: any number of threads, again, and z kept or made again give the same bits") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    varmoe::LayerSpec spec;
    spec.hidden_size = 328;
    spec.expert_widths = {136, 264, 40, 72};
    spec.top_k = 3;
    spec.fc1_layout = spec.fc2_layout = layout;
    spec.shared_widths = {104, 8};
    spec.shared_gate = true;
    spec.weight_on_input = layout == WeightLayout::kn;
    auto c = oracle::make_training_case(
        oracle::make_case(spec, {.tokens = 150, .seed = 3, .invalid_fraction = 0.1}), {});
    const auto one = Trained(c, 1).run();
    for (const int threads : {2, 3, 8, 17}) {
      CAPTURE(threads);
      Trained layer(c, threads);
      CHECK(layer.run() == one);
      CHECK(layer.run() == one);
    }
    c.options.save_preactivation = false;
    Trained without(c, 3);
    CHECK(without.layer().saved_bytes(150) == 0);
    CHECK(without.run() == one);
  }
}

TEST_CASE("backward: a training layer's forward has the bits of a layer's") {
  for (const bool save : {false, true}) {
    auto spec = small_spec();
    spec.shared_widths = {24};
    spec.shared_gate = true;
    spec.gate_order = GateOrder::interleaved;
    spec.fc1_layout = WeightLayout::kn;
    spec.weight_on_input = save;
    auto c = oracle::make_training_case(oracle::make_case(spec, {.tokens = 61, .seed = 2}),
                                        {.save_preactivation = save});
    Trained trained(c, 3);
    trained.run();
    cpu_test::run(*cpu_test::bound_layer(c.layer, 2), cpu_test::arguments(c.layer));
    const auto& out = trained.forward_out();
    CHECK(std::vector<std::uint16_t>(out.data(), out.data() + out.size()) == cpu_test::output(c.layer));
  }
}

TEST_CASE(
    "backward: saved bytes are rows of z rounded up to 64 columns; the workspace grows with the tokens") {
  auto spec = small_spec();  // the widest of 8, 40, 136, 24
  spec.shared_widths = {200};
  const auto bytes = [](const varmoe::LayerSpec& s, std::int64_t tokens) {
    return (*CpuTrainingLayer::create(s, {}, 1))->saved_bytes(tokens);
  };
  CHECK(bytes(spec, 7) == 7 * 3 * 2 * 256 * 2);
  spec.shared_widths.clear();
  CHECK(bytes(spec, 7) == 7 * 2 * 2 * 192 * 2);
  spec.activation = Activation::relu2;
  CHECK(bytes(spec, 7) == 7 * 2 * 192 * 2);
  varmoe::TrainingOptions options;
  for (const bool save : {true, false}) {
    options.save_preactivation = save;
    const auto layer = CpuTrainingLayer::create(spec, options, 2);
    REQUIRE(layer.ok());
    std::size_t before = 0;
    for (const std::int64_t tokens : {1, 2, 7, 64, 1000}) {
      CHECK((*layer)->workspace_bytes(tokens) > before);
      before = (*layer)->workspace_bytes(tokens);
    }
  }
  CHECK(CpuTrainingLayer::create(spec, {}, 1, "avx9").error().code() == varmoe::ErrorCode::unsupported);
}

TEST_CASE("backward: no tokens: gradients of zero, or what was there") {
  for (const bool by_count : {false, true}) {
    for (const bool accumulate : {false, true}) {
      for (const bool fp32 : {false, true}) {
        auto spec = small_spec();
        spec.fc1_layout = fp32 ? WeightLayout::kn : WeightLayout::nk;
        spec.gate_order = GateOrder::interleaved;
        spec.shared_widths = {16};
        spec.shared_gate = true;
        const auto c =
            oracle::make_training_case(oracle::make_case(spec, {.tokens = by_count ? 5 : 0, .threads = 1}),
                                       {.fp32 = fp32,
                                        .gradient_storage = oracle::Storage::pointers,
                                        .accumulate_weights = accumulate,
                                        .token_count = by_count ? 0 : -1});
        const auto out = Trained(c).run();
        check(c, out);
        if (accumulate) CHECK(out == c.before);
        const auto gradients = out.gradients.read();
        if (!accumulate) CHECK(gradients.shared_gate == std::vector<double>(136));
      }
    }
  }
}

TEST_CASE("backward: twice with accumulation is twice the gradient, exactly in fp32") {
  auto spec = small_spec(Activation::gelu_erf_mul);
  auto c = oracle::make_training_case(oracle::make_case(spec, {.tokens = 33, .threads = 1}), {.fp32 = true});
  const auto once = Trained(c).run();
  c.before.gradients = once.gradients.clone();
  c.options.accumulate_weights = true;
  const auto twice = Trained(c).run();
  const auto a = once.gradients.read(), b = twice.gradients.read();
  for (std::size_t e = 0; e < a.experts.size(); ++e) {
    for (std::size_t i = 0; i < a.experts[e].up.size(); ++i)
      if (b.experts[e].up[i] != 2 * a.experts[e].up[i]) FAIL("expert ", e, " up ", i);
    for (std::size_t i = 0; i < a.experts[e].down.size(); ++i)
      if (b.experts[e].down[i] != 2 * a.experts[e].down[i]) FAIL("expert ", e, " down ", i);
  }
}

TEST_CASE("backward: z at a kink has a slope of zero") {
  for (const auto activation : {Activation::relu, Activation::relu2}) {
    auto spec = small_spec(activation);
    auto layer = oracle::make_case(spec, {.tokens = 9, .threads = 1});
    std::fill_n(layer.x.data(), layer.x.size(), std::uint16_t{0});  // every z is 0
    const auto c = oracle::make_training_case(std::move(layer), {});
    const auto out = Trained(c).run();
    check(c, out);
    for (std::int64_t i = 0; i < out.dx.size(); ++i)
      if ((out.dx[i] & 0x7fff) != 0) FAIL("dx[", i, "] is not zero");
  }
  const float limit = 1.5f, gate[] = {1.5f, 1.0f, 1.0f, 2.0f, -2.0f}, up[] = {1.0f, 1.5f, -1.5f, 1.0f, 0.5f};
  float h[5], d_gate[5], d_up[5];
  varmoe::cpu::activation_slopes(Activation::swiglu_oai, {1.702f, limit}, gate, up, 5, h, d_gate, d_up);
  CHECK(d_gate[0] == 0);
  CHECK(d_up[0] != 0);
  CHECK(d_up[1] == 0);
  CHECK(d_gate[1] != 0);
  CHECK(d_up[2] == 0);
  CHECK(d_gate[3] == 0);
  CHECK(d_gate[4] != 0);
  CHECK(d_up[4] != 0);
}

TEST_CASE("backward: slopes and values of the activations agree with fp64 for numbers of every size") {
  std::vector<float> gate, up;
  for (float v :
       {0.0f, 1e-30f, 1e-4f, 0.3f, 1.0f, 2.5f, 6.9f, 7.1f, 20.0f, 88.0f, 100.0f, 6e4f, 1e15f, 1e30f}) {
    for (const float sign : {1.0f, -1.0f}) {
      gate.push_back(sign * v);
      up.push_back(0.75f);
      gate.push_back(0.75f);
      up.push_back(sign * v);
    }
  }
  const auto n = static_cast<std::int64_t>(gate.size());
  for (int a = 0; a < 10; ++a) {
    const auto activation = static_cast<Activation>(a);
    std::vector<float> h(gate.size()), d_gate(gate.size()), d_up(gate.size()), forward(gate.size());
    varmoe::cpu::activation_slopes(activation, {}, gate.data(), up.data(), n, h.data(), d_gate.data(),
                                   d_up.data());
    varmoe::cpu::apply_activation(activation, {}, gate.data(), up.data(), 1, n, forward.data());
    for (std::size_t i = 0; i < gate.size(); ++i) {
      CAPTURE(to_string(activation));
      CAPTURE(gate[i]);
      CAPTURE(up[i]);
      const auto g = static_cast<double>(gate[i]), u = static_cast<double>(up[i]);
      // Beyond fp32 the oracle's numbers are none: what saturates there is 0 or 1 times the other factor.
      const oracle::Slopes s = oracle::slopes(activation, {}, g, u);
      const double value = oracle::activate(activation, {}, g, u);
      const auto near = [](float found, double expected) {
        if (std::fabs(expected) > 1e38) return std::isinf(found);
        return std::fabs(static_cast<double>(found) - expected) <= 2e-6 * std::fabs(expected) + 2e-6;
      };
      CHECK(near(h[i], value));
      CHECK(near(forward[i], value));
      if (oracle::is_gated(activation) && std::isfinite(s.gate)) CHECK(near(d_gate[i], s.gate));
      if (std::isfinite(s.up)) CHECK(near(d_up[i], s.up));
      CHECK(!std::isnan(d_up[i]));
    }
  }
}
