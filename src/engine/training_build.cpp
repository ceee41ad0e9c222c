#include "engine/training_build.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emit/training.hpp"
#include "engine/kernel_plan.hpp"
#include "model/backward_layer.hpp"

namespace varmoe::engine {
namespace {

using emit::Stage;
using plan::TrainingKernels;

/// Collects requests, each kernel once.
class Collector {
 public:
  Collector(TrainingPlan& plan, KernelBuilder& builder) : plan_(plan), builder_(builder) {}

  void add(TrainingBucket& bucket, UnitRequest request, TrainingPart part, ConfigSource source) {
    std::vector<UnitRequest>& requests = plan_.requests;
    std::size_t at = requests.size();
    if (request.unit) {
      const Digest& key = (*request.unit)->key;
      for (std::size_t i = 0; i < requests.size(); ++i)
        if (requests[i].unit && (*requests[i].unit)->key == key) at = i;
    }
    if (at == requests.size()) {
      requests.push_back(std::move(request));
      plan_.sources.push_back(source);
      plan_.buckets_of.emplace_back();
    }
    auto& of = plan_.buckets_of[at];
    if (of.empty() || of.back() != bucket.bucket) of.push_back(bucket.bucket);
    plan_.sources[at] = std::min(plan_.sources[at], source);
    part.kernel = at;
    bucket.parts.push_back(part);
  }

  void layer(TrainingBucket& bucket, const LayerSpec& spec, const emit::KernelRequest& request, bool backward,
             const char* name, ConfigSource source) {
    TrainingPart part;
    part.backward = backward;
    part.stage = request.stage;
    add(bucket, {name, config_text(request), request.runtime_width, builder_.unit(spec, request)}, part,
        source);
  }

  void own(TrainingBucket& bucket, const LayerSpec& spec, const emit::GradientRequest& request,
           std::string config, plan::LoadedKernel TrainingKernels::*member, ConfigSource source) {
    TrainingPart part;
    part.own = member;
    UnitRequest unit{
        emit::to_string(request.stage), std::move(config), false, {Error(ErrorCode::internal, "no kernel")}};
    auto emitted = emit::emit_gradient(spec, request);
    if (emitted) {
      unit.unit = builder_.unit(*std::move(emitted));
    } else {
      unit.unit = emitted.error();
    }
    add(bucket, std::move(unit), part, source);
  }

