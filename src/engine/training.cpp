#include "varmoe/training.hpp"

#include <fmt/format.h>

#include <array>
#include <new>
#include <utility>

#include "engine/layer_impl.hpp"
#include "engine/operation.hpp"
#include "engine/training_impl.hpp"

/// TrainingLayer: checks of arguments, and the way to the backend.
namespace varmoe {
namespace engine {
namespace {

struct Span {
  const char* name;
  const void* begin;
  std::uint64_t bytes;
  bool overlaps(const Span& other) const {
    const auto a = std::bit_cast<std::uintptr_t>(begin), b = std::bit_cast<std::uintptr_t>(other.begin);
    return begin != nullptr && other.begin != nullptr && (a < b ? b - a < bytes : a - b < other.bytes);
  }
};

std::uint64_t rows_bytes(std::int64_t tokens, std::int64_t stride, std::int64_t columns) {
  return static_cast<std::uint64_t>((tokens - 1) * stride + columns) * 2;
}

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
  const Span x{"x", a.x, rows_bytes(a.tokens, stride(a.x_stride), spec.hidden_size)};
  const Span dout{"dout", a.dout, rows_bytes(a.tokens, stride(a.dout_stride), spec.hidden_size)};
  const Span dx{"dx", a.dx, rows_bytes(a.tokens, stride(a.dx_stride), spec.hidden_size)};
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
    : engine_(std::move(engine)), spec_(spec), options_(options) {}

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
  if (spec.weight_on_input)
    return Error(ErrorCode::unsupported, "training a layer with weight_on_input is not in this version");
  auto layer = std::make_shared<Impl>(engine, spec, options);
  if (!engine->on_cpu()) return Error(ErrorCode::unsupported, "training on a GPU is not in this version");
  auto cpu = cpu::CpuTrainingLayer::create(spec, options, engine->cpu_threads);
  if (!cpu) return std::move(cpu).error();
  layer->cpu_ = *std::move(cpu);
  return layer;
}

Result<PrepareReport> TrainingLayer::Impl::prepare(const PrepareOptions& options) {
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  if (auto buckets = engine::buckets_to_prepare(options); !buckets) return std::move(buckets).error();
  return PrepareReport{};
}

Status TrainingLayer::Impl::bind(const Weights& weights) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = weights.validate(spec_); !status) return status;
  Status status = cpu_->bind(weights);
  if (status) bound_.store(true, std::memory_order_release);
  return status;
}

Status TrainingLayer::Impl::bind_gradients(const Weights& gradients) {
  if (Status status = engine_->check_process(); !status) return status;
  if (Status status = gradients.validate(spec_); !status)
    return Error(status.error().code(), "gradients: " + status.error().message());
  if (options_.gradient_type == GradientType::fp32)
    if (std::string problem = engine::fp32_bias_problem(gradients); !problem.empty())
      return Error(ErrorCode::invalid_argument, "gradients: " + problem);
  Status status = cpu_->bind_gradients(gradients);
  if (status) gradients_bound_.store(true, std::memory_order_release);
  return status;
}

std::size_t TrainingLayer::Impl::needed_saved(std::int64_t tokens) const noexcept {
  return tokens > 0 ? cpu_->saved_bytes(tokens) : 0;
}
std::size_t TrainingLayer::Impl::needed_workspace(std::int64_t tokens) const noexcept {
  return tokens > 0 ? cpu_->workspace_bytes(tokens) : 0;
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
  if (!bound_.load(std::memory_order_acquire)) [[unlikely]]
    return Error(ErrorCode::not_bound, "forward before bind: the layer does not know where its weights lie");
  engine_->forwards.fetch_add(1, std::memory_order_relaxed);
  return cpu_->forward(args, saved);
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
  return cpu_->backward(args);
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
