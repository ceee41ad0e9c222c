#include <fmt/format.h>

#include <bit>
#include <new>
#include <utility>

#include "cuda/device.hpp"
#include "engine/layer_impl.hpp"
#include "engine/operation.hpp"

/// Layer::forward: what a server calls for every layer of every step. On the prepared path nothing here
/// allocates, locks, logs or asks the system anything.
namespace varmoe {
namespace engine {
namespace {

std::int64_t stride_of(std::int64_t given, const LayerSpec& spec) noexcept {
  return given != 0 ? given : spec.hidden_size;
}

bool stride_ok(std::int64_t stride, const LayerSpec& spec) noexcept {
  return stride >= spec.hidden_size && stride % kWidthMultiple == 0 && stride <= kMaxStride;
}

/// Tokens are counted in 32 bits on the device, chunks or not.
constexpr std::int64_t kMaxTokens = INT32_MAX;

/// Global experts are counted in 32 bits on the device.
bool global_experts_ok(const ForwardArgs& args) noexcept {
  return !args.expert_map || (args.num_global_experts >= 1 && args.num_global_experts <= INT32_MAX);
}
bool absent_tokens_ok(const ForwardArgs& args) noexcept {
  return args.absent_tokens == AbsentTokens::write_zeros || args.absent_tokens == AbsentTokens::untouched;
}

std::uintptr_t id_bytes(const ForwardArgs& args) noexcept {
  return args.id_type == IdType::int64 ? 8 : 4;
}

}  // namespace

bool forward_arguments_ok(const LayerSpec& spec, const ForwardArgs& a,
                          std::size_t workspace_needed) noexcept {
  const std::int64_t x_stride = stride_of(a.x_stride, spec), out_stride = stride_of(a.out_stride, spec);
  if (a.tokens < 1 || a.tokens > kMaxTokens || (a.id_type != IdType::int32 && a.id_type != IdType::int64))
    return false;
  if (!a.x || !a.out || !a.topk_ids || !a.topk_weights || !a.workspace) return false;
  if (!aligned(a.x, 16) || !aligned(a.out, 16) || !aligned(a.topk_ids, id_bytes(a)) ||
      !aligned(a.topk_weights, 4) || !aligned(a.token_count, 4) || !aligned(a.workspace, 256))
    return false;
  if (!aligned(a.expert_map, 4) || !global_experts_ok(a) || !absent_tokens_ok(a)) return false;
  if (!stride_ok(x_stride, spec) || !stride_ok(out_stride, spec)) return false;
  if (a.workspace_bytes < workspace_needed) return false;
  const Span x = rows_span("x", a.x, a.tokens, x_stride, spec.hidden_size),
             out = rows_span("out", a.out, a.tokens, out_stride, spec.hidden_size),
             workspace{"workspace", a.workspace, workspace_needed};
  return !out.overlaps(x) && !workspace.overlaps(out) && !workspace.overlaps(x);
}

std::string forward_argument_problem(const LayerSpec& spec, const ForwardArgs& a,
                                     std::size_t workspace_needed) {
  if (a.tokens < 0) return fmt::format("tokens = {}: must be 0 or more", a.tokens);
  if (a.tokens > kMaxTokens)
    return fmt::format("tokens = {}: at most {} go in one call", a.tokens, kMaxTokens);
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  const struct {
    const char* name;
    const void* pointer;
    std::uintptr_t alignment;
  } pointers[] = {{"x", a.x, 16},
                  {"topk_ids", a.topk_ids, id_bytes(a)},
                  {"topk_weights", a.topk_weights, 4},
                  {"out", a.out, 16},
                  {"workspace", a.workspace, 256}};
  for (const auto& p : pointers) {
    if (!p.pointer) return fmt::format("{} is null", p.name);
    if (!aligned(p.pointer, p.alignment))
      return fmt::format("{} = {}: must be {}-byte aligned", p.name, fmt::ptr(p.pointer), p.alignment);
  }
  if (!aligned(a.token_count, 4))
    return fmt::format("token_count = {}: must be 4-byte aligned",
                       fmt::ptr(static_cast<const void*>(a.token_count)));
  if (!aligned(a.expert_map, 4))
    return fmt::format("expert_map = {}: must be 4-byte aligned",
                       fmt::ptr(static_cast<const void*>(a.expert_map)));
  if (!global_experts_ok(a))
    return fmt::format("num_global_experts = {}: must be from 1 to {} with an expert_map",
                       a.num_global_experts, INT32_MAX);
  if (!absent_tokens_ok(a))
    return fmt::format("absent_tokens = {}: must be write_zeros (0) or untouched (1)",
                       static_cast<int>(a.absent_tokens));
  const std::int64_t x_stride = stride_of(a.x_stride, spec), out_stride = stride_of(a.out_stride, spec);
  const struct {
    const char* name;
    std::int64_t stride;
  } strides[] = {{"x_stride", x_stride}, {"out_stride", out_stride}};
  for (const auto& s : strides)
    if (!stride_ok(s.stride, spec))
      return fmt::format("{} = {}: must be 0 (the hidden size), or a multiple of {} from {} to {}", s.name,
                         s.stride, kWidthMultiple, spec.hidden_size, kMaxStride);
  const Span x = rows_span("x", a.x, a.tokens, x_stride, spec.hidden_size),
             out = rows_span("out", a.out, a.tokens, out_stride, spec.hidden_size),
             workspace{"workspace", a.workspace, workspace_needed};
  return overlap_problem({{out, x}, {workspace, out}, {workspace, x}});
}

}  // namespace engine

namespace {

Error argument_error(const LayerSpec& spec, const ForwardArgs& args, std::size_t needed) {
  std::string problem = engine::forward_argument_problem(spec, args, needed);
  if (!problem.empty()) return {ErrorCode::invalid_argument, "ForwardArgs: " + problem};
  return {ErrorCode::workspace_too_small,
          fmt::format("ForwardArgs: workspace_bytes = {}: {} tokens need {} (Layer::workspace_bytes)",
                      args.workspace_bytes, args.tokens, needed)};
}

}  // namespace

Status Layer::Impl::forward(const ForwardArgs& args) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (args.tokens == 0) return {};
  if (args.tokens < 0) [[unlikely]]
    return argument_error(spec_, args, 0);
  const std::size_t needed = needed_workspace(args.tokens);
  if (!engine::forward_arguments_ok(spec_, args, needed)) [[unlikely]]
    return argument_error(spec_, args, needed);
  const std::uint64_t table = table_.address();
  if (table == 0) [[unlikely]]
    return Error(ErrorCode::not_bound, "forward before bind: the layer does not know where its weights lie");
  if (cpu_) {
    engine_->forwards.fetch_add(1, std::memory_order_relaxed);
    return cpu_->forward(args);
  }

  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  const std::int64_t part = chunk(args.tokens);
  const plan::KernelSet* set = kernels_.serving(part);
  if (!set) [[unlikely]] {
    auto found = first_use(part, args.stream);
    if (!found) return std::move(found).error();
    set = *found;
  }
  plan::RunContext context = context_;
  context.expert_table = table;
  engine_->forwards.fetch_add(1, std::memory_order_relaxed);
  return plan::run(context, *set, args, part);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

Result<const plan::KernelSet*> Layer::Impl::first_use(std::int64_t tokens, void* stream) {
  return kernels_.first_use(*engine_, tokens, stream, "forward prepared " + name(), name(),
                            [&](std::int64_t bucket) -> Result<std::vector<KernelReport>> {
                              const std::int64_t buckets[] = {bucket};
                              auto build = engine::build_layer(spec_, buckets, *engine_->chooser,
                                                               *engine_->builder, engine_->hooks({}));
                              if (!build) return std::move(build).error();
                              engine_->count(*build);
                              if (!build->complete()) return engine::build_error(*build);
                              if (Status status = publish(*build, false); !status)
                                return std::move(status).error();
                              return std::move(build->kernels);
                            });
}

}  // namespace varmoe
