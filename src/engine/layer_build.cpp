#include "engine/layer_build.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

namespace varmoe::engine {
namespace {

/// One plan and what its requests became.
struct Part {
  KernelPlan plan;
  std::vector<BuiltKernel> built;
};

/// Adds a kernel to the report, or its bucket to the row that is there.
void add_row(std::vector<KernelReport>& rows, const KernelReport& made, const BucketPlan& bucket) {
  const auto same = std::find_if(rows.begin(), rows.end(), [&](const KernelReport& r) {
    return r.key == made.key && r.stage == made.stage && r.config == made.config &&
           r.runtime_width == made.runtime_width;
  });
  if (same == rows.end()) {
    rows.push_back(made);
    rows.back().token_buckets = {bucket.bucket};
    rows.back().config_source = bucket.choice.source;
    return;
  }
  auto& buckets = same->token_buckets;
  if (const auto at = std::lower_bound(buckets.begin(), buckets.end(), bucket.bucket);
      at == buckets.end() || *at != bucket.bucket)
    buckets.insert(at, bucket.bucket);
  same->config_source = std::min(same->config_source, bucket.choice.source);
}

void add_bucket(LayerBuild& result, const Part& part, const BucketPlan& plan) {
  BuiltBucket bucket{plan, {}};
  bool ready = true;
  for (const std::size_t i : plan.kernels) {
    const BuiltKernel& kernel = part.built[i];
    add_row(result.kernels, kernel.report, plan);
    bucket.units.push_back(kernel.unit);
    if (!kernel.error) continue;
    ready = false;
    // What went wrong says more than that the rest was given up.
    if (!result.first_error ||
        (result.first_error->code() == ErrorCode::cancelled && kernel.error->code() != ErrorCode::cancelled))
      result.first_error = kernel.error;
  }
  if (!ready) bucket.units.clear();
  result.buckets.push_back(std::move(bucket));
}

bool all_ready(const Part& part, const BucketPlan& plan) {
  return std::all_of(plan.kernels.begin(), plan.kernels.end(),
                     [&](std::size_t i) { return !part.built[i].error.has_value(); });
}

/// Some kernels of the bucket are not cached, and nothing else is wrong.
bool only_uncached(const Part& part, const BucketPlan& plan) {
  return !all_ready(part, plan) && std::all_of(plan.kernels.begin(), plan.kernels.end(), [&](std::size_t i) {
    return !part.built[i].error || part.built[i].error->code() == ErrorCode::not_prepared;
  });
}

Result<Part> build_part(const LayerSpec& spec, std::span<const std::int64_t> buckets,
                        const ConfigChooser& chooser, KernelBuilder& builder, const BuildHooks& hooks,
                        bool runtime_width) {
  auto plan = plan_kernels(spec, buckets, chooser, runtime_width);
  if (!plan) return std::move(plan).error();
  auto built = builder.build(spec, plan->requests, hooks);
  if (!built) return std::move(built).error();
  return Part{*std::move(plan), *std::move(built)};
}

}  // namespace

Result<LayerBuild> build_layer(const LayerSpec& spec, std::span<const std::int64_t> buckets,
                               const ConfigChooser& chooser, KernelBuilder& builder,
                               const BuildHooks& hooks) try {
  const bool runtime_width = needs_runtime_width(spec);
  auto first = build_part(spec, buckets, chooser, builder, hooks, runtime_width);
  if (!first) return std::move(first).error();

  std::vector<std::int64_t> missing;
  if (builder.settings().jit == JitMode::cached_only && !runtime_width)
    for (const BucketPlan& bucket : first->plan.buckets)
      if (only_uncached(*first, bucket)) missing.push_back(bucket.bucket);
  Part general;
  if (!missing.empty()) {
    BuildHooks quiet = hooks;
    quiet.progress = nullptr;
    auto made = build_part(spec, missing, chooser, builder, quiet, true);
    if (!made) return std::move(made).error();
    general = *std::move(made);
  }

  LayerBuild result;
  for (const BucketPlan& bucket : first->plan.buckets) {
    const auto substitute =
        std::find_if(general.plan.buckets.begin(), general.plan.buckets.end(),
                     [&](const BucketPlan& b) { return b.bucket == bucket.bucket && all_ready(general, b); });
    if (substitute == general.plan.buckets.end()) {
      add_bucket(result, *first, bucket);
      continue;
    }
    const std::string signature = kernel_signature(spec);
    builder.settings().log.once(
        "runtime width for " + signature, LogLevel::warn,
        fmt::format("JIT=cached_only and no specialised kernels are cached for {} at {} tokens: "
                    "the runtime-width kernels serve instead, more slowly",
                    signature, bucket.bucket));
    add_bucket(result, general, *substitute);
  }
  result.failed = static_cast<std::size_t>(std::count_if(
      result.kernels.begin(), result.kernels.end(), [](const KernelReport& r) { return !r.error.empty(); }));
  return result;
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "host memory ran out while a layer was built");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
}

std::string summary(const LayerBuild& build, std::span<const KernelReport> kernels, std::string_view layer) {
  std::vector<std::pair<std::int64_t, std::string>> choices;
  for (const BuiltBucket& bucket : build.buckets)
    choices.emplace_back(bucket.plan.bucket, to_string(bucket.plan.choice));
  const auto compiled =
      std::count_if(kernels.begin(), kernels.end(), [](const KernelReport& r) { return !r.hit; });
  return fmt::format("prepared {}: {} kernels, {} compiled; configs by tokens: {}", layer, kernels.size(),
                     compiled, by_tokens(choices));
}

Error build_error(const LayerBuild& build) {
  if (!build.first_error) return {ErrorCode::internal, "a build failed without an error"};
  if (build.failed == 1) return *build.first_error;
  return {build.first_error->code(),
          fmt::format("{} kernels are not ready; the first: {}", build.failed, build.first_error->message())};
}

Result<PrepareReport> compile_layer(const LayerSpec& spec, const PrepareOptions& options,
                                    const ConfigChooser& chooser, KernelBuilder& builder,
                                    bool with_runtime_width) {
  const auto start = std::chrono::steady_clock::now();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  auto buckets = buckets_to_prepare(options);
  if (!buckets) return std::move(buckets).error();
  BuildHooks hooks;
  hooks.progress = options.progress;
  hooks.cancel = options.cancel;
  auto build = build_layer(spec, *buckets, chooser, builder, hooks);
  if (!build) return std::move(build).error();
  PrepareReport report{std::move(build->kernels), 0};
  if (with_runtime_width && !needs_runtime_width(spec)) {
    auto general = build_part(spec, *buckets, chooser, builder, hooks, true);
    if (!general) return std::move(general).error();
    for (const BucketPlan& bucket : general->plan.buckets)
      for (const std::size_t i : bucket.kernels) add_row(report.kernels, general->built[i].report, bucket);
  }
  report.total_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace varmoe::engine
