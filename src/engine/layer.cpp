#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "engine/layer_impl.hpp"
#include "engine/operation.hpp"

namespace varmoe {

namespace {

/// Routed rows are counted in 32 bits on the device; more go in chunks. Some room is left for what is rounded
/// up.
constexpr std::int64_t kMaxRowsAtOnce = INT32_MAX - (1 << 20);

}  // namespace

Layer::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const LayerOptions& options)
    : engine_(std::move(engine)), spec_(spec), options_(options) {}

Layer::Impl::~Impl() {
  // The threads of a CPU layer are the parent's; a child forked from it has none to join.
  if (cpu_ && !engine_->fork.same_process()) static_cast<void>(cpu_.release());
}

Result<std::shared_ptr<Layer::Impl>> Layer::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                         const LayerSpec& spec, const LayerOptions& options) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  if (options.max_sms < 0)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("LayerOptions::max_sms = {}: must be 0 (all) or more", options.max_sms));
  auto layer = std::make_shared<Impl>(engine, spec, options);
  if (engine->on_cpu()) {
    auto cpu = cpu::CpuLayer::create(spec, engine->cpu_threads);
    if (!cpu) return std::move(cpu).error();
    layer->cpu_ = *std::move(cpu);
  } else {
    layer->context_ = plan::run_context(*engine->device, layer->spec_, options.max_sms);
  }
  // A bound that not even one token fits in is a mistake better told here than at the first forward.
  const std::size_t bound = options.max_workspace_bytes;
  const auto bytes = [&](std::int64_t tokens) {
    return layer->cpu_ ? layer->cpu_->workspace_bytes(tokens)
                       : plan::workspace_layout(spec, nullptr, tokens).total_bytes;
  };
  if (bound != 0 && bytes(1) > bound)
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("LayerOptions::max_workspace_bytes = {}: one token needs {}", bound, bytes(1)));
  std::int64_t low = 1, high = kMaxRowsAtOnce / spec.slots_per_token() + 1;  // low fits, high does not
  while (bound != 0 && high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (bytes(middle) <= bound ? low : high) = middle;
  }
  layer->max_chunk_ = bound != 0 ? low : high - 1;
  return layer;
}

std::string Layer::Impl::name() const {
  return kernel_signature(spec_);
}

Result<PrepareReport> Layer::Impl::prepare(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  auto buckets = engine::buckets_to_prepare(options);
  if (!buckets) return std::move(buckets).error();
  PrepareReport report;
  if (!cpu_) {
    kernels_.forget_failures();
    auto build =
        engine::build_layer(spec_, *buckets, *engine_->chooser, *engine_->builder, engine_->hooks(options));
    if (!build) return std::move(build).error();
    engine_->count(*build);
    if (Status status = publish(*build, true); !status) return std::move(status).error();
    if (!build->complete()) return engine::build_error(*build);
    report.kernels = std::move(build->kernels);
    if (engine_->log.enabled(LogLevel::info))
      engine_->log.write(LogLevel::info, engine::summary(*build, report.kernels, name()));
  }
  report.total_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Status Layer::Impl::publish(const engine::LayerBuild& build, bool by_prepare) {
  std::vector<std::pair<std::int64_t, plan::KernelSet>> sets;
  for (const engine::BuiltBucket& bucket : build.buckets) {
    if (bucket.units.empty()) continue;
    plan::KernelSet set;
    set.config = bucket.plan.choice.config;
    set.runtime_width = bucket.plan.runtime_width;
    for (const auto& unit : bucket.units) {
      const engine::ResidentKernel* resident = engine_->kernels->find(unit->key);
      if (!resident)
        return Error(ErrorCode::internal,
                     fmt::format("{} is built and not resident", unit->emitted.entry_name));
      set[unit->emitted.stage] = resident->launch;
    }
    sets.emplace_back(bucket.plan.bucket, set);
  }
  // Choices do not change while an engine lives, so a bucket that is there mostly stays as it is; but
  // specialised kernels may come to replace runtime-width ones.
  kernels_.publish(std::move(sets), by_prepare, [](const plan::KernelSet& a, const plan::KernelSet& b) {
    return std::equal(
        a.kernels.begin(), a.kernels.end(), b.kernels.begin(),
        [](const plan::LoadedKernel& x, const plan::LoadedKernel& y) { return x.function == y.function; });
  });
  return {};
}

Status Layer::Impl::bind(const Weights& weights) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = weights.validate(spec_); !status) return status;
  if (cpu_) {
    Status status = cpu_->bind(weights);
    if (status) table_.mark_bound();
    return status;
  }
  const bool hopper = engine_->device->attributes().compute_major == 9;
  const cuda::ContextScope current(*engine_->device);  // encoding a tensor map asks for one
  if (!current.ok()) return current.status();
  auto table = plan::make_expert_table(spec_, weights, hopper ? &engine_->device->driver() : nullptr);
  if (!table) return std::move(table).error();
  std::lock_guard lock(bind_mutex_);
  return table_.write(*engine_, *table);
}

std::int64_t Layer::Impl::chunk(std::int64_t tokens) const noexcept {
  if (tokens <= max_chunk_) return tokens;
  const std::int64_t chunks = (tokens + max_chunk_ - 1) / max_chunk_;
  return (tokens + chunks - 1) / chunks;
}

std::size_t Layer::Impl::needed_workspace(std::int64_t tokens) const noexcept {
  if (cpu_) {
    // It works in chunks that fit.
    const std::size_t bytes = cpu_->workspace_bytes(tokens), bound = options_.max_workspace_bytes;
    return bound == 0 ? bytes : std::min(bytes, bound);
  }
  // Of the largest chunk, not of the even ones: who allocates for the most tokens has enough for fewer.
  return plan::workspace_layout(spec_, context_.max_width, nullptr, std::min(tokens, max_chunk_)).total_bytes;
}

Result<std::size_t> Layer::Impl::workspace_bytes(std::int64_t tokens) const {
  if (tokens < 0)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("workspace_bytes: tokens = {}: must be 0 or more", tokens));
  return tokens == 0 ? std::size_t{0} : needed_workspace(tokens);
}

Layer::Layer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Layer::Layer(Layer&&) noexcept = default;
Layer& Layer::operator=(Layer&&) noexcept = default;
Layer::~Layer() = default;

const LayerSpec& Layer::spec() const noexcept {
  static const LayerSpec none;
  return impl_ ? impl_->spec() : none;
}

Result<PrepareReport> Layer::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "Layer");
    return impl_->prepare(options);
  });
}

Status Layer::bind(const Weights& weights) {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("bind", "Layer");
    return impl_->bind(weights);
  });
}

Result<std::size_t> Layer::workspace_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "Layer");
    return impl_->workspace_bytes(tokens);
  });
}

Status Layer::forward(const ForwardArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return Error(ErrorCode::invalid_argument, "moved from");
  return impl_->forward(args);
}

}  // namespace varmoe
