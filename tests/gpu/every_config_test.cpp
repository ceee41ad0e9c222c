#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/thread_pool.hpp"
#include "gpu/device_layer.hpp"
#include "model/config_space.hpp"

// Every config that a tuner or an override may choose computes the layer, not only those that the cost model
// likes.

namespace {

using varmoe::GemmConfig;
using varmoe::LayerSpec;
using varmoe::WeightLayout;
using varmoe::model::GemmStage;

varmoe::EngineOptions engine_options(const GemmConfig& fc1, const GemmConfig& fc2) {
  varmoe::EngineOptions options;
  options.cache_dir = gpu::cache_dir();
  options.fc1_config = to_string(fc1);
  options.fc2_config = to_string(fc2);
  options.compile_threads = 1;
  options.log = [](varmoe::LogLevel, std::string_view) {};
  return options;
}

struct Pair {
  GemmConfig fc1, fc2;
  std::string failure;
};

/// fc1's i-th candidate beside fc2's i-th, every `step`-th of them.
std::vector<Pair> pairs_of(const LayerSpec& spec, std::size_t step) {
  const auto& a = gpu::device()->attributes();
  auto device = gpu::must(varmoe::model::find_profile("h200"), "profile");
  if (a.compute_major != 9) {
    device = varmoe::model::generic_profile(a.compute_major, a.compute_minor, a.sm_count, a.smem_per_block,
                                            a.smem_per_sm, a.l2_bytes);
  }
  const auto fc1 = gemm_candidates(spec, GemmStage::fc1, device),
             fc2 = gemm_candidates(spec, GemmStage::fc2, device);
  std::vector<Pair> pairs;
  for (std::size_t i = 0; i < std::max(fc1.size(), fc2.size()); i += step) {
    Pair pair{fc1[i % fc1.size()], fc2[i % fc2.size()], {}};
    varmoe::LayerConfig both;
    both.fc1 = pair.fc1;
    both.fc2 = pair.fc2;
    // Unequal schedules do not go with every width; the same candidate of fc2 then meets one of its own kind
    // elsewhere in the list.
    if (!check_layer_config(spec, both, device)) {
      pair.fc1 = fc1.front();
      both.fc1 = pair.fc1;
      if (!check_layer_config(spec, both, device)) continue;
    }
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

/// Compiles all pairs' kernels side by side into the tests' cache.
void compile_all(const LayerSpec& spec, std::int64_t tokens, std::vector<Pair>& pairs) {
  varmoe::parallel_for(pairs.size(), 0, [&](std::size_t i) {
    auto engine = varmoe::Engine::create(engine_options(pairs[i].fc1, pairs[i].fc2));
    auto layer = engine ? engine->create_layer(spec) : varmoe::Result<varmoe::Layer>(engine.error());
    auto report =
        layer ? layer->prepare(gpu::buckets({tokens})) : varmoe::Result<varmoe::PrepareReport>(layer.error());
    if (!report) {
      pairs[i].failure = report.error().message();
      return;
    }
    for (const auto& kernel : report->kernels) {
      if (kernel.spill_bytes != 0)
        pairs[i].failure += kernel.stage + " spills " + std::to_string(kernel.spill_bytes) + " bytes; ";
    }
  });
}

void check_every_config(const LayerSpec& spec, std::size_t step, oracle::Routing routing) {
  oracle::CaseOptions options;
  options.tokens = 700;
  options.seed = 11;
  options.routing = routing;
  const auto c = oracle::make_case(spec, options);
  auto pairs = pairs_of(spec, step);
  compile_all(spec, options.tokens, pairs);
  REQUIRE(pairs.size() > 20);
  for (const Pair& pair : pairs) {
    const std::string fc1 = to_string(pair.fc1), fc2 = to_string(pair.fc2);
    CAPTURE(fc1);
    CAPTURE(fc2);
    CHECK(pair.failure == "");
    if (!pair.failure.empty()) continue;
    auto engine = gpu::must(varmoe::Engine::create(engine_options(pair.fc1, pair.fc2)), "Engine::create");
    gpu::DeviceLayer layer(c, {}, &engine);
    gpu::RunOptions run;
    run.sample = 48;
    gpu::check_case("every config", layer, run);
  }
}

/// Widths that no tile divides, one of a single stage, empty last stages, hidden no multiple of a stage.
LayerSpec uneven_spec() {
  LayerSpec spec;
  spec.hidden_size = 456;
  for (const std::int64_t width : {72, 128, 200, 320, 8, 264})
    spec.expert_widths.insert(spec.expert_widths.end(), 2, width);
  spec.top_k = 3;
  return spec;
}

}  // namespace

TEST_CASE("every config: nk, gated, bf16") {
  check_every_config(uneven_spec(), 1, oracle::Routing::zipf);
}

TEST_CASE("every config: kn interleaved, fp16") {
  LayerSpec spec = uneven_spec();
  spec.dtype = varmoe::DType::fp16;
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = varmoe::GateOrder::interleaved;
  check_every_config(spec, 2, oracle::Routing::uniform);
}

TEST_CASE("every config: kn, gate and up apart") {
  LayerSpec spec = uneven_spec();
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = varmoe::GateOrder::up_first;
  check_every_config(spec, 3, oracle::Routing::zipf);
}

TEST_CASE("every config: biases and weights on the input in nk") {
  LayerSpec spec = uneven_spec();
  spec.bias = spec.weight_on_input = true;
  check_every_config(spec, 3, oracle::Routing::zipf);
}

TEST_CASE("every config: biases in kn interleaved with swiglu_oai") {
  LayerSpec spec = uneven_spec();
  spec.activation = varmoe::Activation::swiglu_oai;
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = varmoe::GateOrder::interleaved;
  spec.bias = true;
  check_every_config(spec, 3, oracle::Routing::zipf);
}

TEST_CASE("every config: weights on the input in kn with gate and up apart") {
  LayerSpec spec = uneven_spec();
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.weight_on_input = true;
  check_every_config(spec, 5, oracle::Routing::uniform);
}

TEST_CASE("every config: nk, not gated") {
  LayerSpec spec = uneven_spec();
  spec.activation = varmoe::Activation::relu2;
  check_every_config(spec, 3, oracle::Routing::zipf);
}