 private:
  TrainingPlan& plan_;
  KernelBuilder& builder_;
};

/// What the kernels of the backward layer are called in reports.
const char* backward_name(Stage stage) {
  switch (stage) {
    case Stage::fc1:
      return "dh";
    case Stage::fc2:
      return "dx";
    default:
      return emit::to_string(stage);
  }
}

}  // namespace

void add_training_bucket(TrainingPlan& plan, const LayerSpec& spec, const TrainingOptions& options,
                         std::int64_t tokens, const ConfigChoice& forward, const BackwardChoice& backward,
                         KernelBuilder& builder) {
  Collector collect(plan, builder);
  const bool runtime_width = needs_runtime_width(spec);
  const LayerSpec back = model::backward_layer(spec);
  TrainingBucket bucket;
  bucket.bucket = tokens;
  bucket.forward = forward;
  bucket.backward = backward;
  TrainingKernels& k = bucket.kernels;
  k.forward.config = forward.config;
  k.forward.config.one_launch = {};
  k.forward.config.fc1 = model::saving_config(forward.config.fc1);
  k.backward.config = backward.config;
  k.backward.config.fc1 = model::saving_config(backward.config.fc1);
  k.forward.runtime_width = k.backward.runtime_width = runtime_width;
  k.use(spec, backward.fc1_gradient, backward.fc2_gradient);
  for (emit::KernelRequest request : emit::required_kernels(spec, k.forward.config, tokens, runtime_width)) {
    request.saves_z = options.save_preactivation && request.stage == Stage::fc1;
    request.saves_product = request.stage == Stage::fc1 && spec.weight_on_input;
    collect.layer(bucket, spec, request, false, emit::to_string(request.stage), forward.source);
    if (request.stage != Stage::fc1 || options.save_preactivation) continue;
    request.saves_z = true;
    TrainingPart again;
    again.own = &TrainingKernels::fc1_again;
    collect.add(bucket, {"fc1_again", config_text(request), runtime_width, builder.unit(spec, request)},
                again, forward.source);
  }
  const ConfigSource source = backward.source;
  for (emit::KernelRequest request : emit::required_kernels(back, k.backward.config, tokens, runtime_width)) {
    if (request.stage == Stage::fc1) request.backward = emit::activation_backward(spec);
    if (request.stage == Stage::fc2) request.down_k = emit::backward_down_k(spec);
    collect.layer(bucket, back, request, true, backward_name(request.stage), source);
  }
  const auto own = [&](Stage stage, plan::LoadedKernel TrainingKernels::*member,
                       const GradientConfig* config) {
    emit::GradientRequest request;
    request.stage = stage;
    if (config) request.config = *config;
    request.type = options.gradient_type;
    collect.own(bucket, spec, request, config ? to_string(*config) : std::string(), member,
                config ? source : ConfigSource::predicted);
  };
  own(Stage::topk_weight_gradient, &TrainingKernels::topk_weight_gradient, nullptr);
  own(Stage::gradient_schedule, &TrainingKernels::gradient_schedule, nullptr);
  own(Stage::fc1_gradient, &TrainingKernels::fc1_gradient, &k.fc1_gradient_config);
  own(Stage::fc2_gradient, &TrainingKernels::fc2_gradient, &k.fc2_gradient_config);
  if (spec.bias) {
    own(Stage::fc1_bias_gradient, &TrainingKernels::fc1_bias_gradient, nullptr);
    own(Stage::fc2_bias_gradient, &TrainingKernels::fc2_bias_gradient, nullptr);
  }
  if (spec.shared_gate) own(Stage::shared_gate_gradient, &TrainingKernels::shared_gate_gradient, nullptr);
  plan.buckets.push_back(std::move(bucket));
}

Result<TrainingPlan> plan_training(const LayerSpec& spec, const TrainingOptions& options,
                                   std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                   KernelBuilder& builder) {
  TrainingPlan plan;
  for (const std::int64_t tokens : buckets) {
    auto forward = chooser.choose(spec, tokens);
    if (!forward) return std::move(forward).error();
    auto backward = chooser.choose_backward(spec, tokens, options.gradient_type);
    if (!backward) return std::move(backward).error();
    add_training_bucket(plan, spec, options, tokens, *forward, *backward, builder);
  }
  return plan;
}

Result<TrainingBuild> build_training(const LayerSpec& spec, const TrainingOptions& options,
                                     std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                     KernelBuilder& builder, const BuildHooks& hooks) {
  auto plan = plan_training(spec, options, buckets, chooser, builder);
  if (!plan) return std::move(plan).error();
  auto built = builder.build(std::move(plan->requests), hooks);
  if (!built) return std::move(built).error();
  TrainingBuild build;
  build.buckets = std::move(plan->buckets);
  build.built = *std::move(built);
  for (std::size_t i = 0; i < build.built.size(); ++i) {
    build.reports.push_back(build.built[i].report);
    build.reports.back().token_buckets = plan->buckets_of[i];
    build.reports.back().config_source = plan->sources[i];
  }
  return build;
}

std::string summary(const TrainingBuild& build, std::string_view layer) {
  std::vector<std::pair<std::int64_t, std::string>> forward, backward;
  for (const TrainingBucket& bucket : build.buckets) {
    forward.emplace_back(bucket.bucket, to_string(bucket.forward));
    backward.emplace_back(bucket.bucket, to_string(bucket.backward));
  }
  const auto compiled =
      std::count_if(build.reports.begin(), build.reports.end(), [](const KernelReport& r) { return !r.hit; });
  return fmt::format(
      "prepared {}: {} kernels, {} compiled; forward configs by tokens: {}; backward configs by tokens: {}",
      layer, build.reports.size(), compiled, by_tokens(forward), by_tokens(backward));
}

}  // namespace varmoe::engine
