#include "varmoe/blocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "cuda/stream.hpp"
#include "engine/block_arguments.hpp"
#include "engine/blocks_build.hpp"
#include "engine/blocks_impl.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/operation.hpp"
#include "model/token_bucket.hpp"

/// Blocks: checks of arguments, and the way to the backend.
namespace varmoe {

Blocks::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const BlocksOptions& options)
    : engine_(std::move(engine)), spec_(spec), options_(options) {}

Blocks::Impl::~Impl() {
  // The threads of CPU blocks are the parent's; a child forked from it has none to join.
  if (cpu_ && !engine_->fork.same_process()) static_cast<void>(cpu_.release());
}

Result<std::shared_ptr<Blocks::Impl>> Blocks::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                           const LayerSpec& spec,
                                                           const BlocksOptions& options) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  if (options.max_sms < 0)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("BlocksOptions::max_sms = {}: must be 0 (all) or more", options.max_sms));
  if (options.weighted_down && spec.weight_on_input)
    return Error(ErrorCode::invalid_argument,
                 "BlocksOptions::weighted_down is true of a layer with weight_on_input: its rows have their "
                 "weights from up; must be false");
  auto blocks = std::make_shared<Impl>(engine, spec, options);
  if (engine->on_cpu()) {
    auto cpu = cpu::CpuBlocks::create(spec, engine->cpu_threads);
    if (!cpu) return std::move(cpu).error();
    blocks->cpu_ = *std::move(cpu);
  } else {
    blocks->context_ = plan::run_context(*engine->device, blocks->spec_, options.max_sms);
  }
  return blocks;
}

std::string Blocks::Impl::name() const {
  return "building blocks of " + kernel_signature(spec_);
}

