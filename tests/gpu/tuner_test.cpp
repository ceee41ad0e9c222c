#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>

#include "engine/device_choice.hpp"
#include "gpu/evidence.hpp"
#include "gpu/tuner_bench.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "tools/gpu/candidate_kernels.hpp"
#include "tools/gpu/gpu_measurer.hpp"
#include "tools/gpu/trial_layer.hpp"
#include "tuner/candidates.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"

/// The tuner's measurer on a real GPU. Whether the kernels are right is judged by the oracle elsewhere; here
/// right kernels must be found right, and wrong ones wrong.
using namespace varmoe;
using namespace varmoe::tools;
using gpu::small_layer;

namespace {

struct Bench : gpu::TunerBench {
  std::unique_ptr<TrialLayer> layer(const LayerSpec& spec, std::int64_t bucket) {
    auto made =
        gpu::must(TrialLayer::create(gpu::device(), *references, stream->handle(), spec, profile.l2_bytes),
                  "TrialLayer");
    gpu::must(made->set_bucket(bucket), "set_bucket");
    return made;
  }
  plan::KernelSet kernels(const LayerSpec& spec, std::int64_t bucket) {
    const std::vector<LayerConfig> configs = {model::predict_layer_config(spec, bucket, profile)};
    CandidateKernels candidates(*builder, *table, spec, bucket, configs);
    gpu::must(candidates.wait(0), "compile");
    return gpu::must(candidates.load(0), "load");
  }
};

/// The reference finds nothing wrong with the kernels of the config that is predicted for 64 tokens.
void expect_agreement(Bench& bench, const LayerSpec& spec) {
  CAPTURE(tuning_signature(spec));
  const auto layer = bench.layer(spec, 64);
  const auto kernels = bench.kernels(spec, 64);
  for (const RoutingKind kind : kRoutingKinds) {
    const auto verdict = gpu::must(layer->check(kernels, kind), "check");
    CHECK_MESSAGE(verdict.fault.empty(), verdict.fault);
    CHECK(verdict.err1 == 0);
    CHECK(verdict.err2 == 0);
  }
}

}  // namespace

TEST_CASE("small: tuner: the reference agrees with the kernels for shared experts with and without a gate") {
  Bench bench;
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const bool gate : {false, true}) {
      LayerSpec spec = small_layer(Activation::silu_mul, layout, layout, GateOrder::interleaved, DType::bf16);
      spec.shared_widths = {320, 64};
      spec.shared_gate = gate;
      expect_agreement(bench, spec);
    }
  }
}

TEST_CASE(
    "tuner: the reference agrees with the kernels for every activation, layout, gate order and "
    "dtype") {
  Bench bench;
  for (const Activation activation :
       {Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
        Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu2,
        Activation::identity}) {
    for (const DType dtype : {DType::bf16, DType::fp16}) {
      for (const WeightLayout fc1 : {WeightLayout::nk, WeightLayout::kn}) {
        for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
          const WeightLayout fc2 = order == GateOrder::up_first ? WeightLayout::nk : fc1;
          const LayerSpec spec = small_layer(activation, fc1, fc2, order, dtype);
          expect_agreement(bench, spec);
          if (!activation_info(activation).gated) break;  // the orders are one
        }
      }
    }
  }
}

TEST_CASE("tuner: kernels of another activation or dtype are found wrong") {
  Bench bench;
  const LayerSpec spec = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::nk,
                                     GateOrder::gate_first, DType::bf16);
  LayerSpec other = spec;
  const auto expect_wrong = [&](const LayerSpec& computed) {
    const auto layer = bench.layer(spec, 64);
    const auto kernels = bench.kernels(computed, 64);
    for (const RoutingKind kind : kRoutingKinds) {
      const auto verdict = gpu::must(layer->check(kernels, kind), "check");
      CHECK_FALSE(verdict.fault.empty());
    }
  };
  other.activation = Activation::gelu_tanh_mul;
  expect_wrong(other);
  other = spec;
  other.dtype = DType::fp16;
  expect_wrong(other);
}

TEST_CASE("tuner: the reference agrees with the kernels for biases and weights on the input") {
  Bench bench;
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        for (const int options : {1, 2, 3}) {
          LayerSpec spec = small_layer(Activation::swiglu_oai, layout, layout, order, dtype);
          const LayerSpec plain = spec;
          spec.bias = options % 2 == 1;
          spec.weight_on_input = options >= 2;
          expect_agreement(bench, spec);
          if (order != GateOrder::gate_first) continue;
          // Kernels that leave both out are found wrong.
          const auto layer = bench.layer(spec, 64);
          const auto without = gpu::must(layer->check(bench.kernels(plain, 64), RoutingKind::zipf), "check");
          CHECK_FALSE(without.fault.empty());
        }
      }
    }
  }
}

TEST_CASE("tuner: a measurer answers every config and no figure is missing or out of range") {
  SessionOptions session;
  session.cache_dir = gpu::cache_dir();
  auto measurer = gpu::must(open_gpu_measurer(session, 0), "measurer");
  const LayerSpec spec = uniform_spec(1024, 16, 512, 4);
  const auto profile = gpu::must(engine::device_profile(gpu::device()->attributes(), {}), "profile");
  for (const std::int64_t bucket : {1, 64, 1024}) {
    for (const tuner::Effort effort : {tuner::Effort::quick, tuner::Effort::final_}) {
      tuner::MeasureRequest request{
          spec, bucket, effort, {model::predict_layer_config(spec, bucket, profile)}};
      const tuner::CandidateLimits few{4, 1, 2.0};
      for (const GemmConfig& config :
           tuner::ranked_candidates(spec, model::GemmStage::fc1, bucket, profile, few)) {
        LayerConfig changed = request.configs[0];
        changed.fc1 = config;
        if (model::check_layer_config(spec, changed, profile)) request.configs.push_back(changed);
      }
      const auto answers = gpu::must(tuner::measure_all(*measurer, request), "measure");
      REQUIRE(answers.size() == request.configs.size());
      for (std::size_t i = 0; i < answers.size(); ++i) {
        CAPTURE(to_string(request.configs[i].fc1));
        const tuner::Measurement& m = answers[i];
        CHECK_MESSAGE(tuner::fault_of(m).empty(), tuner::fault_of(m));
      }
    }
  }
}

TEST_CASE("tuner: a search on the GPU finds a config at least as good as the cost model's, and it is right") {
  SessionOptions session;
  session.cache_dir = gpu::cache_dir();
  auto measurer = gpu::must(open_gpu_measurer(session, 0), "measurer");
  const auto profile = gpu::must(engine::device_profile(gpu::device()->attributes(), {}), "profile");
  const LayerSpec spec = uniform_spec(1024, 16, 512, 4);
  TuningKey key = make_tuning_key(spec, {profile.arch, profile.sm_count, profile.name}, 64);
  tuner::SearchOptions options;
  options.candidates = {8, 2, 2.0};
  const auto outcome = gpu::must(tuner::search_item(*measurer, {spec, key}, profile, options), "search");
  REQUIRE_MESSAGE(outcome.found, outcome.failure);
  CHECK(outcome.failed == 0);
  CHECK(outcome.record.verified);
  CHECK(outcome.record.err2 == 0);
  CHECK(outcome.record.baseline_us > 0);
  gpu::record_number("tuned 16x512 at 64 tokens, us", outcome.record.us);
}
