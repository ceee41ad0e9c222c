#include <doctest/doctest.h>

#include <algorithm>

#include "cpu_case.hpp"

// Biases, weights on the input, and the local side of expert parallelism.

using oracle::Storage;
using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

TEST_CASE("biases and weights on the input agree with the oracle in every layout and gate order") {
  for (const auto& set : varmoe::cpu::instruction_sets()) {
    for (const auto activation : {Activation::silu_mul, Activation::swiglu_oai, Activation::relu2}) {
      for (const auto dtype : {DType::bf16, DType::fp16}) {
        for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
          for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
            if (!oracle::is_gated(activation) && order != GateOrder::gate_first) continue;
            for (const int options : {1, 2, 3}) {
              auto spec = cpu_test::small_spec();
              spec.activation = activation;
              spec.dtype = dtype;
              spec.fc1_layout = spec.fc2_layout = layout;
              spec.gate_order = order;
              spec.bias = options % 2 == 1;
              spec.weight_on_input = options >= 2;
              CAPTURE(set);
              CAPTURE(tuning_signature(spec));
              auto c = oracle::make_case(spec, {.tokens = 19, .seed = 5, .threads = 1});
              cpu_test::run_and_check(c, 2, set);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("biases in every storage give the same bits") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
      auto spec = cpu_test::small_spec();
      spec.fc1_layout = spec.fc2_layout = layout;
      spec.gate_order = order;
      spec.bias = true;
      std::vector<std::uint16_t> expected;
      for (const auto storage : oracle::kStorages) {
        if (!oracle::storage_fits(spec, storage)) continue;
        CAPTURE(oracle::to_string(storage));
        auto c = oracle::make_case(spec, {.tokens = 11, .seed = 6, .storage = storage, .threads = 1});
        cpu_test::run_and_check(c, 1);
        if (expected.empty()) expected = cpu_test::output(c);
        CHECK(cpu_test::output(c) == expected);
      }
    }
  }
}

TEST_CASE("a width that is padded with a bias of zero gives the bits of the true one") {
  for (const auto activation : {Activation::swiglu_oai, Activation::relu2}) {
    for (const auto order : {GateOrder::gate_first, GateOrder::interleaved}) {
      // 40 true columns of 48: the packer pads only to multiples of 8, so the true width is one here.
      varmoe::LayerSpec spec = varmoe::uniform_spec(64, 1, 40, 1, activation), wide = spec;
      spec.gate_order = wide.gate_order = order;
      spec.bias = wide.bias = true;
      wide.expert_widths = {48};
      auto c = oracle::make_case(spec, {.tokens = 7, .seed = 3, .threads = 1});
      cpu_test::run_and_check(c, 1);
      auto padded =
          oracle::make_case(spec, {.tokens = 7, .seed = 3, .storage = Storage::padded, .padded_width = 48});
      const auto zero = [](oracle::Buffer16& b) {
        for (std::int64_t i = 0; i < b.size(); ++i)
          if (b[i] == oracle::kPoison) b[i] = 0;
      };
      zero(padded.fc1), zero(padded.fc2), zero(padded.fc1_bias);
      auto layer = varmoe::cpu::CpuLayer::create(wide, 1);
      REQUIRE(layer.ok());
      const auto matrices = varmoe::Weights::blocks(wide, padded.fc1.data(), padded.fc2.data());
      REQUIRE(matrices.ok());
      const auto weights = matrices->with_biases(wide, padded.fc1_bias.data(), padded.fc2_bias.data());
      REQUIRE(weights.ok());
      REQUIRE((*layer)->bind(*weights).ok());
      cpu_test::run(**layer, cpu_test::arguments(padded));
      CHECK(cpu_test::output(padded) == cpu_test::output(c));
    }
  }
}

namespace {

/// Ids of 11 global experts, of which this layer has some in another order; some ids name nobody.
struct Mapped {
  std::vector<std::int32_t> map = {-1, 2, 7, 0, -5, 3, 3, -1, 2147483647, 1, -2147483647};
  oracle::RandomCase c;

  explicit Mapped(oracle::CaseOptions options, bool weight_on_input = false) {
    auto spec = cpu_test::small_spec();
    spec.weight_on_input = weight_on_input;
    options.threads = 1;
    c = oracle::make_case(spec, options);
    for (std::size_t i = 0; i < c.ids64.size(); ++i) {
      const std::int64_t ids[] = {static_cast<std::int64_t>(i * 7 % 11), 11, -1, 2147483647};
      c.ids64[i] = ids[i % 9 == 4 ? 1 + i % 3 : 0];
      // The first tokens name no expert of this layer.
      if (i < 4) c.ids64[i] = i % 2 == 0 ? 0 : 7;
      c.ids32[i] = static_cast<std::int32_t>(c.ids64[i]);
    }
  }
  std::vector<double> reference() const {
    auto call = c.oracle_call();
    call.expert_map = map.data();
    call.global_experts = static_cast<std::int64_t>(map.size());
    return oracle::oracle_forward(c.oracle_layer(), call, c.options.tokens);
  }
  varmoe::ForwardArgs arguments() {
    auto args = cpu_test::arguments(c);
    args.expert_map = map.data();
    args.num_global_experts = static_cast<std::int64_t>(map.size());
    return args;
  }
};

}  // namespace

TEST_CASE("an expert map: ids of the whole model, experts of this layer") {
  for (const bool ids_64 : {false, true}) {
    for (const bool weight_on_input : {false, true}) {
      Mapped m({.tokens = 40, .seed = 2}, weight_on_input);
      const auto reference = m.reference();
      auto args = m.arguments();
      if (ids_64) {
        args.topk_ids = m.c.ids64.data();
        args.id_type = varmoe::IdType::int64;
      }
      cpu_test::run(*cpu_test::bound_layer(m.c, 2), args);
      cpu_test::check(m.c, reference);
      CHECK(m.c.out[0] == 0);  // the first token has no expert here
    }
  }
}

TEST_CASE("tokens without an expert here: rows of zeroes, or as they were") {
  for (const bool accumulate : {false, true}) {
    Mapped m({.tokens = 12, .seed = 2, .accumulate = accumulate});
    const auto before = cpu_test::output(m.c);
    auto args = m.arguments();
    args.absent_tokens = varmoe::AbsentTokens::untouched;
    cpu_test::run(*cpu_test::bound_layer(m.c, 1), args);
    const auto kept = cpu_test::output(m.c);
    std::copy(before.begin(), before.end(), m.c.out.data());
    args.absent_tokens = varmoe::AbsentTokens::write_zeros;
    cpu_test::run(*cpu_test::bound_layer(m.c, 1), args);
    const auto written = cpu_test::output(m.c);
    const std::int64_t hidden = m.c.spec.hidden_size;
    std::int64_t absent = 0;
    for (std::int64_t t = 0; t < 12; ++t) {
      const auto none = [&](std::int64_t id) {
        const std::int64_t local = id >= 0 && id < 11 ? m.map[static_cast<std::size_t>(id)] : -1;
        return local < 0 || local >= 4;
      };
      const bool nobody = none(m.c.ids64[static_cast<std::size_t>(2 * t)]) &&
                          none(m.c.ids64[static_cast<std::size_t>(2 * t + 1)]);
      absent += nobody;
      const auto row = [&](const std::vector<std::uint16_t>& out) {
        return std::vector<std::uint16_t>(out.begin() + t * hidden, out.begin() + (t + 1) * hidden);
      };
      CHECK(row(kept) == row(nobody ? before : written));
      if (nobody && !accumulate) {
        CHECK(row(written) == std::vector<std::uint16_t>(static_cast<std::size_t>(hidden), 0));
      }
    }
    CHECK(absent >= 2);
    CHECK(absent < 12);
  }
}
