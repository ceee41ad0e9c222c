#include "varmoe/router_gradient.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "cpu/router_gradient.hpp"
#include "emit/routing.hpp"
#include "engine/operation.hpp"
#include "engine/router_gradient_impl.hpp"

/// RouterGradient: as the router, nothing on the prepared path allocates, locks or logs.
namespace varmoe {
namespace engine {
namespace {

constexpr std::uintptr_t bytes_of(LogitType type) {
  return type == LogitType::fp32 ? 4 : 2;
}

bool has_coefficient(const RouterGradientArgs& a, RouterLoss loss) noexcept {
  return a.coefficients[static_cast<std::size_t>(loss)] != 0.0f;
}

std::array<Pointer, 9> pointers_of(const RouterGradientSpec& spec, const RouterGradientArgs& a) noexcept {
  const bool weights = a.dtopk_weights != nullptr;
  return {{{"logits", a.logits, bytes_of(spec.router.logit_type), true},
           {"topk_ids", weights ? a.topk_ids : nullptr, a.id_type == IdType::int64 ? 8u : 4u, weights},
           {"dtopk_weights", a.dtopk_weights, 4, false},
           {"dlogits", a.dlogits, bytes_of(spec.dlogit_type), true},
           {"tokens_per_expert", a.tokens_per_expert, 4, plan::has_share_losses(a)},
           {"mean_scores", a.mean_scores, 4, has_coefficient(a, RouterLoss::group_balance)},
           {"expert_widths", a.expert_widths, 4, false},
           {"token_count", a.token_count, 4, false},
           {"workspace", a.workspace, 16, false}}};
}

bool stride_ok(std::int64_t stride, std::int64_t experts) noexcept {
  return stride == 0 || (stride >= experts && stride <= kMaxStride);
}

bool coefficients_ok(const RouterGradientSpec& spec, const RouterGradientArgs& a) noexcept {
  for (std::size_t i = 0; i < kRouterLosses; ++i)
    if (!std::isfinite(a.coefficients[i]) || (a.coefficients[i] != 0.0f && (spec.losses >> i & 1u) == 0))
      return false;
  return true;
}

bool arguments_ok(const RouterGradientSpec& spec, const RouterGradientArgs& a) noexcept {
  const std::int64_t experts = spec.router.num_experts;
  return a.tokens >= 1 && a.tokens <= kMaxCount / spec.router.top_k && stride_ok(a.logit_stride, experts) &&
         stride_ok(a.dlogit_stride, experts) && (a.id_type == IdType::int32 || a.id_type == IdType::int64) &&
         coefficients_ok(spec, a) && a.loss_tokens >= 0 && pointers_ok(pointers_of(spec, a));
}

std::string stride_problem(const char* name, std::int64_t stride, std::int64_t experts) {
  return fmt::format("{} = {}: must be 0 (the number of experts), or from {} to {}", name, stride, experts,
                     kMaxStride);
}

std::string argument_problem(const RouterGradientSpec& spec, const RouterGradientArgs& a) {
  const std::int64_t experts = spec.router.num_experts, most = kMaxCount / spec.router.top_k;
  if (a.tokens < 0 || a.tokens > most)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, most);
  if (!stride_ok(a.logit_stride, experts)) return stride_problem("logit_stride", a.logit_stride, experts);
  if (!stride_ok(a.dlogit_stride, experts)) return stride_problem("dlogit_stride", a.dlogit_stride, experts);
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  for (std::size_t i = 0; i < kRouterLosses; ++i) {
    if (!std::isfinite(a.coefficients[i]))
      return fmt::format("coefficients[{}] = {}: must be finite", i, a.coefficients[i]);
    if (a.coefficients[i] != 0.0f && (spec.losses >> i & 1u) == 0)
      return fmt::format("coefficients[{}] = {}: must be 0, RouterGradientSpec::losses lacks the loss's bit",
                         i, a.coefficients[i]);
  }
  if (a.loss_tokens < 0)
    return fmt::format("loss_tokens = {}: must be 0 (the tokens of this call) or more", a.loss_tokens);
  return pointer_problem(pointers_of(spec, a));
}

std::array<Pointer, 7> pointers_of(const RouterGradientSpec& spec,
                                   const RouterProductGradientArgs& a) noexcept {
  const bool tokens = a.tokens > 0;
  return {{{"dlogits", a.dlogits, 4, tokens},
           {"x", a.x, 16, tokens && a.dweight},
           {"weight", a.weight, 16, tokens && a.dx},
           {"dx", a.dx, 16, false},
           {"dweight", a.dweight, 16, false},
           {"dlogit_bias", spec.router.logit_bias ? a.dlogit_bias : nullptr, 4, false},
           {"token_count", a.token_count, 4, false}}};
}

struct Stride {
  const char* name;
  std::int64_t value;
};

std::array<Stride, 4> strides_of(const RouterProductGradientArgs& a) noexcept {
  return {{{"x_stride", a.x_stride},
           {"weight_stride", a.weight_stride},
           {"dx_stride", a.dx_stride},
           {"dweight_stride", a.dweight_stride}}};
}

bool row_stride_ok(std::int64_t stride, std::int64_t hidden) noexcept {
  return stride == 0 || (stride >= hidden && stride <= kMaxStride && stride % 8 == 0);
}

bool arguments_ok(const RouterGradientSpec& spec, const RouterProductGradientArgs& a) noexcept {
  const auto strides = strides_of(a);
  return a.tokens >= 0 && a.tokens <= kMaxCount && stride_ok(a.dlogit_stride, spec.router.num_experts) &&
         std::all_of(strides.begin(), strides.end(),
                     [&](const Stride& s) { return row_stride_ok(s.value, spec.router.hidden_size); }) &&
         (spec.router.logit_bias || !a.dlogit_bias) && pointers_ok(pointers_of(spec, a));
}

std::string argument_problem(const RouterGradientSpec& spec, const RouterProductGradientArgs& a) {
  if (a.tokens < 0 || a.tokens > kMaxCount)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, kMaxCount);
  if (!stride_ok(a.dlogit_stride, spec.router.num_experts))
    return stride_problem("dlogit_stride", a.dlogit_stride, spec.router.num_experts);
  for (const Stride& s : strides_of(a))
    if (!row_stride_ok(s.value, spec.router.hidden_size))
      return fmt::format("{} = {}: must be 0 (hidden_size), or a multiple of 8 from {} to {}", s.name,
                         s.value, spec.router.hidden_size, kMaxStride);
  if (!spec.router.logit_bias && a.dlogit_bias)
    return "dlogit_bias must be null: this router has no logit bias (RouterSpec::logit_bias is false)";
  return pointer_problem(pointers_of(spec, a));
}

std::string name_of(const RouterGradientSpec& spec) {
  return fmt::format("gradient of {}", router_signature(spec.router));
}

/// A call's border: what is thrown becomes an error, and a forked child has no use of the engine.
template <class F>
Status call(const Engine::Impl& engine, F&& f) noexcept try {
  if (!engine.fork.same_process()) [[unlikely]]
    return engine.fork.error();
  return f();
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

}  // namespace
}  // namespace engine

