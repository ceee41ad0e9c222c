#include "emit/training.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/digest.hpp"
#include "emit/kernel_sources.hpp"
#include "emit/layer_traits.hpp"
#include "emit/wgmma_text.hpp"

namespace varmoe::emit {
namespace {

constexpr std::int32_t kThreads = 256;
constexpr std::int32_t kScheduleThreads = 1024;

const char* boolean(bool value) {
  return value ? "true" : "false";
}

std::string integer(const char* name, std::int64_t value) {
  return fmt::format("  static constexpr int {} = {};\n", name, value);
}
std::string flag(const char* name, bool value) {
  return fmt::format("  static constexpr bool {} = {};\n", name, boolean(value));
}

std::string topk_weight_traits(const LayerSpec& spec) {
  const auto classes = width_classes(spec);
  return "struct Layer {\n" + element_trait(spec.dtype) + integer("kHidden", spec.hidden_size) +
         integer("kExperts", spec.all_experts()) + integer("kTopK", spec.slots_per_token()) +
         integer("kSharedExperts", spec.num_shared()) +
         integer("kUniformWidth", classes.size() == 1 ? classes.front().width : 0) +
         flag("kSharedGate", spec.shared_gate) + flag("kBias", spec.bias && !spec.weight_on_input) + "};\n";
}

std::string weight_traits(const LayerSpec& spec, const GradientRequest& r) {
  const bool fc2 = r.stage == Stage::fc2_gradient;
  const auto stage = fc2 ? model::GemmStage::fc2 : model::GemmStage::fc1;
  const bool alternate = !fc2 && model::gate_and_up_alternate(spec);
  return "struct Gradient {\n" + element_trait(spec.dtype) + integer("kHidden", spec.hidden_size) +
         integer("kTopK", spec.slots_per_token()) +
         integer("kHalves", !fc2 && spec.gated() && !alternate ? 2 : 1) +
         integer("kWidthScale", alternate ? 2 : 1) +
         flag("kTokensFirst", model::gradient_rows_are_hidden(spec, stage)) + flag("kFc2", fc2) +
         flag("kSegments", r.segments) + flag("kFp32", r.type == GradientType::fp32) + "};\n";
}

std::string weight_config(const model::GradientConfig& c) {
  if (c.schedule == Schedule::wgmma)
    return fmt::format(
        "struct Config {{\n  static constexpr int kBlockM = {}, kBlockN = {}, kStages = {};\n"
        "  static constexpr bool kGather = {};\n}};\n"
        "static_assert(varmoe::moe::WeightGradientShared<Gradient, Config>::kBytes == {}, \"shared memory "
        "differs from the host's\");\n",
        c.block_m, c.block_n, c.stages, boolean(c.gather == GatherMode::fused),
        model::gradient_smem_bytes(c));
  const std::int32_t warps_n = c.block_n / 32, warps_m = 8 / warps_n;
  return fmt::format(
      "struct Config {{\n  static constexpr int kBlockM = {}, kBlockN = {}, kStages = {}, kWarpsM = {}, "
      "kWarpsN = {};\n}};\n"
      "static_assert(varmoe::moe::WeightGradient<Gradient, Config>::kBytes == {}, \"shared memory "
      "differs from the host's\");\n",
      c.block_m, c.block_n, c.stages, warps_m, warps_n, model::gradient_smem_bytes(c));
}

std::string bias_traits(const LayerSpec& spec, const GradientRequest& r) {
  return "struct Gradient {\n" + element_trait(spec.dtype) + integer("kHidden", spec.hidden_size) +
         integer("kTopK", spec.slots_per_token()) + flag("kFc2", r.stage == Stage::fc2_bias_gradient) +
         flag("kWeighted", !spec.weight_on_input) + flag("kGated", spec.gated()) +
         flag("kAlternating", model::gate_and_up_alternate(spec)) + flag("kSegments", r.segments) +
         flag("kFp32", r.type == GradientType::fp32) + "};\n";
}

std::string gate_traits(const LayerSpec& spec, const GradientRequest& r) {
  return "struct Gradient {\n" + element_trait(spec.dtype) + integer("kHidden", spec.hidden_size) +
         integer("kSharedExperts", spec.num_shared()) + flag("kFp32", r.type == GradientType::fp32) + "};\n";
}

}  // namespace

DownK backward_down_k(const LayerSpec& spec) {
  return !spec.gated()                        ? DownK::width
         : model::gate_and_up_alternate(spec) ? DownK::alternating
                                              : DownK::gate_and_up;
}

ActivationBackward activation_backward(const LayerSpec& spec) {
  return {spec.activation,  spec.activation_params, model::gate_and_up_alternate(spec),
          spec.shared_gate, spec.weight_on_input,   spec.bias && spec.weight_on_input};
}

ActivationBackward block_activation_backward(const LayerSpec& spec, bool weighs_rows) {
  ActivationBackward backward;
  backward.activation = spec.activation;
  backward.params = spec.activation_params;
  backward.alternating = model::gate_and_up_alternate(spec);
  backward.weighs_rows = weighs_rows;
  return backward;
}

ActivationBackward block_row_weights() {
  return {};
}

Result<EmittedKernel> emit_gradient(const LayerSpec& spec, const GradientRequest& r) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  EmittedKernel kernel;
  kernel.stage = r.stage;
  kernel.options = {"--std=c++17", "--no-source-include"};
  kernel.block_threads = kThreads;
  std::string include, traits, params, call, name = fmt::format("t{}", kThreads);
  switch (r.stage) {
    case Stage::topk_weight_gradient:
      include = "moe/topk_weight_gradient.cuh";
      traits = topk_weight_traits(spec);
      params = "TopkWeightGradientParams";
      call = fmt::format("topk_weight_gradient<Layer, {}>", kThreads);
      break;
    case Stage::gradient_schedule:
      kernel.block_threads = kScheduleThreads;
      include = "moe/gradient_schedule.cuh";
      params = "GradientScheduleParams";
      call = fmt::format("gradient_schedule<{}, {}>", kScheduleThreads, boolean(r.segments));
      name = fmt::format("t{}", kScheduleThreads);
      break;
    case Stage::fc1_gradient:
    case Stage::fc2_gradient: {
      const bool wgmma = r.config.schedule == Schedule::wgmma;
      kernel.block_threads = model::gradient_threads(r.config);
      kernel.dynamic_smem_bytes = static_cast<std::int32_t>(model::gradient_smem_bytes(r.config));
      include = wgmma ? "moe/weight_gradient_sm90.cuh" : "moe/weight_gradient.cuh";
      traits = weight_traits(spec, r) + weight_config(r.config);
      params = "WeightGradientParams";
      call = fmt::format("{}<Gradient, Config>", wgmma ? "weight_gradient_sm90" : "weight_gradient");
      name = fmt::format("{}_m{}n{}s{}{}", to_string(r.config.schedule), r.config.block_m, r.config.block_n,
                         r.config.stages, model::reads_copies(r.config) ? "_copied" : "");
      break;
    }
    case Stage::fc1_bias_gradient:
    case Stage::fc2_bias_gradient:
      include = "moe/bias_gradient.cuh";
      traits = bias_traits(spec, r);
      params = "BiasGradientParams";
      call = fmt::format("bias_gradient<Gradient, {}>", kThreads);
      break;
    case Stage::shared_gate_gradient:
      include = "moe/shared_gate_gradient.cuh";
      traits = gate_traits(spec, r);
      params = "SharedGateGradientParams";
      call = fmt::format("shared_gate_gradient<Gradient, {}>", kThreads);
      break;
    default:
      return Error(ErrorCode::internal, fmt::format("{} is no stage of a backward pass", to_string(r.stage)));
  }

