#include <fmt/core.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/text.hpp"
#include "engine/kernel_plan.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/pack.hpp"
#include "tools/tune/training_options.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct PackOptions {
  SessionOptions session;
  LayerInput input;
  std::vector<std::string> models;
  std::string tokens = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096";
  std::string out, path = "/opt/varmoe";
  TrainingFlags training;
};

/// The layers of the models named, or of the other options.
Result<std::vector<InputLayer>> read_layers(const PackOptions& options, const Output& out) {
  std::vector<std::string> notes;
  if (options.models.empty()) return options.input.read(&notes);
  if (!options.input.empty())
    return Error(ErrorCode::invalid_argument, "name models, or one layer by its options, not both");
  std::vector<InputLayer> all;
  for (const std::string& model : options.models) {
    LayerInput input = options.input;
    input.model = model;
    auto layers = input.read(&notes);
    if (!layers) return layers.error();
    for (InputLayer& layer : *layers) all.push_back(std::move(layer));
  }
  for (const std::string& note : notes) out.say("note: " + note);
  return all;
}

int pack_verb(const PackOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto tokens = parse_counts(options.tokens, "--tokens");
  if (!tokens) return out.fail(tokens.error());
  auto layers = read_layers(options, out);
  if (!layers) return out.fail(layers.error());
  auto device = target_device(options.session, toolchain->environment);
  if (!device) return out.fail(device.error());
  PrepareOptions prepare;
  prepare.tokens = *tokens;
  auto buckets = engine::buckets_to_prepare(prepare);
  if (!buckets) return out.fail(buckets.error());

  auto pack = write_pack(absolute_path(options.out), *layers, *buckets, *toolchain, *device,
                         options.training.options(), !out.json());
  if (!pack) return out.fail(pack.error());
  std::size_t hits = 0;
  for (const KernelReport& kernel : pack->kernels) hits += kernel.hit ? 1 : 0;
  const bool tuned = pack->records > 0;
  std::vector<std::string> environment = {"VARMOE_CUBIN_PATH=" + options.path};
  if (tuned) environment.push_back("VARMOE_TUNING_DB=" + options.path + "/tuning");
  environment.emplace_back("VARMOE_JIT=cached_only");
  const engine::OverrideTexts& o = toolchain->overrides;
  std::vector<std::pair<const char*, std::string>> overrides = {
      {"VARMOE_FC1_CONFIG", o.api_fc1.empty() ? o.env_fc1 : o.api_fc1},
      {"VARMOE_FC2_CONFIG", o.api_fc2.empty() ? o.env_fc2 : o.api_fc2},
      {"VARMOE_CONFIG", o.env_both}};
  if (options.training.training) {
    overrides.insert(overrides.end(), {{"VARMOE_DH_CONFIG", o.dh.text},
                                       {"VARMOE_DX_CONFIG", o.dx.text},
                                       {"VARMOE_DW1_CONFIG", o.dw1.text},
                                       {"VARMOE_DW2_CONFIG", o.dw2.text}});
  }
  for (const auto& [name, text] : overrides) {
    // The kernels are those of the overrides: the server must have them too.
    if (!text.empty()) environment.push_back(fmt::format("{}=\"{}\"", name, text));
  }
  out.say(fmt::format("{}: {} kernels ({} were cached, {} compiled) and {} tuning records for {} ({}), {}",
                      options.out, pack->kernels.size(), hits, pack->kernels.size() - hits, pack->records,
                      device->name, device->arch, format_byte_size(pack->bytes)));
  out.say(fmt::format("In a Dockerfile:\n  COPY {} {}\n  ENV {}", options.out, options.path,
                      join(environment, " \\\n      ")));
  out.event("summary", Json()
                           .add("out", absolute_path(options.out))
                           .add("device", device->id)
                           .add("arch", device->arch)
                           .add("kernels", pack->kernels.size())
                           .add("hits", hits)
                           .add("records", pack->records)
                           .add("bytes", pack->bytes)
                           .add("environment", environment));
  return kDone;
}

}  // namespace

void add_pack(Command& app, Action& run) {
  auto* verb = app.add_subcommand(
      "pack",
      "Makes one folder of the kernels and tuning records that a server needs, to copy into an image");
  auto options = std::make_shared<PackOptions>();
  verb->add_option("models", options->models,
                   "config.json or layer files; or one layer by the options below");
  verb->add_option("--out,-o", options->out, "folder to make; a former pack there is replaced")->required();
  verb->add_option("--tokens", options->tokens, "token counts that the server prepares")
      ->capture_default_str();
  verb->add_option("--path", options->path, "where it will lie in the image: for the lines printed")
      ->capture_default_str();
  options->input.add_options(*verb);
  options->session.add_device(*verb);
  options->session.add_build(*verb);
  options->training.add_options(*verb, "for layers that learn: kernels and records of forward and backward");
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return pack_verb(*options, out); }; });
}

}  // namespace varmoe::tools