RouterGradient::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const RouterGradientSpec& spec)
    : engine_(engine),
      spec_(spec),
      context_(engine::context_of(*engine)),
      kernels_(engine, engine::name_of(spec), [spec] { return emit::emit_router_gradient(spec); }) {}

Result<std::shared_ptr<RouterGradient::Impl>> RouterGradient::Impl::create(
    std::shared_ptr<Engine::Impl> engine, const RouterGradientSpec& spec) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  return std::make_shared<Impl>(std::move(engine), spec);
}

Result<PrepareReport> RouterGradient::Impl::prepare(const PrepareOptions& options) {
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  if (engine_->on_cpu()) return PrepareReport{};
  return kernels_.prepare(options);
}

Result<std::size_t> RouterGradient::Impl::workspace_bytes(std::int64_t tokens) const {
  const std::int64_t most = engine::kMaxCount / spec_.router.top_k;
  if (tokens < 0 || tokens > most)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("workspace_bytes: tokens = {}: must be from 0 to {}", tokens, most));
  return engine_->on_cpu() ? std::size_t{0} : plan::gradient_workspace_bytes(spec_);
}

Result<plan::GradientKernels> RouterGradient::Impl::kernels(void* stream) {
  const plan::LoadedKernel* all = kernels_.loaded();
  if (!all) [[unlikely]] {
    auto found = kernels_.first_use(stream);
    if (!found) return std::move(found).error();
    all = *found;
  }
  plan::GradientKernels of;
  of.dlogits = *all++;
  if (plan::gradient_workspace_bytes(spec_) > 0) of.loss_terms = *all++;
  if (spec_.router.hidden_size != 0) {
    of.dx = *all++;
    of.dweight = *all;
  }
  return of;
}