  std::string head = fmt::format("// varmoe {}\n#include \"{}\"\n\n", to_string(r.stage), include);
  if (r.segments) name += "_segments";
  const bool product = r.stage == Stage::fc1_gradient || r.stage == Stage::fc2_gradient;
  if (product && r.config.schedule == Schedule::wgmma)
    head += wgmma_outer_instruction(spec.dtype, r.config.block_n) + "\n";
  if (!traits.empty()) head += "namespace {\n" + traits + "}  // namespace\n\n";
  head += abi_assertions(r.stage) + "\n";
  auto headers = KernelSources::current()->reachable(head);
  if (!headers) return headers.error();
  kernel.headers = *std::move(headers);
  const std::string entry =
      fmt::format("extern \"C\" __global__ void __launch_bounds__({}, 1) ", kernel.block_threads);
  const std::string body =
      fmt::format("(const __grid_constant__ varmoe::abi::{} p) {{ varmoe::moe::{}(p); }}\n", params, call);
  // The name is part of the text, so its digest is of the text without it.
  const std::string digest = Hasher().field(head).field(entry).field(body).finish().hex();
  kernel.entry_name = fmt::format("varmoe_{}_{}_{}", to_string(r.stage), name, digest.substr(0, 16));
  kernel.text = head + entry + kernel.entry_name + body;
  return kernel;
}

}  // namespace varmoe::emit
