#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/text.hpp"
#include "compile/compiler.hpp"
#include "emit/emitter.hpp"
#include "emit/routing.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_plan.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/disassemble.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/training_kernels.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct EmitOptions {
  SessionOptions session;
  LayerInput input;
  std::int64_t tokens = 64;
  std::string stage = "fc1";
  std::string form = "source";
  std::string out;
  bool headers = false;
  bool fp32_gradients = false;
};

std::string source_text(const emit::EmittedKernel& kernel, bool with_headers) {
  std::string text;
  if (with_headers) {
    for (const SourceHeader& header : kernel.headers) {
      text += fmt::format("// ---- {}\n{}\n", header.name, std::string_view(header.text));
    }
    text += fmt::format("// ---- {}\n", kernel.entry_name);
  }
  return text + kernel.text;
}

/// PTX is compiled for the virtual arch of the same name: sm_90a → compute_90a.
Result<KernelBinary> compile_kernel(const engine::Toolchain& toolchain, const emit::EmittedKernel& kernel,
                                    const std::string& arch, bool ptx) {
  auto compiler = toolchain.compiler->load();
  if (!compiler) return compiler.error();
  auto target = compile::target_arch((*compiler)->architectures(), arch);
  if (!target) return target.error();
  if (ptx && target->rfind("sm_", 0) == 0) target = "compute_" + target->substr(3);
  return (*compiler)->compile({kernel.text, kernel.headers, kernel.options, *target, kernel.entry_name,
                               toolchain.environment.lineinfo.value_or(false)});
}

Status write_result(const std::string& path, std::string_view bytes) {
  if (path.empty()) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size()) {
      return {ErrorCode::io_error, "writing to standard output failed"};
    }
    return {};
  }
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) return {ErrorCode::io_error, fmt::format("--out: could not write {}", path)};
  return {};
}

bool of_training(const std::string& stage) {
  const auto& all = training_stages();
  return std::find(all.begin(), all.end(), stage) != all.end();
}

/// A kernel of the layer's forward, or of its router.
Result<emit::EmittedKernel> forward_kernel(const EmitOptions& options, const InputLayer& layer,
                                           std::span<const std::int64_t> buckets,
                                           const engine::ConfigChooser& chooser) {
  const LayerSpec& spec = layer.spec;
  auto plan = engine::plan_kernels(spec, buckets, chooser, engine::needs_runtime_width(spec));
  if (!plan) return plan.error();
  std::vector<std::string> stages;
  for (const emit::KernelRequest& request : plan->requests) {
    stages.emplace_back(emit::to_string(request.stage));
    if (stages.back() == options.stage) return emit::emit_kernel(spec, request);
  }
  if (layer.router) {
    auto kernels = emit::emit_router_kernels(*layer.router);
    if (!kernels) return kernels.error();
    for (emit::EmittedKernel& kernel : *kernels) {
      stages.emplace_back(emit::to_string(kernel.stage));
      if (stages.back() == options.stage) return std::move(kernel);
    }
  }
  return Error(
      ErrorCode::invalid_argument,
      fmt::format("--stage: this layer has no kernel '{}' at {} tokens, but {}; in training also {}",
                  options.stage.substr(0, 40), options.tokens, join(stages), join(training_stages())));
}

int emit_verb(const EmitOptions& options, const Output& out) {
  const bool training = of_training(options.stage);
  if (options.fp32_gradients && !training)
    return out.fail(
        {ErrorCode::invalid_argument,
         fmt::format("--fp32-gradients goes with a --stage of training: {}", join(training_stages()))});
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto layers = options.input.read(nullptr);
  if (!layers) return out.fail(layers.error());
  auto device = target_device(options.session, toolchain->environment);
  if (!device) return out.fail(device.error());
  auto chooser = toolchain->chooser(*device);
  if (!chooser) return out.fail(chooser.error());
  PrepareOptions prepare;
  prepare.tokens = {options.tokens};
  auto buckets = engine::buckets_to_prepare(prepare);
  if (!buckets) return out.fail(buckets.error());
  auto kernel = [&]() -> Result<emit::EmittedKernel> {
    if (!training) return forward_kernel(options, layers->front(), *buckets, *chooser);
    engine::KernelBuilder builder(toolchain->builder_settings(device->arch));
    return training_kernel(layers->front().spec, options.stage, buckets->front(),
                           options.fp32_gradients ? GradientType::fp32 : GradientType::layer_dtype, *chooser,
                           builder);
  }();
  if (!kernel) return out.fail(kernel.error());

  std::string text;
  if (options.form == "source") {
    text = source_text(*kernel, options.headers);
  } else {
    auto binary = compile_kernel(*toolchain, *kernel, device->arch, options.form == "ptx");
    if (!binary) return out.fail(binary.error());
    const std::string image(reinterpret_cast<const char*>(binary->image.data()), binary->image.size());
    if (options.form == "log") {
      text = binary->log;
    } else if (options.form == "sass") {
      auto sass = disassemble(image);
      if (!sass) return out.fail(sass.error());
      text = *std::move(sass);
    } else {
      text = image;
      while (options.form == "ptx" && !text.empty() && text.back() == '\0') text.pop_back();
    }
  }
  if (out.json() && options.out.empty()) {
    if (options.form == "cubin")
      return out.fail({ErrorCode::invalid_argument, "--form cubin with --json needs --out FILE"});
    out.event("kernel", Json()
                            .add("stage", options.stage)
                            .add("name", kernel->entry_name)
                            .add("form", options.form)
                            .add("text", text));
    return kDone;
  }
  if (auto status = write_result(options.out, text); !status) return out.fail(status.error());
  if (!options.out.empty()) {
    out.say(fmt::format("{}: {} of {}, {}", options.out, options.form, kernel->entry_name,
                        format_byte_size(text.size())));
    out.event("kernel", Json()
                            .add("stage", options.stage)
                            .add("name", kernel->entry_name)
                            .add("form", options.form)
                            .add("out", options.out));
  }
  return kDone;
}

}  // namespace

void add_emit(Command& app, Action& run) {
  auto* verb = app.add_subcommand("emit", "Prints the source, PTX, SASS, cubin or compile log of one kernel");
  auto options = std::make_shared<EmitOptions>();
  options->input.add_options(*verb);
  options->session.add_device(*verb);
  options->session.add_build(*verb);
  verb->add_option("--tokens", options->tokens, "token count")->capture_default_str()->positive();
  verb->add_option(
          "--stage", options->stage,
          "sort_single, sort_count, sort_scatter, gather, fc1, fc2, combine or whole_layer; route of a "
          "model that describes one; of training: " +
              join(training_stages()))
      ->capture_default_str();
  verb->add_flag("--fp32-gradients", options->fp32_gradients,
                 "stages of training: weight gradients of 32 bits");
  verb->add_option("--form", options->form, "what to print")
      ->capture_default_str()
      ->member({"source", "ptx", "sass", "cubin", "log"});
  verb->add_flag("--headers", options->headers, "source: print the headers that it includes as well");
  verb->add_option("--out,-o", options->out, "file to write; default standard output");
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return emit_verb(*options, out); }; });
}

}  // namespace varmoe::tools