Result<PrepareReport> Blocks::Impl::prepare(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  auto buckets = engine::buckets_to_prepare(options);
  if (!buckets) return std::move(buckets).error();
  PrepareReport report;
  if (cpu_) return report;
  std::lock_guard lock(prepare_mutex_);
  failed_first_uses_.clear();
  auto kernels = prepare_buckets(*buckets, options, true);
  if (!kernels) return std::move(kernels).error();
  report.kernels = *std::move(kernels);
  report.total_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Result<std::vector<KernelReport>> Blocks::Impl::prepare_buckets(std::span<const std::int64_t> buckets,
                                                                const PrepareOptions& options,
                                                                bool by_prepare) {
  auto build = engine::build_blocks(spec_, options_, buckets, *engine_->chooser, *engine_->builder,
                                    engine_->hooks(options));
  if (!build) return std::move(build).error();
  engine_->count(build->reports);
  const Published* old = published_.load(std::memory_order_relaxed);
  std::optional<Error> problem;
  for (engine::BlocksBucket& bucket : build->buckets) {
    bool ready = true;
    for (const engine::BlockPart& part : bucket.parts) {
      const engine::BuiltKernel& kernel = build->built[part.kernel];
      const engine::ResidentKernel* resident =
          kernel.error ? nullptr : engine_->kernels->find(kernel.unit->key);
      if (!resident) {
        ready = false;
        if (!problem)
          problem = kernel.error ? *kernel.error
                                 : Error(ErrorCode::internal, fmt::format("{} is built and not resident",
                                                                          kernel.unit->emitted.entry_name));
        continue;
      }
      (part.own ? bucket.kernels.*part.own : bucket.kernels.layer[part.stage]) = resident->launch;
    }
    // Choices do not change while an engine lives: a bucket that is there stays.
    if (ready) sets_.try_emplace(bucket.bucket, std::make_unique<const plan::BlockKernels>(bucket.kernels));
  }
  auto next = std::make_unique<Published>();
  next->by_prepare = (by_prepare && !sets_.empty()) || (old && old->by_prepare);
  for (const auto& [bucket, set] : sets_) {
    next->buckets.push_back(bucket);
    next->sets.push_back(set.get());
  }
  if (!next->buckets.empty()) {
    history_.push_back(std::move(next));
    published_.store(history_.back().get(), std::memory_order_release);
  }
  if (problem) return *problem;
  return std::move(build->reports);
}

Result<const plan::BlockKernels*> Blocks::Impl::kernels_for(std::int64_t tokens, void* stream) {
  const std::int64_t bucket = model::bucket_of(tokens);
  const auto find = [&](bool any) -> const plan::BlockKernels* {
    const Published* published = published_.load(std::memory_order_acquire);
    if (!published) return nullptr;
    const auto at = std::lower_bound(published->buckets.begin(), published->buckets.end(), bucket);
    const auto i = static_cast<std::size_t>(at - published->buckets.begin());
    if (at != published->buckets.end() && *at == bucket) return published->sets[i];
    if (!any && !published->by_prepare) return nullptr;
    return at == published->buckets.end() ? published->sets.back() : published->sets[i];
  };
  if (const plan::BlockKernels* found = find(false)) [[likely]]
    return found;
  auto capture = cuda::capture_status(engine_->device->driver(), stream);
  if (!capture) return std::move(capture).error();
  if (*capture != cuda::CaptureStatus::none) {
    if (const plan::BlockKernels* found = find(true)) return found;
    return Error(
        ErrorCode::not_prepared,
        fmt::format(
            "no kernels are prepared for {} and none may be made while a stream is captured: call prepare "
            "before capturing (token bucket {})",
            name(), bucket));
  }
  std::lock_guard lock(prepare_mutex_);
  if (const plan::BlockKernels* found = find(false)) return found;
  if (const auto failed = failed_first_uses_.find(bucket); failed != failed_first_uses_.end())
    return failed->second;
  const std::int64_t buckets[] = {bucket};
  auto kernels = prepare_buckets(buckets, {}, false);
  if (!kernels) {
    failed_first_uses_.insert_or_assign(bucket, kernels.error());
    engine_->log.error("first use of {} at {} tokens: {}", name(), bucket, kernels.error().message());
    return std::move(kernels).error();
  }
  engine_->log.warn(
      "{} were prepared for {} tokens at first use: {} kernels; call prepare to do this beforehand", name(),
      bucket, kernels->size());
  if (const plan::BlockKernels* found = find(false)) return found;
  return Error(ErrorCode::internal, "a bucket was prepared and is not there");
}

Status Blocks::Impl::bind(const Weights& weights) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = weights.validate(spec_); !status) return status;
  if (cpu_) {
    cpu_->bind(weights);
    table_.store(1, std::memory_order_release);  // bound; the CPU has no table
    return {};
  }
  const bool hopper = engine_->device->attributes().compute_major == 9;
  const cuda::ContextScope current(*engine_->device);  // encoding a tensor map asks for one
  if (!current.ok()) return current.status();
  auto table = plan::make_expert_table(spec_, weights, hopper ? &engine_->device->driver() : nullptr);
  if (!table) return std::move(table).error();
  std::lock_guard lock(bind_mutex_);
  const std::uint64_t address = table_.load(std::memory_order_relaxed);
  if (address != 0) {
    // In place: graphs captured before follow the new binding.
    if (table->size() != table_bytes_) return Error(ErrorCode::internal, "the expert table changed its size");
    return cuda::copy_to_device(*engine_->device, address, table->data(), table->size());
  }
  auto kept = engine_->keep_on_device(table->data(), table->size());
  if (!kept) return std::move(kept).error();
  table_bytes_ = table->size();
  table_.store(*kept, std::memory_order_release);
  return {};
}

Result<std::size_t> Blocks::Impl::workspace_bytes(std::int64_t rows) const {
  if (rows < 0 || rows > engine::kMaxBlockRows)
    return Error(ErrorCode::invalid_argument, fmt::format("workspace_bytes: rows = {}: must be from 0 to {}",
                                                          rows, engine::kMaxBlockRows));
  if (rows == 0) return std::size_t{0};
  return cpu_ ? cpu_->workspace_bytes(rows) : plan::blocks_workspace_bytes(spec_, rows);
}

template <class Launch>
Status Blocks::Impl::on_device(std::int64_t tokens, void* stream, Launch&& launch) {
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  auto kernels = kernels_for(std::max<std::int64_t>(tokens, 1), stream);
  if (!kernels) [[unlikely]]
    return std::move(kernels).error();
  plan::RunContext context = context_;
  context.expert_table = table_.load(std::memory_order_acquire);
  return launch(context, **kernels);
}

namespace {

Error argument_error(const char* args, const std::string& problem) {
  return {ErrorCode::invalid_argument, fmt::format("{}: {}", args, problem)};
}

Error small_workspace(const char* args, std::size_t given, std::int64_t rows, std::size_t needed) {
  return {ErrorCode::workspace_too_small,
          fmt::format("{}: workspace_bytes = {}: {} rows need {} (Blocks::workspace_bytes)", args, given,
                      rows, needed)};
}

Error not_bound(const char* call) {
  return {ErrorCode::not_bound,
          fmt::format("{} before bind: the blocks do not know where their weights lie", call)};
}

/// Of rows in range; what is not is told by the check of all arguments.
template <class Bytes>
std::size_t needed(std::int64_t rows, const Bytes& bytes) {
  auto result = bytes(rows);
  return result ? *result : std::size_t{0};
}

}  // namespace

