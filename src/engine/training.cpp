#include "varmoe/training.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <optional>
#include <utility>

#include "cuda/device.hpp"
#include "engine/kernel_plan.hpp"
#include "engine/layer_impl.hpp"
#include "engine/operation.hpp"
#include "engine/training_build.hpp"
#include "engine/training_impl.hpp"
#include "model/backward_layer.hpp"

/// TrainingLayer: checks of arguments, and the way to the backend.
namespace varmoe {
namespace engine {
namespace {

/// Weights::validate asks of biases the alignment of 16 bits.
std::string fp32_bias_problem(const Weights& gradients) {
  for (std::size_t e = 0; e < gradients.experts.size(); ++e) {
    const ExpertWeights& w = gradients.experts[e];
    const std::array<Pointer, 3> biases{{{"gate_bias", w.gate_bias, 4, false},
                                         {"up_bias", w.up_bias, 4, false},
                                         {"down_bias", w.down_bias, 4, false}}};
    if (std::string problem = pointer_problem(biases); !problem.empty())
      return fmt::format("expert {}: {}", e, problem);
  }
  return {};
}

}  // namespace

namespace {

/// What of a forward's arguments `saved` overlaps; null: nothing.
const char* overlapped_by_saved(const LayerSpec& spec, const ForwardArgs& a, const void* saved,
                                std::size_t saved_bytes, std::size_t workspace_bytes) noexcept {
  const auto stride = [&](std::int64_t given) { return given != 0 ? given : spec.hidden_size; };
  const Span kept{"saved", saved, saved_bytes};
  for (const Span& other : {rows_span("x", a.x, a.tokens, stride(a.x_stride), spec.hidden_size),
                            rows_span("out", a.out, a.tokens, stride(a.out_stride), spec.hidden_size),
                            Span{"the workspace", a.workspace, workspace_bytes}})
    if (saved_bytes != 0 && kept.overlaps(other)) return other.name;
  return nullptr;
}

}  // namespace

Status check_gradients(const LayerSpec& spec, GradientType type, const Weights& gradients) {
  if (Status status = gradients.validate(spec); !status)
    return Error(status.error().code(), "gradients: " + status.error().message());
  if (type == GradientType::fp32)
    if (std::string problem = fp32_bias_problem(gradients); !problem.empty())
      return Error(ErrorCode::invalid_argument, "gradients: " + problem);
  return {};
}

std::string backward_argument_problem(const LayerSpec& spec, const BackwardArgs& a, std::size_t saved_needed,
                                      std::size_t workspace_needed) {
  if (a.tokens < 0 || a.tokens > kMaxCount / spec.slots_per_token())
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, kMaxCount / spec.slots_per_token());
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  const bool rows = a.tokens > 0;
  const std::array<Pointer, 10> pointers{
      {{"x", a.x, 16, rows},
       {"topk_ids", a.topk_ids, a.id_type == IdType::int64 ? 8u : 4u, rows},
       {"topk_weights", a.topk_weights, 4, rows},
       {"token_count", a.token_count, 4, false},
       {"expert_map", a.expert_map, 4, false},
       {"dout", a.dout, 16, rows},
       {"saved", a.saved, 256, rows && saved_needed != 0},
       {"dx", a.dx, 16, false},
       {"dtopk_weights", a.dtopk_weights, 4, false},
       {"workspace", a.workspace, 256, rows}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  if (a.expert_map && (a.num_global_experts < 1 || a.num_global_experts > kMaxCount))
    return fmt::format("num_global_experts = {}: must be from 1 to {} with an expert_map",
                       a.num_global_experts, kMaxCount);
  const struct {
    const char* name;
    std::int64_t stride;
  } strides[] = {{"x_stride", a.x_stride}, {"dout_stride", a.dout_stride}, {"dx_stride", a.dx_stride}};
  for (const auto& s : strides)
    if (s.stride != 0 &&
        (s.stride < spec.hidden_size || s.stride > kMaxStride || s.stride % kWidthMultiple != 0))
      return fmt::format("{} = {}: must be 0 (the hidden size), or a multiple of {} from {} to {}", s.name,
                         s.stride, kWidthMultiple, spec.hidden_size, kMaxStride);
  if (!rows) return {};
  const auto stride = [&](std::int64_t given) { return given != 0 ? given : spec.hidden_size; };
  const Span x = rows_span("x", a.x, a.tokens, stride(a.x_stride), spec.hidden_size);
  const Span dout = rows_span("dout", a.dout, a.tokens, stride(a.dout_stride), spec.hidden_size);
  const Span dx = rows_span("dx", a.dx, a.tokens, stride(a.dx_stride), spec.hidden_size);
  const Span weights{"topk_weights", a.topk_weights, static_cast<std::uint64_t>(a.tokens * spec.top_k) * 4};
  const Span dweights{"dtopk_weights", a.dtopk_weights,
                      static_cast<std::uint64_t>(a.tokens * spec.top_k) * 4};
  const Span saved{"saved", a.saved, saved_needed};
  const Span workspace{"workspace", a.workspace, workspace_needed};
  const std::array<Span, 4> inputs{x, dout, weights, saved};
  const std::array<Span, 3> outputs{dx, dweights, workspace};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    for (const Span& input : inputs)
      if (outputs[i].overlaps(input)) return fmt::format("{} overlaps {}", outputs[i].name, input.name);
    for (std::size_t j = i + 1; j < outputs.size(); ++j)
      if (outputs[i].overlaps(outputs[j]))
        return fmt::format("{} overlaps {}", outputs[i].name, outputs[j].name);
  }
  return {};
}

}  // namespace engine

TrainingLayer::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec,
                          const TrainingOptions& options)
    : engine_(std::move(engine)),
      spec_(spec),
      options_(options),
      backward_spec_(model::backward_layer(spec)) {}