Status RouterGradient::Impl::compute(const RouterGradientArgs& args) noexcept {
  return engine::call(*engine_, [&]() -> Status {
    if (args.tokens == 0) return {};
    if (!engine::arguments_ok(spec_, args)) [[unlikely]]
      return Error(ErrorCode::invalid_argument,
                   "RouterGradientArgs: " + engine::argument_problem(spec_, args));
    if (engine_->on_cpu()) {
      cpu::router_gradient(spec_, args);
      return {};
    }
    const std::size_t needed = plan::has_share_losses(args) ? plan::gradient_workspace_bytes(spec_) : 0;
    if (needed > 0 && (!args.workspace || args.workspace_bytes < needed)) [[unlikely]]
      return Error(ErrorCode::workspace_too_small,
                   fmt::format("RouterGradientArgs: workspace_bytes = {}: {} experts need {} "
                               "(RouterGradient::workspace_bytes)",
                               args.workspace ? args.workspace_bytes : 0, spec_.router.num_experts, needed));
    const cuda::ContextScope current(*engine_->device);
    if (!current.ok()) [[unlikely]]
      return current.status();
    auto of = kernels(args.stream);
    if (!of) [[unlikely]]
      return std::move(of).error();
    return plan::run_gradient(context_, *of, spec_, args);
  });
}

Status RouterGradient::Impl::product(const RouterProductGradientArgs& args) noexcept {
  return engine::call(*engine_, [&]() -> Status {
    if (spec_.router.hidden_size == 0) [[unlikely]]
      return Error(ErrorCode::unsupported,
                   "RouterGradient::product: this router is given logits (RouterSpec::hidden_size is 0)");
    if (!engine::arguments_ok(spec_, args)) [[unlikely]]
      return Error(ErrorCode::invalid_argument,
                   "RouterProductGradientArgs: " + engine::argument_problem(spec_, args));
    if (engine_->on_cpu()) {
      cpu::router_product_gradient(spec_, args);
      return {};
    }
    const cuda::ContextScope current(*engine_->device);
    if (!current.ok()) [[unlikely]]
      return current.status();
    auto of = kernels(args.stream);
    if (!of) [[unlikely]]
      return std::move(of).error();
    return plan::run_product_gradient(context_, *of, spec_, args);
  });
}

RouterGradient::RouterGradient(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
RouterGradient::RouterGradient(RouterGradient&&) noexcept = default;
RouterGradient& RouterGradient::operator=(RouterGradient&&) noexcept = default;
RouterGradient::~RouterGradient() = default;

const RouterGradientSpec& RouterGradient::spec() const noexcept {
  static const RouterGradientSpec none;
  return impl_ ? impl_->spec() : none;
}

Result<PrepareReport> RouterGradient::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "RouterGradient");
    return impl_->prepare(options);
  });
}

Result<std::size_t> RouterGradient::workspace_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "RouterGradient");
    return impl_->workspace_bytes(tokens);
  });
}

Status RouterGradient::compute(const RouterGradientArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("compute", "RouterGradient"); });
  return impl_->compute(args);
}

Status RouterGradient::product(const RouterProductGradientArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("product", "RouterGradient"); });
  return impl_->product(args);
}

}  // namespace varmoe