Status Blocks::Impl::gather(const GatherArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::gather_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("GatherArgs", problem);
  if (args.rows == 0) return {};
  if (cpu_) return cpu_->gather(args);
  return on_device(tokens_of(args.rows), args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_gather(context, kernels, args);
  });
}

Status Blocks::Impl::slot_rows(const SlotRowsArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::slot_rows_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("SlotRowsArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->slot_rows(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_slot_rows(context, kernels, args);
  });
}

Status Blocks::Impl::up(const GroupedUpArgs& args) {
  if (Status status = not_forked(); !status) return status;
  const std::int64_t rows = args.by_expert.rows;
  const std::size_t bytes = needed(rows, [&](std::int64_t n) { return workspace_bytes(n); });
  if (std::string problem = engine::up_problem(spec_, args, bytes); !problem.empty()) [[unlikely]]
    return argument_error("GroupedUpArgs", problem);
  if (rows == 0) return {};
  if (args.workspace_bytes < bytes) [[unlikely]]
    return small_workspace("GroupedUpArgs", args.workspace_bytes, rows, bytes);
  if (table_.load(std::memory_order_acquire) == 0) [[unlikely]]
    return not_bound("up");
  if (cpu_) return cpu_->up(args);
  return on_device(tokens_of(rows), args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_up(context, kernels, args);
  });
}

Status Blocks::Impl::down(const GroupedDownArgs& args) {
  if (Status status = not_forked(); !status) return status;
  const std::int64_t rows = args.by_expert.rows;
  const std::size_t bytes = needed(rows, [&](std::int64_t n) { return workspace_bytes(n); });
  if (std::string problem = engine::down_problem(spec_, options_, args, bytes); !problem.empty()) [[unlikely]]
    return argument_error("GroupedDownArgs", problem);
  if (rows == 0) return {};
  if (args.workspace_bytes < bytes) [[unlikely]]
    return small_workspace("GroupedDownArgs", args.workspace_bytes, rows, bytes);
  if (table_.load(std::memory_order_acquire) == 0) [[unlikely]]
    return not_bound("down");
  if (cpu_) return cpu_->down(args);
  return on_device(tokens_of(rows), args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_down(context, kernels, args);
  });
}

Status Blocks::Impl::combine(const CombineArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::combine_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("CombineArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->combine(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_combine(context, kernels, args);
  });
}

Status Blocks::Impl::combine_backward(const CombineBackwardArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::combine_backward_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("CombineBackwardArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->combine_backward(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_combine_backward(context, kernels, args);
  });
}

Blocks::Blocks(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Blocks::Blocks(Blocks&&) noexcept = default;
Blocks& Blocks::operator=(Blocks&&) noexcept = default;
Blocks::~Blocks() = default;

const LayerSpec& Blocks::spec() const noexcept {
  static const LayerSpec none;
  return impl_ ? impl_->spec() : none;
}

const BlocksOptions& Blocks::options() const noexcept {
  static const BlocksOptions none;
  return impl_ ? impl_->options() : none;
}

Result<PrepareReport> Blocks::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "Blocks");
    return impl_->prepare(options);
  });
}

Status Blocks::bind(const Weights& weights) {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("bind", "Blocks");
    return impl_->bind(weights);
  });
}

Result<std::size_t> Blocks::workspace_bytes(std::int64_t rows) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "Blocks");
    return impl_->workspace_bytes(rows);
  });
}

Status Blocks::gather(const GatherArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("gather", "Blocks");
    return impl_->gather(args);
  });
}

Status Blocks::slot_rows(const SlotRowsArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("slot_rows", "Blocks");
    return impl_->slot_rows(args);
  });
}

Status Blocks::up(const GroupedUpArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("up", "Blocks");
    return impl_->up(args);
  });
}

Status Blocks::down(const GroupedDownArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("down", "Blocks");
    return impl_->down(args);
  });
}

Status Blocks::combine(const CombineArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("combine", "Blocks");
    return impl_->combine(args);
  });
}

Status Blocks::combine_backward(const CombineBackwardArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("combine_backward", "Blocks");
    return impl_->combine_backward(args);
  });
}

}  // namespace varmoe