TrainingLayer::Impl::~Impl() {
  // The threads of a CPU layer are the parent's; a child forked from it has none to join.
  if (cpu_ && !engine_->fork.same_process()) static_cast<void>(cpu_.release());
}

Result<std::shared_ptr<TrainingLayer::Impl>> TrainingLayer::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                                         const LayerSpec& spec,
                                                                         const TrainingOptions& options) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  if (options.gradient_type != GradientType::layer_dtype && options.gradient_type != GradientType::fp32)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("TrainingOptions::gradient_type = {}: must be layer_dtype (0) or fp32 (1)",
                             static_cast<int>(options.gradient_type)));
  if (options.max_sms < 0)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("TrainingOptions::max_sms = {}: must be 0 (all) or more", options.max_sms));
  auto layer = std::make_shared<Impl>(engine, spec, options);
  if (engine->on_cpu()) {
    auto cpu = cpu::CpuTrainingLayer::create(spec, options, engine->cpu_threads);
    if (!cpu) return std::move(cpu).error();
    layer->cpu_ = *std::move(cpu);
    return layer;
  }
  layer->context_.forward = plan::run_context(*engine->device, layer->spec_, options.max_sms);
  layer->context_.backward = plan::run_context(*engine->device, layer->backward_spec_, options.max_sms);
  layer->context_.save_preactivation = options.save_preactivation;
  return layer;
}

std::string TrainingLayer::Impl::name() const {
  return "training of " + kernel_signature(spec_);
}

Result<PrepareReport> TrainingLayer::Impl::prepare(const PrepareOptions& options) {
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

Result<std::vector<KernelReport>> TrainingLayer::Impl::prepare_buckets(std::span<const std::int64_t> buckets,
                                                                       const PrepareOptions& options,
                                                                       bool by_prepare) {
  auto build = engine::build_training(spec_, options_, buckets, *engine_->chooser, *engine_->builder,
                                      engine_->hooks(options));
  if (!build) return std::move(build).error();
  engine_->count(build->reports);
  std::optional<Error> problem;
  auto sets = engine::resident_sets<plan::TrainingKernels>(
      *engine_, *build,
      [](plan::TrainingKernels& set, const engine::TrainingPart& part) -> plan::LoadedKernel& {
        return part.own ? set.*part.own : (part.backward ? set.backward : set.forward)[part.stage];
      },
      problem);
  // Choices do not change while an engine lives: a bucket that is there stays.
  kernels_.publish(std::move(sets), by_prepare, [](const auto&, const auto&) { return true; });
  if (problem) return *problem;
  if (by_prepare && engine_->log.enabled(LogLevel::info))
    engine_->log.write(LogLevel::info, engine::summary(*build, name()));
  return std::move(build->reports);
}

Result<const plan::TrainingKernels*> TrainingLayer::Impl::kernels_for(std::int64_t tokens, void* stream) {
  if (const plan::TrainingKernels* found = kernels_.serving(tokens)) [[likely]]
    return found;
  return kernels_.first_use(*engine_, tokens, stream, name() + " was prepared", name(),
                            [&](std::int64_t bucket) {
                              const std::int64_t buckets[] = {bucket};
                              return prepare_buckets(buckets, {}, false);
                            });
}

plan::TrainingContext TrainingLayer::Impl::context() const noexcept {
  plan::TrainingContext context = context_;
  context.forward.expert_table = forward_table_.address();
  context.backward.expert_table = backward_table_.address();
  context.gradients = gradient_table_.address();
  return context;
}

Status TrainingLayer::Impl::bind(const Weights& weights) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = weights.validate(spec_); !status) return status;
  if (cpu_) {
    Status status = cpu_->bind(weights);
    if (status) bound_.store(true, std::memory_order_release);
    return status;
  }
  const bool hopper = engine_->device->attributes().compute_major == 9;
  const cuda::ContextScope current(*engine_->device);  // encoding a tensor map asks for one
  if (!current.ok()) return current.status();
  const cuda::Driver* maps = hopper ? &engine_->device->driver() : nullptr;
  auto forward = plan::make_expert_table(spec_, weights, maps);
  if (!forward) return std::move(forward).error();
  auto backward = plan::make_backward_table(spec_, weights, maps);
  if (!backward) return std::move(backward).error();
  std::lock_guard lock(bind_mutex_);
  if (Status status = forward_table_.write(*engine_, *forward); !status) return status;
  if (Status status = backward_table_.write(*engine_, *backward); !status) return status;
  bound_.store(true, std::memory_order_release);
  return {};
}

