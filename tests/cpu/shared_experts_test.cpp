#include <doctest/doctest.h>

#include "cpu_case.hpp"

using oracle::Routing;
using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::WeightLayout;

namespace {

varmoe::LayerSpec shared_spec(std::vector<std::int64_t> widths, bool gate) {
  auto spec = cpu_test::small_spec();
  spec.shared_widths = std::move(widths);
  spec.shared_gate = gate;
  return spec;
}

}  // namespace

TEST_CASE(
    "shared experts agree with the oracle in every layout, gate order and dtype, with and without a gate") {
  std::uint64_t seed = 1;
  for (const auto& set : varmoe::cpu::instruction_sets()) {
    for (const auto dtype : {DType::bf16, DType::fp16}) {
      for (const auto layout : {WeightLayout::nk, WeightLayout::kn}) {
        for (const auto order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
          for (const std::vector<std::int64_t>& widths :
               {std::vector<std::int64_t>{72}, {8, 200}, {136, 24, 16}}) {
            for (const bool gate : {false, true}) {
              auto spec = shared_spec(widths, gate);
              spec.dtype = dtype;
              spec.fc1_layout = spec.fc2_layout = layout;
              spec.gate_order = order;
              CAPTURE(set);
              CAPTURE(varmoe::kernel_signature(spec));
              auto c = oracle::make_case(spec, {.tokens = 53, .seed = ++seed, .threads = 1});
              cpu_test::run_and_check(c, 3, set);
            }
          }
        }
      }
    }
  }
}

TEST_CASE(
    "shared experts: storages, skewed and invalid routing, strides, accumulation, no gated activation") {
  std::uint64_t seed = 100;
  for (const auto storage : {oracle::Storage::padded, oracle::Storage::packed, oracle::Storage::packed_joint,
                             oracle::Storage::strided, oracle::Storage::by_hand}) {
    for (const auto routing : oracle::kRoutings) {
      for (const auto activation : {Activation::silu_mul, Activation::relu2}) {
        auto spec = shared_spec({40, 136}, true);
        spec.activation = activation;
        spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
        oracle::CaseOptions o{.tokens = 20, .seed = ++seed, .storage = storage, .routing = routing};
        o.invalid_fraction = 0.3;
        o.empty_every = 2;
        o.accumulate = seed % 2 == 0;
        o.x_stride = 160;
        o.out_stride = 144;
        auto c = oracle::make_case(spec, o);
        cpu_test::run_and_check(c, 2);
      }
    }
  }
}

TEST_CASE("ids beyond E never reach the shared experts, and every token still visits these") {
  auto c = oracle::make_case(shared_spec({64, 64}, false), {.tokens = 6});
  const std::int64_t E = c.spec.num_experts();
  for (std::size_t i = 0; i < c.ids64.size(); ++i) {
    c.ids64[i] = E + static_cast<std::int64_t>(i % 3);
    c.ids32[i] = static_cast<std::int32_t>(c.ids64[i]);
  }
  cpu_test::run_and_check(c, 2);
  for (std::int64_t i = 0; i < c.spec.hidden_size; ++i) CHECK(c.out[i] != oracle::kPoison);
}

TEST_CASE("shared experts: chunks and threads give the same bits, 64-bit ids and a token count too") {
  auto c = oracle::make_case(shared_spec({72, 24}, true), {.tokens = 101, .seed = 9});
  const auto reference = c.reference();
  auto args = cpu_test::arguments(c);
  const auto layer = cpu_test::bound_layer(c, 4);
  cpu_test::run(*layer, args);
  cpu_test::check(c, reference);
  const auto whole = cpu_test::output(c);

  oracle::Buffer16 small(static_cast<std::int64_t>(layer->workspace_bytes(7)) / 2 + 128);
  args.workspace = small.data();
  args.workspace_bytes = layer->workspace_bytes(7);
  args.topk_ids = c.ids64.data();
  args.id_type = varmoe::IdType::int64;
  std::fill(c.out.data(), c.out.data() + c.out.size(), oracle::kPoison);
  cpu_test::run(*layer, args);
  CHECK(cpu_test::output(c) == whole);

  const std::int32_t count = 60;
  args.token_count = &count;
  std::fill(c.out.data(), c.out.data() + c.out.size(), oracle::kPoison);
  cpu_test::run(*cpu_test::bound_layer(c, 1), args);
  for (std::int64_t t = 0; t < 101; ++t) {
    const std::int64_t at = t * c.out_stride;
    CHECK(c.out[at] == (t < count ? whole[static_cast<std::size_t>(at)] : oracle::kPoison));
  }
}

TEST_CASE("shared experts of a layer that weights the input: the gate weights their output alone") {
  for (const bool gate : {false, true}) {
    auto spec = shared_spec({72, 24}, gate);
    spec.weight_on_input = true;
    CAPTURE(gate);
    auto c = oracle::make_case(spec, {.tokens = 33, .seed = 10});
    cpu_test::run_and_check(c, 2);
  }
}

TEST_CASE("a token's shared output does not depend on its neighbours") {
  auto spec = shared_spec({72}, true);
  spec.batch_invariant = true;
  auto c = oracle::make_case(spec, {.tokens = 90, .seed = 4});
  const auto layer = cpu_test::bound_layer(c, 2);
  auto args = cpu_test::arguments(c);
  cpu_test::run(*layer, args);
  const auto all = cpu_test::output(c);
  args.tokens = 1;
  cpu_test::run(*layer, args);
  for (std::size_t i = 0; i < 136; ++i) CHECK(c.out[static_cast<std::int64_t>(i)] == all[i]);
}
