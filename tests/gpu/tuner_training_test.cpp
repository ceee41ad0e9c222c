#include <doctest/doctest.h>

#include "engine/device_choice.hpp"
#include "gpu/evidence.hpp"
#include "gpu/tuner_bench.hpp"
#include "model/cost_model.hpp"
#include "model/gradient_config.hpp"
#include "tools/gpu/backward_reference.hpp"
#include "tools/gpu/candidate_kernels.hpp"
#include "tools/gpu/gpu_measurer.hpp"
#include "tools/gpu/trial_training.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"

/// The tuner's measurer of backward passes on a real GPU. Whether the kernels are right is judged by the
/// oracle elsewhere; here right kernels must be found right, and wrong ones wrong.
using namespace varmoe;
using namespace varmoe::tools;
using gpu::small_layer;

namespace {

struct TrainingBench : gpu::TunerBench {
  BackwardReference backward =
      gpu::must(BackwardReference::create(gpu::device(), *compiler(), profile.arch), "references");

  std::unique_ptr<TrialTraining> layer(const LayerSpec& spec, std::int64_t bucket, GradientType type) {
    auto made =
        gpu::must(TrialTraining::create(gpu::device(), *references, backward, stream->handle(), spec, type),
                  "TrialTraining");
    gpu::must(made->set_bucket(bucket), "set_bucket");
    return made;
  }
  plan::TrainingKernels kernels(const LayerSpec& spec, std::int64_t bucket, GradientType type,
                                const BackwardConfig& config) {
    const std::vector<BackwardConfig> configs = {config};
    CandidateTraining candidates(*builder, *table, spec, bucket, type, configs, profile);
    gpu::must(candidates.wait(0), "compile");
    return gpu::must(candidates.load(0), "load");
  }
};

/// The reference finds nothing wrong with the kernels that are predicted for 256 tokens.
void expect_agreement(TrainingBench& bench, const LayerSpec& spec, GradientType type) {
  CAPTURE(tuning_signature(spec));
  CAPTURE(static_cast<int>(type));
  const auto layer = bench.layer(spec, 256, type);
  const auto kernels = bench.kernels(spec, 256, type, model::predict_products(spec, 256, bench.profile));
  for (const RoutingKind kind : kRoutingKinds) {
    const auto verdict = gpu::must(layer->check(kernels, kind), "check");
    CHECK_MESSAGE(verdict.fault.empty(), verdict.fault);
  }
}

}  // namespace

TEST_CASE(
    "small: tuner: the backward reference agrees with the kernels for one layer and both gradient types") {
  TrainingBench bench;
  const LayerSpec spec = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::nk,
                                     GateOrder::gate_first, DType::bf16);
  for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32})
    expect_agreement(bench, spec, type);
}

TEST_CASE(
    "tuner: the backward reference agrees with the kernels for every activation, layout and gate order") {
  TrainingBench bench;
  for (const Activation activation :
       {Activation::silu_mul, Activation::gelu_tanh_mul, Activation::gelu_erf_mul, Activation::swiglu_oai,
        Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::relu2,
        Activation::identity}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
        const DType dtype = order == GateOrder::up_first ? DType::fp16 : DType::bf16;
        const LayerSpec spec = small_layer(activation, layout, layout, order, dtype);
        expect_agreement(bench, spec,
                         layout == WeightLayout::kn ? GradientType::fp32 : GradientType::layer_dtype);
        if (!activation_info(activation).gated) break;  // the orders are one
      }
    }
  }
  LayerSpec crossed = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::kn,
                                  GateOrder::gate_first, DType::bf16);
  expect_agreement(bench, crossed, GradientType::layer_dtype);
  std::swap(crossed.fc1_layout, crossed.fc2_layout);
  expect_agreement(bench, crossed, GradientType::layer_dtype);
}

TEST_CASE("tuner: the backward reference agrees with the kernels for shared experts, their gate and biases") {
  TrainingBench bench;
  LayerSpec spec = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::nk,
                               GateOrder::gate_first, DType::bf16);
  spec.bias = true;
  expect_agreement(bench, spec, GradientType::layer_dtype);
  spec.bias = false;
  spec.shared_widths = {320, 64};
  expect_agreement(bench, spec, GradientType::fp32);
  spec.shared_gate = true;
  expect_agreement(bench, spec, GradientType::layer_dtype);
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = GateOrder::interleaved;
  expect_agreement(bench, spec, GradientType::fp32);
}

TEST_CASE("tuner: the backward reference agrees with the kernels for weights on the input") {
  TrainingBench bench;
  LayerSpec spec = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::nk,
                               GateOrder::gate_first, DType::bf16);
  spec.weight_on_input = true;
  expect_agreement(bench, spec, GradientType::layer_dtype);
  spec.bias = true;
  expect_agreement(bench, spec, GradientType::fp32);
  spec.bias = false;
  spec.shared_widths = {320, 64};
  spec.shared_gate = true;
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  expect_agreement(bench, spec, GradientType::layer_dtype);
}

