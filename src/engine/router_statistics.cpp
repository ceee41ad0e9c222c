#include "varmoe/router_statistics.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "cpu/router_statistics.hpp"
#include "emit/routing.hpp"
#include "engine/operation.hpp"
#include "engine/routing_impl.hpp"

/// RouterStatistics: as the router, nothing on the prepared path allocates, locks or logs.
namespace varmoe {
namespace engine {
namespace {

std::array<Pointer, 8> pointers_of(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& a) noexcept {
  const std::uintptr_t element = spec.logit_type == LogitType::fp32 ? 4 : 2;
  const std::uintptr_t id = a.id_type == IdType::int64 ? 8 : 4;
  return {{{"logits", a.logits, element, a.tokens > 0},
           {"topk_ids", a.topk_ids, id, a.tokens > 0},
           {"expert_widths", a.expert_widths, 4, false},
           {"tokens_per_expert", a.tokens_per_expert, 4, false},
           {"mean_scores", a.mean_scores, 4, false},
           {"losses", a.losses, 4, false},
           {"token_count", a.token_count, 4, false},
           {"workspace", a.workspace, 16, false}}};
}

std::int64_t stride_of(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& a) noexcept {
  return a.logit_stride != 0 ? a.logit_stride : spec.num_experts;
}

bool arguments_ok(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& a) noexcept {
  const std::int64_t stride = stride_of(spec, a);
  return a.tokens >= 0 && a.tokens <= kMaxCount / spec.top_k && stride >= spec.num_experts &&
         stride <= kMaxStride && (a.id_type == IdType::int32 || a.id_type == IdType::int64) &&
         pointers_ok(pointers_of(spec, a));
}

std::string argument_problem(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& a) {
  if (a.tokens < 0 || a.tokens > kMaxCount / spec.top_k)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, kMaxCount / spec.top_k);
  if (const std::int64_t stride = stride_of(spec, a); stride < spec.num_experts || stride > kMaxStride)
    return fmt::format("logit_stride = {}: must be 0 (the number of experts), or from {} to {}", stride,
                       spec.num_experts, kMaxStride);
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  return pointer_problem(pointers_of(spec, a));
}

}  // namespace
}  // namespace engine

RouterStatistics::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const RouterStatisticsSpec& spec)
    : engine_(engine),
      spec_(spec),
      context_(engine::context_of(*engine)),
      kernels_(engine, fmt::format("router statistics of {} experts", spec.num_experts),
               [spec] { return emit::emit_router_statistics(spec); }) {}

Result<std::shared_ptr<RouterStatistics::Impl>> RouterStatistics::Impl::create(
    std::shared_ptr<Engine::Impl> engine, const RouterStatisticsSpec& spec) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  return std::make_shared<Impl>(std::move(engine), spec);
}

Result<PrepareReport> RouterStatistics::Impl::prepare(const PrepareOptions& options) {
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  if (engine_->on_cpu()) return PrepareReport{};
  return kernels_.prepare(options);
}

Result<std::size_t> RouterStatistics::Impl::workspace_bytes(std::int64_t tokens) const {
  if (tokens < 0 || tokens > engine::kMaxCount / spec_.top_k)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("workspace_bytes: tokens = {}: must be from 0 to {}", tokens,
                             engine::kMaxCount / spec_.top_k));
  return engine_->on_cpu() ? std::size_t{0} : plan::statistics_workspace_bytes(spec_, tokens);
}

Status RouterStatistics::Impl::compute(const RouterStatisticsArgs& args) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (!engine::arguments_ok(spec_, args)) [[unlikely]]
    return Error(ErrorCode::invalid_argument,
                 "RouterStatisticsArgs: " + engine::argument_problem(spec_, args));
  if (engine_->on_cpu()) {
    cpu::router_statistics(spec_, args);
    return {};
  }
  const std::size_t needed = plan::statistics_workspace_bytes(spec_, args.tokens);
  if (!args.workspace || args.workspace_bytes < needed) [[unlikely]]
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("RouterStatisticsArgs: workspace_bytes = {}: {} tokens need {} "
                             "(RouterStatistics::workspace_bytes)",
                             args.workspace ? args.workspace_bytes : 0, args.tokens, needed));
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  const plan::LoadedKernel* kernels = kernels_.loaded();
  if (!kernels) [[unlikely]] {
    auto found = kernels_.first_use(args.stream);
    if (!found) return std::move(found).error();
    kernels = *found;
  }
  return plan::run_statistics(context_, {kernels[0], kernels[1]}, spec_, args);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

RouterStatistics::RouterStatistics(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
RouterStatistics::RouterStatistics(RouterStatistics&&) noexcept = default;
RouterStatistics& RouterStatistics::operator=(RouterStatistics&&) noexcept = default;
RouterStatistics::~RouterStatistics() = default;

const RouterStatisticsSpec& RouterStatistics::spec() const noexcept {
  static const RouterStatisticsSpec none;
  return impl_ ? impl_->spec() : none;
}

Result<PrepareReport> RouterStatistics::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "RouterStatistics");
    return impl_->prepare(options);
  });
}

Result<std::size_t> RouterStatistics::workspace_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "RouterStatistics");
    return impl_->workspace_bytes(tokens);
  });
}

Status RouterStatistics::compute(const RouterStatisticsArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("compute", "RouterStatistics"); });
  return impl_->compute(args);
}

}  // namespace varmoe
