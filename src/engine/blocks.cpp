#include "varmoe/blocks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "cuda/device.hpp"
#include "engine/block_arguments.hpp"
#include "engine/blocks_build.hpp"
#include "engine/blocks_impl.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/operation.hpp"
#include "engine/training_impl.hpp"
#include "model/backward_layer.hpp"
#include "plan/training.hpp"

/// Blocks: checks of arguments, and the way to the backend.
namespace varmoe {

Blocks::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const BlocksOptions& options)
    : engine_(std::move(engine)),
      spec_(spec),
      options_(options),
      backward_spec_(model::backward_layer(spec)) {}

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
  if (options.gradient_type != GradientType::layer_dtype && options.gradient_type != GradientType::fp32)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("BlocksOptions::gradient_type = {}: must be layer_dtype (0) or fp32 (1)",
                             static_cast<int>(options.gradient_type)));
  auto blocks = std::make_shared<Impl>(engine, spec, options);
  if (engine->on_cpu()) {
    auto cpu = cpu::CpuBlocks::create(spec, options.gradient_type, engine->cpu_threads);
    if (!cpu) return std::move(cpu).error();
    blocks->cpu_ = *std::move(cpu);
  } else {
    blocks->context_.forward = plan::run_context(*engine->device, blocks->spec_, options.max_sms);
    blocks->context_.backward = plan::run_context(*engine->device, blocks->backward_spec_, options.max_sms);
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
  kernels_.forget_failures();
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
  std::optional<Error> problem;
  auto sets = engine::resident_sets<plan::BlockKernels>(
      *engine_, *build,
      [](plan::BlockKernels& set, const engine::BlockPart& part) -> plan::LoadedKernel& {
        return part.own ? set.*part.own : (part.backward ? set.backward : set.layer)[part.stage];
      },
      problem);
  // Choices do not change while an engine lives: a bucket that is there stays.
  kernels_.publish(std::move(sets), by_prepare, [](const auto&, const auto&) { return true; });
  if (problem) return *problem;
  return std::move(build->reports);
}

Result<const plan::BlockKernels*> Blocks::Impl::kernels_for(std::int64_t tokens, void* stream) {
  if (const plan::BlockKernels* found = kernels_.serving(tokens)) [[likely]]
    return found;
  return kernels_.first_use(*engine_, tokens, stream, "prepared the " + name(), "the " + name(),
                            [&](std::int64_t bucket) {
                              const std::int64_t buckets[] = {bucket};
                              return prepare_buckets(buckets, {}, false);
                            });
}

Status Blocks::Impl::bind(const Weights& weights) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = weights.validate(spec_); !status) return status;
  if (cpu_) {
    cpu_->bind(weights);
    table_.mark_bound();
    return {};
  }
  const bool hopper = engine_->device->attributes().compute_major == 9;
  const cuda::ContextScope current(*engine_->device);  // encoding a tensor map asks for one
  if (!current.ok()) return current.status();
  const cuda::Driver* maps = hopper ? &engine_->device->driver() : nullptr;
  auto table = plan::make_expert_table(spec_, weights, maps);
  if (!table) return std::move(table).error();
  Result<std::vector<std::byte>> backward{std::vector<std::byte>{}};
  if (options_.training) backward = plan::make_backward_table(spec_, weights, maps);
  if (!backward) return std::move(backward).error();
  std::lock_guard lock(bind_mutex_);
  if (options_.training)
    if (Status status = backward_table_.write(*engine_, *backward); !status) return status;
  return table_.write(*engine_, *table);
}

Status Blocks::Impl::bind_gradients(const Weights& gradients) {
  if (Status status = engine_->check_process(); !status) return status;
  if (!options_.training)
    return Error(ErrorCode::invalid_argument,
                 "bind_gradients: BlocksOptions::training is false: these blocks compute no gradients");
  if (Status status = engine::check_gradients(spec_, options_.gradient_type, gradients); !status)
    return status;
  if (cpu_) {
    cpu_->bind_gradients(gradients);
    gradient_table_.mark_bound();
    return {};
  }
  auto table = plan::make_gradient_table(spec_, gradients);
  if (!table) return std::move(table).error();
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) return current.status();
  std::lock_guard lock(bind_mutex_);
  gradients_ = gradients;
  return gradient_table_.write(*engine_, *table);
}

