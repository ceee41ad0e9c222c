#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <new>
#include <utility>

#include "cuda/device.hpp"
#include "emit/routing.hpp"
#include "engine/operation.hpp"
#include "engine/routing_impl.hpp"

/// Router and BlockAligner. As in Layer::forward, nothing on the prepared path allocates, locks or logs.
namespace varmoe {
namespace engine {
namespace {

std::array<Pointer, 11> pointers_of(const RouterSpec& spec, const RouteArgs& a) noexcept {
  const std::uintptr_t element = spec.logit_type == LogitType::fp32 ? 4 : 2;
  const void* bias = spec.correction_bias ? a.correction_bias : nullptr;
  const bool product = spec.hidden_size != 0;
  const bool logit_bias = product && spec.logit_bias;
  return {{{"logits", a.logits, element, !product},
           {"x", a.x, 16, product},
           {"weight", a.weight, 16, product},
           {"logit_bias", logit_bias ? a.logit_bias : nullptr, 4, logit_bias},
           {"logits_out", a.logits_out, 4, false},
           {"workspace", a.workspace, 16, false},
           {"correction_bias", bias, 4, spec.correction_bias},
           {"topk_ids", a.topk_ids, 4, true},
           {"topk_weights", a.topk_weights, 4, true},
           {"scores", a.scores, 4, false},
           {"token_count", a.token_count, 4, false}}};
}

std::int64_t stride_of(const RouterSpec& spec, const RouteArgs& a) noexcept {
  return a.logit_stride != 0 ? a.logit_stride : spec.num_experts;
}

/// Of what only one kind of router takes, the first that the other kind was given; null: none.
const char* foreign_member(const RouterSpec& spec, const RouteArgs& a) noexcept {
  if (spec.hidden_size != 0) return a.logits ? "logits" : nullptr;
  if (a.x) return "x";
  if (a.weight) return "weight";
  return a.logits_out ? "logits_out" : nullptr;
}

bool row_stride_ok(std::int64_t stride, std::int64_t hidden) noexcept {
  return stride == 0 || (stride >= hidden && stride <= kMaxStride && stride % 8 == 0);
}

std::string row_stride_problem(const char* name, std::int64_t stride, std::int64_t hidden) {
  return fmt::format("{} = {}: must be 0 (hidden_size), or a multiple of 8 from {} to {}", name, stride,
                     hidden, kMaxStride);
}

/// Entries of sorted_token_ids that are written; 64-bit, so that nothing overflows on the way to the check.
std::int64_t sorted_size_of(const AlignSpec& spec, const AlignArgs& a) noexcept {
  return a.sorted_size != 0 ? a.sorted_size : sorted_ids_size(spec, a.rows);
}

std::array<Pointer, 5> pointers_of(const AlignSpec& spec, const AlignArgs& a) noexcept {
  const bool places = sorted_size_of(spec, a) > 0;
  const std::uintptr_t id = a.id_type == IdType::int64 ? 8 : 4;
  return {{{"topk_ids", a.topk_ids, id, a.rows > 0},
           {"sorted_token_ids", a.sorted_token_ids, 4, places},
           {"expert_ids", a.expert_ids, 4, places},
           {"num_tokens_post_pad", a.num_tokens_post_pad, 4, true},
           {"workspace", a.workspace, 16, false}}};
}

}  // namespace

bool route_arguments_ok(const RouterSpec& spec, const RouteArgs& a) noexcept {
  const std::int64_t stride = stride_of(spec, a);
  return a.tokens >= 1 && a.tokens <= kMaxCount && stride >= spec.num_experts && stride <= kMaxStride &&
         !foreign_member(spec, a) &&
         (spec.hidden_size == 0 || (row_stride_ok(a.x_stride, spec.hidden_size) &&
                                    row_stride_ok(a.weight_stride, spec.hidden_size))) &&
         pointers_ok(pointers_of(spec, a));
}

std::string route_argument_problem(const RouterSpec& spec, const RouteArgs& a) {
  if (a.tokens < 0 || a.tokens > kMaxCount)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, kMaxCount);
  if (const std::int64_t stride = stride_of(spec, a); stride < spec.num_experts || stride > kMaxStride)
    return fmt::format("logit_stride = {}: must be 0 (the number of experts), or from {} to {}", stride,
                       spec.num_experts, kMaxStride);
  if (const char* name = foreign_member(spec, a))
    return fmt::format("{} must be null: this router {}", name,
                       spec.hidden_size != 0
                           ? "computes its logits from x and weight (RouterSpec::hidden_size)"
                           : "is given logits (RouterSpec::hidden_size is 0)");
  if (spec.hidden_size != 0 && !row_stride_ok(a.x_stride, spec.hidden_size))
    return row_stride_problem("x_stride", a.x_stride, spec.hidden_size);
  if (spec.hidden_size != 0 && !row_stride_ok(a.weight_stride, spec.hidden_size))
    return row_stride_problem("weight_stride", a.weight_stride, spec.hidden_size);
  return pointer_problem(pointers_of(spec, a));
}

bool align_arguments_ok(const AlignSpec& spec, const AlignArgs& a) noexcept {
  return a.rows >= 0 && a.rows <= kMaxCount && (a.id_type == IdType::int32 || a.id_type == IdType::int64) &&
         sorted_size_of(spec, a) >= sorted_ids_size(spec, a.rows) &&
         sorted_size_of(spec, a) <= kMaxCount - spec.block_size && pointers_ok(pointers_of(spec, a));
}

std::string align_argument_problem(const AlignSpec& spec, const AlignArgs& a) {
  if (a.rows < 0 || a.rows > kMaxCount)
    return fmt::format("rows = {}: must be from 0 to {}", a.rows, kMaxCount);
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  const std::int64_t size = sorted_size_of(spec, a), least = sorted_ids_size(spec, a.rows);
  if (size < least || size > kMaxCount - spec.block_size)
    return fmt::format("sorted_size = {}: must be 0 (the least), or from {} to {}", size, least,
                       kMaxCount - spec.block_size);
  return pointer_problem(pointers_of(spec, a));
}

namespace {

KernelGroup::Emit router_kernels(const RouterSpec& spec) {
  return [spec] { return emit::emit_router_kernels(spec); };
}

KernelGroup::Emit align_kernels(const AlignSpec& spec) {
  return [spec]() -> Result<std::vector<emit::EmittedKernel>> {
    std::vector<emit::EmittedKernel> all;
    for (const emit::Stage stage :
         {emit::Stage::align_single, emit::Stage::align_count, emit::Stage::align_scatter}) {
      auto kernel = emit::emit_align(spec, stage);
      if (!kernel) return std::move(kernel).error();
      all.push_back(*std::move(kernel));
    }
    return all;
  };
}

}  // namespace
}  // namespace engine