Status TrainingLayer::Impl::bind_gradients(const Weights& gradients) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = engine::check_gradients(spec_, options_.gradient_type, gradients); !status)
    return status;
  if (cpu_) {
    Status status = cpu_->bind_gradients(gradients);
    if (status) gradients_bound_.store(true, std::memory_order_release);
    return status;
  }
  auto table = plan::make_gradient_table(spec_, gradients);
  if (!table) return std::move(table).error();
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) return current.status();
  std::lock_guard lock(bind_mutex_);
  if (Status status = gradient_table_.write(*engine_, *table); !status) return status;
  gradients_ = gradients;
  gradients_bound_.store(true, std::memory_order_release);
  return {};
}

std::size_t TrainingLayer::Impl::needed_saved(std::int64_t tokens) const noexcept {
  if (tokens <= 0) return 0;
  return cpu_ ? cpu_->saved_bytes(tokens)
              : plan::training_saved_bytes(spec_, tokens, options_.save_preactivation);
}
std::size_t TrainingLayer::Impl::needed_workspace(std::int64_t tokens) const noexcept {
  if (tokens <= 0) return 0;
  return cpu_ ? cpu_->workspace_bytes(tokens)
              : plan::training_workspace_bytes(spec_, tokens, options_.save_preactivation);
}

Result<std::size_t> TrainingLayer::Impl::saved_bytes(std::int64_t tokens) const {
  if (tokens < 0 || tokens > engine::kMaxCount / spec_.slots_per_token())
    return Error(ErrorCode::invalid_argument,
                 fmt::format("saved_bytes: tokens = {}: must be from 0 to {}", tokens,
                             engine::kMaxCount / spec_.slots_per_token()));
  return needed_saved(tokens);
}

Result<std::size_t> TrainingLayer::Impl::workspace_bytes(std::int64_t tokens) const {
  if (tokens < 0 || tokens > engine::kMaxCount / spec_.slots_per_token())
    return Error(ErrorCode::invalid_argument,
                 fmt::format("workspace_bytes: tokens = {}: must be from 0 to {}", tokens,
                             engine::kMaxCount / spec_.slots_per_token()));
  return needed_workspace(tokens);
}

Status TrainingLayer::Impl::forward(const ForwardArgs& args, void* saved, std::size_t saved_bytes) noexcept
    try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (args.tokens == 0) return {};
  if (args.tokens > engine::kMaxCount / spec_.slots_per_token()) [[unlikely]]
    return Error(ErrorCode::invalid_argument,
                 fmt::format("ForwardArgs: tokens = {}: training takes up to {} at a time", args.tokens,
                             engine::kMaxCount / spec_.slots_per_token()));
  const std::size_t needed = args.tokens > 0 ? needed_workspace(args.tokens) : 0;
  if (!engine::forward_arguments_ok(spec_, args, needed)) [[unlikely]] {
    std::string problem = engine::forward_argument_problem(spec_, args, needed);
    if (!problem.empty()) return Error(ErrorCode::invalid_argument, "ForwardArgs: " + problem);
    return Error(
        ErrorCode::workspace_too_small,
        fmt::format("ForwardArgs: workspace_bytes = {}: {} tokens need {} (TrainingLayer::workspace_bytes)",
                    args.workspace_bytes, args.tokens, needed));
  }
  if (args.absent_tokens != AbsentTokens::write_zeros) [[unlikely]]
    return Error(ErrorCode::unsupported,
                 "ForwardArgs: absent_tokens = untouched: a training layer writes zeros");
  const std::size_t kept = needed_saved(args.tokens);
  if (saved_bytes < kept) [[unlikely]]
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("saved_bytes = {}: {} tokens need {} (TrainingLayer::saved_bytes)", saved_bytes,
                             args.tokens, kept));
  if (kept != 0 && (!saved || !engine::aligned(saved, 256))) [[unlikely]]
    return Error(ErrorCode::invalid_argument,
                 fmt::format("saved = {}: must be 256-byte aligned", fmt::ptr(saved)));
  if (const char* overlapped = engine::overlapped_by_saved(spec_, args, saved, kept, needed)) [[unlikely]]
    return Error(ErrorCode::invalid_argument, fmt::format("saved overlaps {}", overlapped));
  if (!bound_.load(std::memory_order_acquire)) [[unlikely]]
    return Error(ErrorCode::not_bound, "forward before bind: the layer does not know where its weights lie");
  engine_->forwards.fetch_add(1, std::memory_order_relaxed);
  if (cpu_) return cpu_->forward(args, saved);
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  auto kernels = kernels_for(args.tokens, args.stream);
  if (!kernels) [[unlikely]]
    return std::move(kernels).error();
  return plan::run_training_forward(context(), **kernels, args, saved);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