namespace {

Status rows_in_range(const char* call, std::int64_t rows) {
  if (rows >= 0 && rows <= engine::kMaxBlockRows) return {};
  return {ErrorCode::invalid_argument,
          fmt::format("{}: rows = {}: must be from 0 to {}", call, rows, engine::kMaxBlockRows)};
}

}  // namespace

Result<std::size_t> Blocks::Impl::workspace_bytes(std::int64_t rows) const {
  if (Status status = rows_in_range("workspace_bytes", rows); !status) return std::move(status).error();
  if (rows == 0) return std::size_t{0};
  return cpu_ ? cpu_->workspace_bytes(rows) : plan::blocks_workspace_bytes(spec_, rows);
}

Result<std::size_t> Blocks::Impl::backward_workspace_bytes(std::int64_t rows) const {
  if (!options_.training)
    return Error(ErrorCode::invalid_argument,
                 "backward_workspace_bytes: BlocksOptions::training is false: these blocks compute no "
                 "gradients");
  if (Status status = rows_in_range("backward_workspace_bytes", rows); !status)
    return std::move(status).error();
  if (rows == 0) return std::size_t{0};
  return cpu_ ? cpu_->backward_workspace_bytes(rows) : plan::blocks_backward_workspace_bytes(spec_, rows);
}

plan::BlocksContext Blocks::Impl::context() const noexcept {
  plan::BlocksContext context = context_;
  context.forward.expert_table = table_.address();
  context.backward.expert_table = backward_table_.address();
  context.gradients = gradient_table_.address();
  return context;
}

template <class Launch>
Status Blocks::Impl::on_device(std::int64_t tokens, void* stream, Launch&& launch) {
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  auto kernels = kernels_for(std::max<std::int64_t>(tokens, 1), stream);
  if (!kernels) [[unlikely]]
    return std::move(kernels).error();
  return launch(context(), **kernels);
}

namespace {

Error argument_error(const char* args, const std::string& problem) {
  return {ErrorCode::invalid_argument, fmt::format("{}: {}", args, problem)};
}

Error small_workspace(const char* args, std::size_t given, std::int64_t rows, std::size_t needed,
                      const char* asked_by = "workspace_bytes") {
  return {ErrorCode::workspace_too_small,
          fmt::format("{}: workspace_bytes = {}: {} rows need {} (Blocks::{})", args, given, rows, needed,
                      asked_by)};
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
    return plan::run_block_gather(context.forward, kernels, args);
  });
}

Status Blocks::Impl::slot_rows(const SlotRowsArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::slot_rows_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("SlotRowsArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->slot_rows(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_slot_rows(context.forward, kernels, args);
  });
}

Status Blocks::Impl::up(const GroupedUpArgs& args) {
  if (Status status = not_forked(); !status) return status;
  const std::int64_t rows = args.by_expert.rows;
  const std::size_t bytes = needed(rows, [&](std::int64_t n) { return workspace_bytes(n); });
  if (std::string problem = engine::up_problem(spec_, options_, args, bytes); !problem.empty()) [[unlikely]]
    return argument_error("GroupedUpArgs", problem);
  if (rows == 0) return {};
  if (args.workspace_bytes < bytes) [[unlikely]]
    return small_workspace("GroupedUpArgs", args.workspace_bytes, rows, bytes);
  if (table_.address() == 0) [[unlikely]]
    return not_bound("up");
  if (cpu_) return cpu_->up(args);
  return on_device(tokens_of(rows), args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_up(context.forward, kernels, args);
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
  if (table_.address() == 0) [[unlikely]]
    return not_bound("down");
  if (cpu_) return cpu_->down(args);
  return on_device(tokens_of(rows), args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_down(context.forward, kernels, args);
  });
}

Status Blocks::Impl::combine(const CombineArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::combine_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("CombineArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->combine(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_block_combine(context.forward, kernels, args);
  });
}

