#include "tools/tune/training_kernels.hpp"

#include <fmt/core.h>

#include <array>

#include "engine/training_build.hpp"

namespace varmoe::tools {
namespace {

using emit::Stage;

constexpr Stage kOwn[] = {Stage::topk_weight_gradient, Stage::gradient_schedule, Stage::fc1_gradient,
                          Stage::fc2_gradient,         Stage::fc1_bias_gradient, Stage::fc2_bias_gradient,
                          Stage::shared_gate_gradient};

/// Empty: a kernel that a forward alone has too.
std::string stage_of(const engine::TrainingPart& part, const engine::BuiltKernel& kernel) {
  if (part.own) return kernel.report.stage;
  if (part.stage == Stage::fc1) return part.backward ? "dh" : "fc1_saving";
  return part.backward && part.stage == Stage::fc2 ? "dx" : "";
}

/// Why this layer has no such stage.
std::string lack(const std::string& stage) {
  return stage == emit::to_string(Stage::shared_gate_gradient)
             ? "is of layers whose shared experts have a gate, and this one has none (--shared-gate)"
             : "is of layers with biases, and this one has none (--bias)";
}

}  // namespace

const std::vector<std::string>& training_stages() {
  static const std::vector<std::string> stages = [] {
    std::vector<std::string> names{"fc1_saving", "dh", "dx"};
    for (const Stage stage : kOwn) names.emplace_back(emit::to_string(stage));
    return names;
  }();
  return stages;
}

Result<emit::EmittedKernel> training_kernel(const LayerSpec& spec, const std::string& stage,
                                            std::int64_t bucket, GradientType type,
                                            const engine::ConfigChooser& chooser,
                                            engine::KernelBuilder& builder) {
  TrainingOptions options;
  options.gradient_type = type;
  engine::BuildHooks hooks;
  // Nothing is fetched or compiled.
  hooks.have = [](const engine::KernelUnit&, KernelReport&) { return true; };
  auto build =
      engine::build_training(spec, options, std::array<std::int64_t, 1>{bucket}, chooser, builder, hooks);
  if (!build) return std::move(build).error();
  for (const engine::TrainingPart& part : build->buckets.front().parts) {
    const engine::BuiltKernel& kernel = build->built[part.kernel];
    if (stage_of(part, kernel) != stage) continue;
    if (kernel.error) return *kernel.error;
    return kernel.unit->emitted;
  }
  return Error(ErrorCode::invalid_argument, fmt::format("--stage: {} {}", stage, lack(stage)));
}

}  // namespace varmoe::tools