Router::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const RouterSpec& spec)
    : engine_(engine),
      spec_(spec),
      context_(engine::context_of(*engine)),
      kernels_(engine, router_signature(spec), engine::router_kernels(spec)) {}

Router::Impl::~Impl() {
  // The threads of a CPU router are the parent's; a child forked from it has none to join.
  if (cpu_ && !engine_->fork.same_process()) static_cast<void>(cpu_.release());
}

Result<std::shared_ptr<Router::Impl>> Router::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                           const RouterSpec& spec) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  auto router = std::make_shared<Impl>(engine, spec);
  if (engine->on_cpu()) {
    auto cpu = cpu::CpuRouter::create(spec, engine->cpu_threads);
    if (!cpu) return std::move(cpu).error();
    router->cpu_ = *std::move(cpu);
  }
  return router;
}

Result<PrepareReport> Router::Impl::prepare(const PrepareOptions& options) {
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  if (cpu_) return PrepareReport{};
  return kernels_.prepare(options);
}

Result<std::size_t> Router::Impl::workspace_bytes(std::int64_t tokens) const {
  if (tokens < 0 || tokens > engine::kMaxCount)
    return Error(
        ErrorCode::invalid_argument,
        fmt::format("workspace_bytes: tokens = {}: must be from 0 to {}", tokens, engine::kMaxCount));
  return cpu_ ? std::size_t{0} : plan::route_workspace_bytes(spec_, tokens);
}

Status Router::Impl::route(const RouteArgs& args) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (args.tokens == 0) return {};
  if (!engine::route_arguments_ok(spec_, args)) [[unlikely]]
    return Error(ErrorCode::invalid_argument, "RouteArgs: " + engine::route_argument_problem(spec_, args));
  if (cpu_) {
    cpu_->route(args);
    return {};
  }
  const std::size_t needed = plan::route_workspace_bytes(spec_, args.tokens);
  if (needed > 0 && (!args.workspace || args.workspace_bytes < needed)) [[unlikely]]
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("RouteArgs: workspace_bytes = {}: {} tokens need {} (Router::workspace_bytes)",
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
  plan::RouterKernels of{kernels[0], {}, {}};
  if (spec_.hidden_size != 0) {
    of.gemv = kernels[1];
    of.gemm = kernels[2];
  }
  return plan::run_route(context_, of, spec_, args);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

BlockAligner::Impl::Impl(std::shared_ptr<Engine::Impl> engine, const AlignSpec& spec)
    : engine_(engine),
      spec_(spec),
      context_(engine::context_of(*engine)),
      kernels_(engine, fmt::format("moe_align_block_size of {} experts", spec.num_experts),
               engine::align_kernels(spec)) {}

Result<std::shared_ptr<BlockAligner::Impl>> BlockAligner::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                                       const AlignSpec& spec) {
  if (Status status = engine->check_process(); !status) return std::move(status).error();
  if (Status status = spec.validate(); !status) return std::move(status).error();
  return std::make_shared<Impl>(std::move(engine), spec);
}

Result<PrepareReport> BlockAligner::Impl::prepare(const PrepareOptions& options) {
  if (Status status = engine_->check_process(); !status) return std::move(status).error();
  if (engine_->on_cpu()) return PrepareReport{};
  return kernels_.prepare(options);
}