Status Blocks::Impl::combine_backward(const CombineBackwardArgs& args) {
  if (Status status = not_forked(); !status) return status;
  if (std::string problem = engine::combine_backward_problem(spec_, args); !problem.empty()) [[unlikely]]
    return argument_error("CombineBackwardArgs", problem);
  if (args.tokens == 0) return {};
  if (cpu_) return cpu_->combine_backward(args);
  return on_device(args.tokens, args.stream, [&](const auto& context, const auto& kernels) {
    return plan::run_combine_backward(context.forward, kernels, args);
  });
}

template <class Args>
Status Blocks::Impl::begin_backward(const char* type, const char* call, const Args& args, std::size_t bytes,
                                    bool& rows_done, bool fc1) {
  const std::int64_t rows = args.by_expert.rows;
  if (args.workspace_bytes < bytes) [[unlikely]]
    return small_workspace(type, args.workspace_bytes, rows, bytes, "backward_workspace_bytes");
  if (args.weight_gradients && gradient_table_.address() == 0) [[unlikely]]
    return Error(
        ErrorCode::not_bound,
        fmt::format("{} with weight_gradients before bind_gradients: nobody said where the gradients go",
                    call));
  rows_done = rows == 0;
  if (rows_done) {
    if (!args.weight_gradients || args.accumulate_weight_gradients) return {};
    if (cpu_) {
      cpu_->clear_gradients(fc1);
      return {};
    }
    const cuda::ContextScope current(*engine_->device);
    if (!current.ok()) return current.status();
    return plan::clear_gradients(engine_->device->driver(), spec_, options_.gradient_type, gradients_,
                                 args.stream, {.fc1 = fc1, .fc2 = !fc1, .shared_gate = false});
  }
  if (table_.address() == 0) [[unlikely]]
    return not_bound(call);
  return {};
}

Status Blocks::Impl::down_backward(const GroupedDownBackwardArgs& args) {
  if (Status status = not_forked(); !status) return status;
  const std::size_t bytes =
      needed(args.by_expert.rows, [&](std::int64_t n) { return backward_workspace_bytes(n); });
  if (std::string problem = engine::down_backward_problem(spec_, options_, args, bytes); !problem.empty())
      [[unlikely]]
    return argument_error("GroupedDownBackwardArgs", problem);
  bool done = false;
  if (Status status = begin_backward("GroupedDownBackwardArgs", "down_backward", args, bytes, done, false);
      !status || done)
    return status;
  if (cpu_) return cpu_->down_backward(args);
  return on_device(tokens_of(args.by_expert.rows), args.stream,
                   [&](const auto& context, const auto& kernels) {
                     return plan::run_block_down_backward(context, kernels, args);
                   });
}

Status Blocks::Impl::up_backward(const GroupedUpBackwardArgs& args) {
  if (Status status = not_forked(); !status) return status;
  const std::size_t bytes =
      needed(args.by_expert.rows, [&](std::int64_t n) { return backward_workspace_bytes(n); });
  if (std::string problem = engine::up_backward_problem(spec_, options_, args, bytes); !problem.empty())
      [[unlikely]]
    return argument_error("GroupedUpBackwardArgs", problem);
  bool done = false;
  if (Status status = begin_backward("GroupedUpBackwardArgs", "up_backward", args, bytes, done, true);
      !status || done)
    return status;
  if (cpu_) return cpu_->up_backward(args);
  return on_device(tokens_of(args.by_expert.rows), args.stream,
                   [&](const auto& context, const auto& kernels) {
                     return plan::run_block_up_backward(context, kernels, args);
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

Status Blocks::bind_gradients(const Weights& gradients) {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("bind_gradients", "Blocks");
    return impl_->bind_gradients(gradients);
  });
}

Result<std::size_t> Blocks::backward_workspace_bytes(std::int64_t rows) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("backward_workspace_bytes", "Blocks");
    return impl_->backward_workspace_bytes(rows);
  });
}

Status Blocks::down_backward(const GroupedDownBackwardArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("down_backward", "Blocks");
    return impl_->down_backward(args);
  });
}

Status Blocks::up_backward(const GroupedUpBackwardArgs& args) noexcept {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("up_backward", "Blocks");
    return impl_->up_backward(args);
  });
}

}  // namespace varmoe
