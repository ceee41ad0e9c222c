#include <fmt/core.h>

#include <memory>
#include <vector>

#include "base/text.hpp"
#include "engine/kernel_plan.hpp"
#include "model/cost_model.hpp"
#include "model/token_bucket.hpp"
#include "plan/plan.hpp"
#include "plan/training.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/record_text.hpp"
#include "tools/tune/training_options.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct PlanOptions {
  SessionOptions session;
  LayerInput input;
  std::string tokens = "1,64,4096";
  TrainingFlags training;
};

/// The backward pass of each bucket, beside the forward's table.
Status show_backward(const InputLayer& layer, const TrainingOptions& training,
                     const std::vector<std::int64_t>& buckets, const engine::ConfigChooser& chooser,
                     const Output& out) {
  const LayerSpec& spec = layer.spec;
  const model::DeviceProfile& device = chooser.device();
  const bool fp32 = training.gradient_type == GradientType::fp32;
  const std::string gradients = fp32 ? "fp32" : to_string(spec.dtype);
  Table table({"tokens", "backward from", "dh", "dx", "fc1_gradient", "fc2_gradient", "floor us", "workspace",
               "saved"});
  for (const std::int64_t bucket : buckets) {
    auto choice = chooser.choose_backward(spec, bucket, training.gradient_type);
    if (!choice) return choice.error();
    const model::Floor floor = model::backward_floor(spec, bucket, device, fp32 ? 4 : 2);
    const std::size_t workspace = plan::training_workspace_bytes(spec, bucket, training.save_preactivation),
                      saved = plan::training_saved_bytes(spec, bucket, training.save_preactivation);
    table.add({std::to_string(bucket), to_string(*choice), to_string(choice->config.fc1),
               to_string(choice->config.fc2), to_string(choice->fc1_gradient),
               to_string(choice->fc2_gradient), fmt::format("{:.0f}", floor.seconds * 1e6),
               format_byte_size(workspace), format_byte_size(saved)});
    out.event("bucket", Json()
                            .add("layer", layer.label)
                            .add("device", device.id)
                            .add("arch", device.arch)
                            .add("pass", to_string(TuningPass::backward))
                            .add("gradient_dtype", gradients)
                            .add("tokens", bucket)
                            .add("config_source", to_string(choice->source))
                            .add("match_quality", to_string(choice->quality))
                            .add("record", choice->record)
                            .add("dh", to_string(choice->config.fc1))
                            .add("dx", to_string(choice->config.fc2))
                            .add("fc1_gradient", to_string(choice->fc1_gradient))
                            .add("fc2_gradient", to_string(choice->fc2_gradient))
                            .add("floor_us", floor.seconds * 1e6)
                            .add("workspace_bytes", workspace)
                            .add("saved_bytes", saved));
  }
  out.say(table.text());
  return {};
}

int plan_verb(const PlanOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto tokens = parse_counts(options.tokens, "--tokens");
  if (!tokens) return out.fail(tokens.error());
  auto layers = options.input.read(nullptr);
  if (!layers) return out.fail(layers.error());
  auto device = target_device(options.session, toolchain->environment);
  if (!device) return out.fail(device.error());
  auto chooser = toolchain->chooser(*device);
  if (!chooser) return out.fail(chooser.error());
  PrepareOptions prepare;
  prepare.tokens = *tokens;
  auto buckets = engine::buckets_to_prepare(prepare);
  if (!buckets) return out.fail(buckets.error());

  for (const InputLayer& layer : *layers) {
    const LayerSpec& spec = layer.spec;
    const bool runtime_width = engine::needs_runtime_width(spec);
    auto plan = engine::plan_kernels(spec, *buckets, *chooser, runtime_width);
    if (!plan) return out.fail(plan.error());
    out.say(fmt::format("{}: {} experts ({}), top-{}, hidden size {}, {}, {}; {} kernels{} on {}",
                        layer.label, spec.num_experts(), widths_text(spec.expert_widths) + shared_text(spec),
                        spec.top_k, spec.hidden_size, to_string(spec.activation), to_string(spec.dtype),
                        plan->requests.size(), runtime_width ? " (runtime-width)" : "", device->name));
    Table table({"tokens", "from", "fc1", "fc2", "one launch", "predicted us", "floor us", "workspace"});
    for (const engine::BucketPlan& bucket : plan->buckets) {
      const LayerConfig& config = bucket.choice.config;
      const double seconds =
          model::predict_gemm_seconds(spec, model::GemmStage::fc1, config.fc1, bucket.bucket, *device) +
          model::predict_gemm_seconds(spec, model::GemmStage::fc2, config.fc2, bucket.bucket, *device);
      const model::Floor floor = model::layer_floor(spec, bucket.bucket, *device);
      const std::size_t workspace = plan::workspace_layout(spec, &config, bucket.bucket).total_bytes;
      table.add({std::to_string(bucket.bucket), to_string(bucket.choice), to_string(config.fc1),
                 to_string(config.fc2), one_launch_text(config), fmt::format("{:.0f}", seconds * 1e6),
                 fmt::format("{:.0f}", floor.seconds * 1e6), format_byte_size(workspace)});
      out.event("bucket", Json()
                              .add("layer", layer.label)
                              .add("device", device->id)
                              .add("arch", device->arch)
                              .add("pass", to_string(TuningPass::forward))
                              .add("tokens", bucket.bucket)
                              .add("config_source", to_string(bucket.choice.source))
                              .add("match_quality", to_string(bucket.choice.quality))
                              .add("record", bucket.choice.record)
                              .add("runtime_width", bucket.runtime_width)
                              .add("kernels", bucket.kernels.size())
                              .add("fc1", to_string(config.fc1))
                              .add("fc2", to_string(config.fc2))
                              .add("one_launch_tokens", config.one_launch.max_tokens)
                              .add("predicted_gemm_us", seconds * 1e6)
                              .add("floor_us", floor.seconds * 1e6)
                              .add("workspace_bytes", workspace));
    }
    out.say(table.text());
    if (const auto training = options.training.options()) {
      if (Status status = show_backward(layer, *training, *buckets, *chooser, out); !status)
        return out.fail(status.error());
    }
  }
  return 0;
}

}  // namespace

void add_plan(Command& app, Action& run) {
  auto* verb = app.add_subcommand("plan", "Shows the configuration of each token bucket; compiles nothing");
  auto options = std::make_shared<PlanOptions>();
  options->input.add_options(*verb);
  options->session.add_device(*verb);
  options->session.add_build(*verb);
  verb->add_option("--tokens", options->tokens, "token counts, e.g. 1,64,4096")->capture_default_str();
  options->training.add_options(*verb, "the backward pass of each bucket too");
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return plan_verb(*options, out); }; });
}

}  // namespace varmoe::tools
