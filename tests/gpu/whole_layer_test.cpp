#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gpu/device_layer.hpp"

// The whole layer in one launch: right for every kind of layer that it takes, the same bits whatever the
// workspace held, whichever ids came before, and whatever else runs on the GPU.

namespace {

using varmoe::Activation;
using varmoe::DType;
using varmoe::GateOrder;
using varmoe::LayerSpec;

bool has_copy_engine() {
  if (gpu::device()->attributes().compute_major >= 9) return true;
  MESSAGE("needs sm_90 or newer");
  return false;
}

/// Whether forwards of few tokens take one launch.
bool in_one_launch(gpu::DeviceLayer& layer) {
  const auto report = gpu::must(layer.layer().prepare(gpu::buckets({8})), "prepare");
  return std::any_of(report.kernels.begin(), report.kernels.end(),
                     [](const varmoe::KernelReport& k) { return k.stage == "whole_layer"; });
}

/// Chunks of K that are whole and that are not, one and several of them in both GEMMs.
LayerSpec uneven_spec(Activation activation = Activation::silu_mul, DType dtype = DType::bf16) {
  LayerSpec spec;
  spec.hidden_size = 1112;
  for (const std::int64_t width : {72, 128, 200, 1032, 8, 264})
    spec.expert_widths.insert(spec.expert_widths.end(), 2, width);
  spec.top_k = 3;
  spec.activation = activation;
  spec.dtype = dtype;
  return spec;
}

void check_tokens(const LayerSpec& spec, oracle::CaseOptions options = {},
                  const varmoe::LayerOptions& layer_options = {}) {
  options.tokens = 8;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c, layer_options);
  REQUIRE(in_one_launch(layer));
  for (const std::int64_t tokens : {1, 2, 7, 8}) {
    gpu::RunOptions run;
    run.tokens = tokens;
    run.ids_64 = tokens == 7;
    gpu::check_case("whole layer", layer, run);
  }
}

}  // namespace

TEST_CASE("small: the whole layer in one launch, gated and not") {
  if (!has_copy_engine()) return;
  check_tokens(uneven_spec());
  check_tokens(uneven_spec(Activation::relu2, DType::fp16));
}

TEST_CASE("small: the whole layer in one launch: ids that name nobody, a count on the device, accumulation") {
  if (!has_copy_engine()) return;
  LayerSpec spec = uneven_spec();
  spec.hidden_size = 264;
  oracle::CaseOptions options;
  options.tokens = 8;
  options.invalid_fraction = 0.4;
  options.duplicate_fraction = 0.3;
  options.accumulate = true;
  options.x_stride = 320;
  options.out_stride = 288;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  REQUIRE(in_one_launch(layer));
  for (const std::int64_t live : {0, 1, 5, 8}) {
    gpu::RunOptions run;
    run.device_tokens = live;
    gpu::check_case("whole layer, device count", layer, run);
  }
}

TEST_CASE("the whole layer in one launch, every activation, gate order and dtype") {
  if (!has_copy_engine()) return;
  for (const Activation activation :
       {Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
        Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu2,
        Activation::identity}) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        LayerSpec spec = uneven_spec(activation, dtype);
        spec.gate_order = order;
        CAPTURE(kernel_signature(spec));
        check_tokens(spec);
        if (!spec.gated()) break;
      }
    }
  }
}

TEST_CASE(
    "the whole layer in one launch on skewed routing, hot experts and a token that has one expert k times") {
  if (!has_copy_engine()) return;
  for (const oracle::Routing routing : oracle::kRoutings) {
    oracle::CaseOptions options;
    options.routing = routing;
    check_tokens(uneven_spec(), options);
    check_tokens(varmoe::uniform_spec(2048, 128, 256, 8), options);
  }
  // More widths than can be compiled in; more experts than there are lanes in a block; many of them per
  // token.
  LayerSpec any = varmoe::uniform_spec(512, 300, 8, 24);
  for (std::size_t e = 0; e < any.expert_widths.size(); ++e)
    any.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 40));
  check_tokens(any);
  check_tokens(varmoe::uniform_spec(4096, 8, 1536, 2));
}

TEST_CASE("the whole layer in one launch held to few SMs") {
  if (!has_copy_engine()) return;
  for (const int sms : {1, 2, 5}) {
    varmoe::LayerOptions limited;
    limited.max_sms = sms;
    check_tokens(uneven_spec(), {}, limited);
  }
}

TEST_CASE(
    "20000 launches on changing ids, beside another such layer and one that takes all SMs, give the same "
    "bits") {
  if (!has_copy_engine()) return;
  oracle::CaseOptions options;
  options.tokens = 8;
  options.routing = oracle::Routing::uniform;
  const LayerSpec spec = varmoe::uniform_spec(1024, 64, 128, 4);
  std::vector<oracle::RandomCase> cases;
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    options.seed = seed;
    cases.push_back(oracle::make_case(spec, options));
  }
  gpu::DeviceLayer one(cases[0]), two(cases[1]);
  REQUIRE(in_one_launch(one));
  REQUIRE(in_one_launch(two));
  // The ids of the other cases, on the weights of the first.
  std::vector<varmoe::cuda::DeviceBuffer> ids;
  for (const auto& c : cases) {
    ids.push_back(gpu::must(varmoe::cuda::DeviceBuffer::allocate(gpu::device(), c.ids32.size() * 4), "ids"));
    gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), ids.back().address(), c.ids32.data(),
                                           c.ids32.size() * 4),
              "upload");
  }
  options.tokens = 1500;
  const auto big_case = oracle::make_case(varmoe::uniform_spec(1024, 32, 512, 4), options);
  gpu::DeviceLayer big(big_case);
  const auto expect_big = big.forward_twice();

  auto a = one.args({});
  std::vector<std::vector<std::uint16_t>> expected;
  for (const auto& table : ids) {
    a.topk_ids = table.data();
    one.poison_out();
    gpu::must(one.layer().forward(a), "forward");
    expected.push_back(one.download_out());
  }
  const auto expect_two = two.forward_twice();
  const auto b = two.args({}), c = big.args({});
  for (std::size_t round = 0; round < 10000; ++round) {
    const std::size_t which = round * 7 % ids.size();
    a.topk_ids = ids[which].data();
    a.tokens = 8;
    gpu::must(one.layer().forward(a), "forward");
    gpu::must(two.layer().forward(b), "forward");
    if (round % 8 == 0) gpu::must(big.layer().forward(c), "forward");
    if (round % 97 == 0) {
      REQUIRE(one.download_out() == expected[which]);
      one.poison_out();
      gpu::must(one.layer().forward(a), "forward");
      REQUIRE(one.download_out() == expected[which]);
    }
  }
  CHECK(two.download_out() == expect_two);
  CHECK(big.download_out() == expect_big);
}
