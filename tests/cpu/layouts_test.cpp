#include <doctest/doctest.h>

#include "cpu_case.hpp"

using oracle::Storage;
using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

namespace {

constexpr Activation kActivations[] = {
    Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
    Activation::silu,     Activation::gelu_tanh,     Activation::gelu_erf,     Activation::relu,
    Activation::relu2,    Activation::identity};

}  // namespace

TEST_CASE(
    "all layouts, gate orders, activations and dtypes agree with the oracle, with every instruction set") {
  for (const auto& set : varmoe::cpu::instruction_sets()) {
    for (const auto activation : kActivations) {
      for (const auto dtype : {DType::bf16, DType::fp16}) {
        for (const auto fc1 : {WeightLayout::nk, WeightLayout::kn}) {
          for (const auto fc2 : {WeightLayout::nk, WeightLayout::kn}) {
            for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
              if (!oracle::is_gated(activation) && order != GateOrder::gate_first) continue;
              auto spec = cpu_test::small_spec();
              spec.activation = activation;
              spec.activation_params.limit = 1.5f;  // low enough to matter
              spec.dtype = dtype;
              spec.fc1_layout = fc1;
              spec.fc2_layout = fc2;
              spec.gate_order = order;
              CAPTURE(set);
              CAPTURE(varmoe::to_string(activation));
              CAPTURE(varmoe::to_string(dtype));
              CAPTURE(varmoe::to_string(fc1));
              CAPTURE(varmoe::to_string(fc2));
              CAPTURE(varmoe::to_string(order));
              auto c = oracle::make_case(spec, {.tokens = 19, .seed = 5, .threads = 1});
              cpu_test::run_and_check(c, 2, set);
            }
          }
        }
      }
    }
  }
}

TEST_CASE(
    "every storage agrees with the oracle and gives the same bits; nothing outside the matrices is read") {
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const auto activation : {Activation::silu_mul, Activation::relu2}) {
      for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        auto spec = cpu_test::small_spec();
        spec.activation = activation;
        spec.fc1_layout = spec.fc2_layout = layout;
        spec.gate_order = order;
        std::vector<std::uint16_t> first;
        for (const auto storage : oracle::kStorages) {
          if (!oracle::storage_fits(spec, storage)) continue;
          CAPTURE(oracle::to_string(storage));
          auto c = oracle::make_case(spec, {.tokens = 9, .seed = 6, .storage = storage});
          cpu_test::run_and_check(c, 2);
          if (first.empty()) first = cpu_test::output(c);
          CHECK(cpu_test::output(c) == first);
        }
      }
    }
  }
}

TEST_CASE("sizes that cross every block of the loops") {
  // More than kTileRows rows an expert, more than kTileOutputs outputs, K beyond kBlockDepth with a ragged
  // end.
  for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const auto dtype : {DType::bf16, DType::fp16}) {
      for (const auto order : {GateOrder::gate_first, GateOrder::interleaved}) {
        varmoe::LayerSpec spec;
        spec.hidden_size = 1096;
        spec.expert_widths = {264, 1048};
        spec.top_k = 2;
        spec.dtype = dtype;
        spec.fc1_layout = spec.fc2_layout = layout;
        spec.gate_order = order;
        auto c = oracle::make_case(spec, {.tokens = 61, .seed = 7});
        const auto sample = oracle::sample_tokens(61, 7);
        const auto reference = c.reference(sample);
        cpu_test::run(*cpu_test::bound_layer(c, 2), cpu_test::arguments(c));
        const auto comparison =
            oracle::compare_rows(dtype, reference, c.out.data(), c.out_stride, spec.hidden_size, sample);
        CHECK_MESSAGE(comparison.pass, comparison.text());
        for (std::int64_t i = 0; i < c.out.size(); ++i) {
          if (c.out[i] == oracle::kPoison) FAIL("element ", i, " was not written");
        }
      }
    }
  }
}
