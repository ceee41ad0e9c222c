#include <fmt/core.h>

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/text.hpp"
#include "compile/findings.hpp"
#include "emit/routing.hpp"
#include "engine/blocks_build.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/layer_build.hpp"
#include "engine/training_build.hpp"
#include "tools/common/command_line.hpp"
#include "tools/common/exit_status.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/router_kernels.hpp"
#include "tools/tune/training_options.hpp"
#include "tools/tune/verbs.hpp"

namespace varmoe::tools {
namespace {

struct CompileOptions {
  SessionOptions session;
  LayerInput input;
  std::string tokens = "1,64,4096";
  TrainingFlags training;
  bool blocks = false, weighted_down = false;
};

/// What the kernels are for: a Layer, unless one of these is there.
struct Purpose {
  std::optional<TrainingOptions> training;
  std::optional<BlocksOptions> blocks;
};

/// A kernel and the layers that share it.
struct Row {
  KernelReport report;
  std::vector<std::string> findings;
  int layers = 0;
};

struct Rows {
  std::vector<Row> rows;             ///< each kernel once, in order of first use
  std::optional<Error> first_error;  ///< of a kernel that could not be made
};

void print_kernel(const Row& row, Table& table, const Output& out) {
  const KernelReport& k = row.report;
  const bool made = k.error.empty();
  table.add(
      {k.stage, join(k.token_buckets), k.config.empty() ? "-" : k.config, to_string(k.config_source),
       made ? std::to_string(k.registers) : "-",
       made ? format_byte_size(static_cast<std::uint64_t>(k.static_smem_bytes + k.dynamic_smem_bytes)) : "-",
       made ? std::to_string(k.spill_bytes) : "-", made ? fmt::format("{:.0f}", k.compile_ms) : "-",
       made ? (k.hit ? "hit (" + k.origin + ")" : "miss") : "FAILED"});
  out.event("kernel", Json()
                          .add("stage", k.stage)
                          .add("name", k.name)
                          .add("key", k.key)
                          .add("tokens", k.token_buckets)
                          .add("config", k.config)
                          .add("config_source", to_string(k.config_source))
                          .add("runtime_width", k.runtime_width)
                          .add("registers", k.registers)
                          .add("static_smem_bytes", k.static_smem_bytes)
                          .add("dynamic_smem_bytes", k.dynamic_smem_bytes)
                          .add("spill_bytes", k.spill_bytes)
                          .add("compile_ms", k.compile_ms)
                          .add("hit", k.hit)
                          .add("origin", k.origin)
                          .add("layers", row.layers)
                          .add("findings", row.findings)
                          .add("error", k.error));
}

int layers_with(const RouterSpec& router, const std::vector<InputLayer>& layers) {
  int count = 0;
  for (const InputLayer& layer : layers)
    if (layer.router && router_signature(*layer.router) == router_signature(router))
      count += static_cast<int>(layer.layer_indices.size());
  return count;
}

/// Adds the kernels of the routers.
Status build_routers(const std::vector<InputLayer>& layers, engine::KernelBuilder& builder,
                     engine::BuildHooks hooks, std::map<std::string, std::vector<std::string>>& findings_of,
                     Rows& all) {
  const std::vector<RouterSpec> routers = routers_of(layers);
  std::vector<engine::UnitRequest> requests;
  std::vector<const RouterSpec*> router_of;
  for (const RouterSpec& router : routers) {
    auto of_one = router_requests(router, builder);
    if (!of_one) return of_one.error();
    for (engine::UnitRequest& request : *of_one) {
      requests.push_back(std::move(request));
      router_of.push_back(&router);
    }
  }
  hooks.progress = nullptr;
  auto built = builder.build(std::move(requests), hooks);
  if (!built) return built.error();
  for (std::size_t i = 0; i < built->size(); ++i) {
    engine::BuiltKernel& kernel = (*built)[i];
    if (!all.first_error) all.first_error = kernel.error;
    all.rows.push_back({kernel.report, findings_of[kernel.report.key], layers_with(*router_of[i], layers)});
  }
  return {};
}

/// The kernels of one layer.
struct LayerKernels {
  std::vector<KernelReport> kernels;
  std::optional<Error> first_error;
};

/// Of a TrainingBuild or BlocksBuild.
template <class Build>
Result<LayerKernels> kernels_of(Result<Build> build) {
  if (!build) return build.error();
  LayerKernels made{std::move(build->reports), {}};
  for (const engine::BuiltKernel& kernel : build->built)
    if (!made.first_error) made.first_error = kernel.error;
  return made;
}

/// Of a Layer, a TrainingLayer, or Blocks with these options.
Result<LayerKernels> build_one(const LayerSpec& spec, const std::vector<std::int64_t>& buckets,
                               const Purpose& purpose, const engine::ConfigChooser& chooser,
                               engine::KernelBuilder& builder, const engine::BuildHooks& hooks) {
  if (purpose.training)
    return kernels_of(engine::build_training(spec, *purpose.training, buckets, chooser, builder, hooks));
  if (purpose.blocks)
    return kernels_of(engine::build_blocks(spec, *purpose.blocks, buckets, chooser, builder, hooks));
  auto build = engine::build_layer(spec, buckets, chooser, builder, hooks);
  if (!build) return build.error();
  return LayerKernels{std::move(build->kernels), std::move(build->first_error)};
}

/// Every kernel of every layer, and of its router.
Result<Rows> build_all(const std::vector<InputLayer>& layers, const std::vector<std::int64_t>& buckets,
                       const Purpose& purpose, const engine::ConfigChooser& chooser,
                       engine::KernelBuilder& builder, bool progress) {
  Rows all;
  std::map<std::string, std::size_t> row_of;
  std::map<std::string, std::vector<std::string>> findings_of;
  std::mutex mutex;
  engine::BuildHooks hooks;
  hooks.cancel = &interrupted;
  hooks.finish = [&](engine::BuiltKernel& kernel) -> Status {
    auto found = compile::findings(*kernel.binary);
    std::lock_guard lock(mutex);
    findings_of[kernel.report.key] = std::move(found);
    return {};
  };
  for (const InputLayer& layer : layers) {
    Progress line("compiling " + layer.label, progress);
    hooks.progress = [&](std::size_t done, std::size_t total) { line.update(done, total); };
    auto build = build_one(layer.spec, buckets, purpose, chooser, builder, hooks);
    if (!build) return build.error();
    if (!all.first_error) all.first_error = build->first_error;
    for (KernelReport& kernel : build->kernels) {
      // A kernel that could not be emitted has no key.
      const std::string name = kernel.key.empty() ? layer.label + kernel.stage + kernel.config : kernel.key;
      const auto [at, is_new] = row_of.try_emplace(name, all.rows.size());
      if (is_new) all.rows.push_back({kernel, findings_of[kernel.key], 0});
      all.rows[at->second].layers += static_cast<int>(layer.layer_indices.size());
    }
    if (interrupted) break;
  }
  if (!interrupted) {
    if (auto status = build_routers(layers, builder, hooks, findings_of, all); !status) return status.error();
  }
  return all;
}

/// What failed first, in full: most often the others failed for the same reason. With --json every kernel's
/// line has its own.
void report_failures(const std::vector<Row>& rows) {
  int more = -1;
  for (const Row& row : rows) {
    if (row.report.error.empty()) continue;
    if (++more == 0) fmt::print(stderr, "error: {}: {}\n", row.report.stage, row.report.error);
  }
  if (more > 0) fmt::print(stderr, "error: {} more kernels failed\n", more);
}

int compile_verb(const CompileOptions& options, const Output& out) {
  auto toolchain = open_toolchain(options.session);
  if (!toolchain) return out.fail(toolchain.error());
  auto tokens = parse_counts(options.tokens, "--tokens");
  if (!tokens) return out.fail(tokens.error());
  std::vector<std::string> notes;
  auto layers = options.input.read(&notes);
  if (!layers) return out.fail(layers.error());
  auto device = target_device(options.session, toolchain->environment);
  if (!device) return out.fail(device.error());
  auto chooser = toolchain->chooser(*device);
  if (!chooser) return out.fail(chooser.error());
  PrepareOptions prepare;
  prepare.tokens = *tokens;
  auto buckets = engine::buckets_to_prepare(prepare);
  if (!buckets) return out.fail(buckets.error());

  for (const std::string& note : notes) out.say("note: " + note);
  for (const InputLayer& layer : *layers) {
    out.say(fmt::format(
        "{}: {} experts ({}), top-{}, hidden size {}, {}, {}", layer.label, layer.spec.num_experts(),
        widths_text(layer.spec.expert_widths) + shared_text(layer.spec), layer.spec.top_k,
        layer.spec.hidden_size, to_string(layer.spec.activation), to_string(layer.spec.dtype)));
    if (layers->size() > 4 && &layer == &(*layers)[2]) {
      out.say(fmt::format("… and {} more", layers->size() - 3));
      break;
    }
  }

  const auto start = std::chrono::steady_clock::now();
  engine::KernelBuilder builder(toolchain->builder_settings(device->arch));
  Purpose purpose;
  purpose.training = options.training.options();
  if (options.blocks) {
    purpose.blocks.emplace();
    purpose.blocks->weighted_down = options.weighted_down;
    if (purpose.training) {
      purpose.blocks->training = true;
      purpose.blocks->gradient_type = purpose.training->gradient_type;
      purpose.training.reset();
    }
  }
  auto rows = build_all(*layers, *buckets, purpose, *chooser, builder, !out.json());
  if (!rows) return out.fail(rows.error());
  const double ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();

  Table table({"stage", "tokens", "config", "from", "registers", "smem", "spills", "compile ms", "cache"});
  int hits = 0, compiled = 0, failed = 0, findings = 0;
  for (const Row& row : rows->rows) {
    print_kernel(row, table, out);
    ++(!row.report.error.empty() ? failed : row.report.hit ? hits : compiled);
    findings += static_cast<int>(row.findings.size());
  }
  out.say(table.text());
  for (const Row& row : rows->rows) {
    for (const std::string& finding : row.findings)
      out.say(fmt::format("finding: {}: {}", row.report.name, finding));
  }
  report_failures(rows->rows);
  const bool nvrtc_loaded = toolchain->compiler->loaded();
  std::string nvrtc = "NVRTC not loaded";
  if (nvrtc_loaded) {
    if (auto loaded = toolchain->compiler->load()) nvrtc = (*loaded)->description();
  }
  const std::string& cache = toolchain->cache->root();
  std::size_t layer_count = 0;
  for (const InputLayer& layer : *layers) layer_count += layer.layer_indices.size();
  out.say(
      fmt::format("{} kernels for {} layer{} on {} ({}): {} hits, {} compiled, {} failed in {:.0f} ms; "
                  "{}; cache {}",
                  rows->rows.size(), layer_count, layer_count == 1 ? "" : "s", device->name, device->arch,
                  hits, compiled, failed, ms, nvrtc, cache.empty() ? "in memory only" : cache));
  out.event("summary", Json()
                           .add("device", device->id)
                           .add("arch", device->arch)
                           .add("layers", layer_count)
                           .add("kernels", rows->rows.size())
                           .add("hits", hits)
                           .add("compiled", compiled)
                           .add("failed", failed)
                           .add("findings", findings)
                           .add("total_ms", ms)
                           .add("nvrtc_loaded", nvrtc_loaded)
                           .add("nvrtc", nvrtc)
                           .add("cache", cache)
                           .add("interrupted", interrupted.load()));
  if (failed > 0) {
    const bool nothing = hits + compiled == 0 && rows->first_error;
    return nothing && exit_status(rows->first_error->code()) == kEnvironment ? kEnvironment : kSomeFailed;
  }
  const bool storing = toolchain->environment.cache.value_or(CacheMode::rw) == CacheMode::rw;
  if (compiled > 0 && storing && !toolchain->cache->writable()) {
    return out.fail({ErrorCode::io_error,
                     "the kernels were compiled but not kept: there is no cache folder to write to"});
  }
  if (const auto failed_stores = toolchain->cache->counters().failed_stores; failed_stores > 0) {
    fmt::print(stderr, "error: {} kernels were compiled but could not be written to {}\n", failed_stores,
               cache);
    return kSomeFailed;
  }
  return interrupted ? kSomeFailed : kDone;
}

}  // namespace

void add_compile(Command& app, Action& run) {
  auto* verb =
      app.add_subcommand("compile", "Compiles and caches the kernels of a model's layers; needs no GPU");
  auto options = std::make_shared<CompileOptions>();
  options->input.add_options(*verb);
  options->session.add_device(*verb);
  options->session.add_build(*verb);
  verb->add_option("--tokens", options->tokens, "token counts to prepare for, e.g. 1,64,4096")
      ->capture_default_str();
  options->training.add_options(*verb, "the kernels of a layer that learns: forward and backward");
  auto* blocks =
      verb->add_flag("--blocks", options->blocks,
                     "what the building blocks need (Blocks): gather, up, down, combine, each alone; with "
                     "--training their backward passes too")
          ->excludes(verb->get_option("--recompute"));
  verb->add_flag("--weighted-down", options->weighted_down, "of blocks whose down multiplies rows by weights")
      ->needs(blocks);
  verb->callback(
      [options, &run] { run = [options](const Output& out) { return compile_verb(*options, out); }; });
}

}  // namespace varmoe::tools