TEST_CASE("tuner: backward kernels of another activation, dtype or gradient type are found wrong") {
  TrainingBench bench;
  const LayerSpec spec = small_layer(Activation::silu_mul, WeightLayout::nk, WeightLayout::nk,
                                     GateOrder::gate_first, DType::bf16);
  const auto layer = bench.layer(spec, 256, GradientType::layer_dtype);
  const auto expect_wrong = [&](const LayerSpec& computed, GradientType type) {
    const auto kernels =
        bench.kernels(computed, 256, type, model::predict_products(spec, 256, bench.profile));
    for (const RoutingKind kind : kRoutingKinds) {
      const auto verdict = gpu::must(layer->check(kernels, kind), "check");
      CHECK_FALSE(verdict.fault.empty());
    }
  };
  LayerSpec other = spec;
  other.activation = Activation::gelu_tanh_mul;
  expect_wrong(other, GradientType::layer_dtype);
  other = spec;
  other.dtype = DType::fp16;
  expect_wrong(other, GradientType::layer_dtype);
  // Too small for what is compared: gradients of two bytes where four are read.
  const auto wide = bench.layer(spec, 256, GradientType::fp32);
  const auto narrow =
      bench.kernels(spec, 256, GradientType::layer_dtype, model::predict_products(spec, 256, bench.profile));
  CHECK_FALSE(gpu::must(wide->check(narrow, RoutingKind::zipf), "check").fault.empty());
}

TEST_CASE("tuner: a measurer answers every config of a backward pass with figures that agree") {
  SessionOptions session;
  session.cache_dir = gpu::cache_dir();
  auto measurer = gpu::must(open_gpu_measurer(session, 0), "measurer");
  const LayerSpec spec = uniform_spec(1024, 16, 512, 4);
  const auto profile = gpu::must(engine::device_profile(gpu::device()->attributes(), {}), "profile");
  for (const tuner::Effort effort : {tuner::Effort::quick, tuner::Effort::final_}) {
    tuner::MeasureRequest request{spec, 4096, effort};
    request.pass = TuningPass::backward;
    request.products = {model::predict_products(spec, 4096, profile)};
    for (const GatherMode gather : {GatherMode::fused, GatherMode::copy}) {
      BackwardConfig changed = request.products[0];
      changed.dh.gather = changed.fc1_gradient.gather = changed.fc2_gradient.gather = gather;
      if (model::check_backward_config(spec, changed, profile)) request.products.push_back(changed);
    }
    const auto answers = gpu::must(tuner::measure_all(*measurer, request), "measure");
    REQUIRE(answers.size() == request.products.size());
    for (std::size_t i = 0; i < answers.size(); ++i) {
      CAPTURE(request.config_text(i));
      const tuner::Measurement& m = answers[i];
      REQUIRE_MESSAGE(tuner::fault_of(m).empty(), tuner::fault_of(m));
      const BackwardFigures& p = *m.products;
      // Steps of a chain: no more than the whole, but for noise; and most of it, since they are the products.
      for (const double us : {p.us_dh, p.us_dx, p.us_fc1_gradient, p.us_fc2_gradient}) CHECK(us > 0);
    }
    // The measurer goes on with a forward, and back.
    tuner::MeasureRequest forward{
        spec, 64, tuner::Effort::quick, {model::predict_layer_config(spec, 64, profile)}};
    const auto between = gpu::must(tuner::measure_all(*measurer, forward), "measure");
    CHECK_MESSAGE(tuner::fault_of(between[0]).empty(), tuner::fault_of(between[0]));
  }
}

TEST_CASE(
    "tuner: a search of a backward pass finds products at least as good as the cost model's, and right") {
  SessionOptions session;
  session.cache_dir = gpu::cache_dir();
  auto measurer = gpu::must(open_gpu_measurer(session, 0), "measurer");
  const auto profile = gpu::must(engine::device_profile(gpu::device()->attributes(), {}), "profile");
  const LayerSpec spec = uniform_spec(1024, 16, 512, 4);
  const TuningKey key = make_backward_tuning_key(spec, {profile.arch, profile.sm_count, profile.name}, 4096,
                                                 GradientType::fp32);
  tuner::SearchOptions options;
  options.candidates = {6, 2, 2.0};
  const auto outcome = gpu::must(tuner::search_item(*measurer, {spec, key}, profile, options), "search");
  REQUIRE_MESSAGE(outcome.found, outcome.failure);
  CHECK(outcome.failed == 0);
  CHECK(outcome.record.verified);
  CHECK(outcome.record.baseline_us > 0);
  CHECK(outcome.record.us <= 1.02 * outcome.record.baseline_us);
  CHECK(model::check_backward_config(spec, outcome.record.backward, profile).ok());
  gpu::record_number("tuned backward 16x512 at 4096 tokens, us", outcome.record.us);
}