Status TrainingLayer::Impl::backward(const BackwardArgs& args) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  const bool counted = args.tokens >= 0 && args.tokens <= engine::kMaxCount / spec_.slots_per_token();
  const std::size_t kept = counted ? needed_saved(args.tokens) : 0,
                    needed = counted ? needed_workspace(args.tokens) : 0;
  if (std::string problem = engine::backward_argument_problem(spec_, args, kept, needed); !problem.empty())
      [[unlikely]]
    return Error(ErrorCode::invalid_argument, "BackwardArgs: " + problem);
  if (args.saved_bytes < kept) [[unlikely]]
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("BackwardArgs: saved_bytes = {}: {} tokens need {} (TrainingLayer::saved_bytes)",
                             args.saved_bytes, args.tokens, kept));
  if (args.workspace_bytes < needed) [[unlikely]]
    return Error(
        ErrorCode::workspace_too_small,
        fmt::format("BackwardArgs: workspace_bytes = {}: {} tokens need {} (TrainingLayer::workspace_bytes)",
                    args.workspace_bytes, args.tokens, needed));
  if (!bound_.load(std::memory_order_acquire)) [[unlikely]]
    return Error(ErrorCode::not_bound, "backward before bind: the layer does not know where its weights lie");
  if (args.weight_gradients && !gradients_bound_.load(std::memory_order_acquire)) [[unlikely]]
    return Error(ErrorCode::not_bound,
                 "backward with weight_gradients before bind_gradients: nobody said where the gradients go");
  if (cpu_) return cpu_->backward(args);
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  if (args.tokens == 0) {
    if (!args.weight_gradients || args.accumulate_weight_gradients) return {};
    return plan::clear_gradients(engine_->device->driver(), spec_, options_.gradient_type, gradients_,
                                 args.stream);
  }
  auto kernels = kernels_for(args.tokens, args.stream);
  if (!kernels) [[unlikely]]
    return std::move(kernels).error();
  return plan::run_backward(context(), **kernels, args);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

TrainingLayer::TrainingLayer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
TrainingLayer::TrainingLayer(TrainingLayer&&) noexcept = default;
TrainingLayer& TrainingLayer::operator=(TrainingLayer&&) noexcept = default;
TrainingLayer::~TrainingLayer() = default;

const LayerSpec& TrainingLayer::spec() const noexcept {
  static const LayerSpec none;
  return impl_ ? impl_->spec() : none;
}

const TrainingOptions& TrainingLayer::options() const noexcept {
  static const TrainingOptions none;
  return impl_ ? impl_->options() : none;
}

Result<PrepareReport> TrainingLayer::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "TrainingLayer");
    return impl_->prepare(options);
  });
}

Status TrainingLayer::bind(const Weights& weights) {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("bind", "TrainingLayer");
    return impl_->bind(weights);
  });
}

Status TrainingLayer::bind_gradients(const Weights& gradients) {
  return engine::guarded([&]() -> Status {
    if (!impl_) return engine::moved_from("bind_gradients", "TrainingLayer");
    return impl_->bind_gradients(gradients);
  });
}

Result<std::size_t> TrainingLayer::saved_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("saved_bytes", "TrainingLayer");
    return impl_->saved_bytes(tokens);
  });
}

Result<std::size_t> TrainingLayer::workspace_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "TrainingLayer");
    return impl_->workspace_bytes(tokens);
  });
}

Status TrainingLayer::forward(const ForwardArgs& args, void* saved, std::size_t saved_bytes) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("forward", "TrainingLayer"); });
  return impl_->forward(args, saved, saved_bytes);
}

Status TrainingLayer::backward(const BackwardArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("backward", "TrainingLayer"); });
  return impl_->backward(args);
}

}  // namespace varmoe
