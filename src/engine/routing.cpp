#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <new>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "emit/routing.hpp"
#include "engine/routing_impl.hpp"

/// Router and BlockAligner. As in Layer::forward, nothing on the prepared path allocates, locks or logs.
namespace varmoe {
namespace engine {
namespace {

constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;
/// Tokens, rows and places are counted in 32 bits on the device.
constexpr std::int64_t kMaxCount = INT32_MAX;

bool aligned(const void* p, std::uintptr_t alignment) noexcept {
  return (std::bit_cast<std::uintptr_t>(p) & (alignment - 1)) == 0;
}

struct Pointer {
  const char* name;
  const void* pointer;
  std::uintptr_t alignment;
  bool required;
};

template <std::size_t N>
bool pointers_ok(const std::array<Pointer, N>& pointers) noexcept {
  return std::all_of(pointers.begin(), pointers.end(), [](const Pointer& p) {
    return p.pointer ? aligned(p.pointer, p.alignment) : !p.required;
  });
}

template <std::size_t N>
std::string pointer_problem(const std::array<Pointer, N>& pointers) {
  for (const Pointer& p : pointers) {
    if (!p.pointer && p.required) return fmt::format("{} is null", p.name);
    if (!aligned(p.pointer, p.alignment))
      return fmt::format("{} = {}: must be {}-byte aligned", p.name, fmt::ptr(p.pointer), p.alignment);
  }
  return {};
}

std::array<Pointer, 6> pointers_of(const RouterSpec& spec, const RouteArgs& a) noexcept {
  const std::uintptr_t element = spec.logit_type == LogitType::fp32 ? 4 : 2;
  const void* bias = spec.correction_bias ? a.correction_bias : nullptr;
  return {{{"logits", a.logits, element, true},
           {"correction_bias", bias, 4, spec.correction_bias},
           {"topk_ids", a.topk_ids, 4, true},
           {"topk_weights", a.topk_weights, 4, true},
           {"scores", a.scores, 4, false},
           {"token_count", a.token_count, 4, false}}};
}

std::int64_t stride_of(const RouterSpec& spec, const RouteArgs& a) noexcept {
  return a.logit_stride != 0 ? a.logit_stride : spec.num_experts;
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
         pointers_ok(pointers_of(spec, a));
}

std::string route_argument_problem(const RouterSpec& spec, const RouteArgs& a) {
  if (a.tokens < 0 || a.tokens > kMaxCount)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, kMaxCount);
  if (const std::int64_t stride = stride_of(spec, a); stride < spec.num_experts || stride > kMaxStride)
    return fmt::format("logit_stride = {}: must be 0 (the number of experts), or from {} to {}", stride,
                       spec.num_experts, kMaxStride);
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

plan::RoutingContext context_of(const Engine::Impl& engine) {
  plan::RoutingContext context;
  if (engine.on_cpu()) return context;
  context.driver = &engine.device->driver();
  // Drivers before CUDA 12.3 cannot capture such launches.
  context.dependent_launch =
      engine.device->attributes().compute_major >= 9 && engine.device->driver().version() >= 12030;
  return context;
}

KernelGroup::Emit router_kernels(const RouterSpec& spec) {
  return [spec]() -> Result<std::vector<emit::EmittedKernel>> {
    auto kernel = emit::emit_router(spec);
    if (!kernel) return std::move(kernel).error();
    std::vector<emit::EmittedKernel> all;
    all.push_back(*std::move(kernel));
    return all;
  };
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

/// Runs `f`; what it throws becomes an error.
template <class F>
auto guarded(F&& f) noexcept -> decltype(f()) try {
  return f();
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (const std::exception& e) {
  return Error(ErrorCode::internal, e.what());
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

Error moved_from(const char* call, const char* what) {
  return {ErrorCode::invalid_argument, fmt::format("{} on a {} that was moved from", call, what)};
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
  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  const plan::LoadedKernel* kernel = kernels_.loaded();
  if (!kernel) [[unlikely]] {
    auto found = kernels_.first_use(args.stream);
    if (!found) return std::move(found).error();
    kernel = *found;
  }
  return plan::run_route(context_, *kernel, spec_, args);
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