Result<std::size_t> BlockAligner::Impl::workspace_bytes(std::int64_t rows) const {
  if (rows < 0)
    return Error(ErrorCode::invalid_argument,
                 fmt::format("workspace_bytes: rows = {}: must be 0 or more", rows));
  return engine_->on_cpu() ? std::size_t{0} : plan::align_workspace_bytes(spec_, rows);
}

Status BlockAligner::Impl::align(const AlignArgs& given) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (!engine::align_arguments_ok(spec_, given)) [[unlikely]]
    return Error(ErrorCode::invalid_argument, "AlignArgs: " + engine::align_argument_problem(spec_, given));
  AlignArgs args = given;
  args.sorted_size = engine::sorted_size_of(spec_, given);
  if (engine_->on_cpu()) {
    cpu::align_rows(spec_, args);
    return {};
  }
  const std::size_t needed = plan::align_workspace_bytes(spec_, args.rows);
  if (args.workspace_bytes < needed || (needed > 0 && !args.workspace)) [[unlikely]]
    return Error(
        ErrorCode::workspace_too_small,
        fmt::format("AlignArgs: workspace_bytes = {}: {} rows need {} (BlockAligner::workspace_bytes)",
                    args.workspace ? args.workspace_bytes : 0, args.rows, needed));
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  const plan::LoadedKernel* kernels = kernels_.loaded();
  if (!kernels) [[unlikely]] {
    auto found = kernels_.first_use(args.stream);
    if (!found) return std::move(found).error();
    kernels = *found;
  }
  return plan::run_align(context_, {kernels[0], kernels[1], kernels[2]}, spec_, args);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

Router::Router(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Router::Router(Router&&) noexcept = default;
Router& Router::operator=(Router&&) noexcept = default;
Router::~Router() = default;

const RouterSpec& Router::spec() const noexcept {
  static const RouterSpec none;
  return impl_ ? impl_->spec() : none;
}

Result<PrepareReport> Router::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "Router");
    return impl_->prepare(options);
  });
}

Result<std::size_t> Router::workspace_bytes(std::int64_t tokens) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "Router");
    return impl_->workspace_bytes(tokens);
  });
}

Status Router::route(const RouteArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("route", "Router"); });
  return impl_->route(args);
}

Status route_and_forward(Router& router, const RouteArgs& r, Layer& layer, const ForwardArgs& f) noexcept {
  return engine::guarded([&]() -> Status {
    const RouterSpec& spec = router.spec();
    const LayerSpec& of = layer.spec();
    const auto refuse = [](ErrorCode code, const std::string& why) {
      return Error(code, "route_and_forward: " + why);
    };
    if (spec.weight_on_input != of.weight_on_input)
      return refuse(ErrorCode::invalid_argument,
                    fmt::format("weight_on_input is {} of the router and {} of the layer; must be the same",
                                spec.weight_on_input, of.weight_on_input));
    const std::int64_t named = f.expert_map ? f.num_global_experts : of.num_experts();
    if (spec.num_experts != named || spec.top_k != of.top_k)
      return refuse(ErrorCode::invalid_argument,
                    fmt::format("the router picks {} of {} experts, the layer takes {} of {}", spec.top_k,
                                spec.num_experts, of.top_k, named));
    if (r.tokens != f.tokens || r.token_count != f.token_count || r.stream != f.stream)
      return refuse(ErrorCode::invalid_argument, "tokens, token_count and stream must be the same in both");
    if (f.tokens > 0 &&
        (f.id_type != IdType::int32 || f.topk_ids != r.topk_ids || f.topk_weights != r.topk_weights))
      return refuse(ErrorCode::invalid_argument,
                    "forward must read the int32 topk_ids and the topk_weights that route writes");
    if (Status status = router.route(r); !status) return status;
    return layer.forward(f);
  });
}

BlockAligner::BlockAligner(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
BlockAligner::BlockAligner(BlockAligner&&) noexcept = default;
BlockAligner& BlockAligner::operator=(BlockAligner&&) noexcept = default;
BlockAligner::~BlockAligner() = default;

const AlignSpec& BlockAligner::spec() const noexcept {
  static const AlignSpec none;
  return impl_ ? impl_->spec() : none;
}

Result<PrepareReport> BlockAligner::prepare(const PrepareOptions& options) {
  return engine::guarded([&]() -> Result<PrepareReport> {
    if (!impl_) return engine::moved_from("prepare", "BlockAligner");
    return impl_->prepare(options);
  });
}

Result<std::size_t> BlockAligner::workspace_bytes(std::int64_t rows) const {
  return engine::guarded([&]() -> Result<std::size_t> {
    if (!impl_) return engine::moved_from("workspace_bytes", "BlockAligner");
    return impl_->workspace_bytes(rows);
  });
}

Status BlockAligner::align(const AlignArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return engine::guarded([]() -> Status { return engine::moved_from("align", "BlockAligner"); });
  return impl_->align(args);
}

}  // namespace varmoe
