#include <fmt/format.h>

#include <array>
#include <new>
#include <string>

#include "cuda/device.hpp"
#include "engine/layer_impl.hpp"
#include "engine/operation.hpp"
#include "model/config_space.hpp"

/// Layer::up: forward's first half, into memory of the caller's.
namespace varmoe {
namespace engine {

/// What is wrong with the arguments; empty: nothing but, perhaps, the size of the workspace.
static std::string up_argument_problem(const LayerSpec& spec, const UpArgs& a, std::size_t workspace_needed) {
  if (a.tokens < 0 || a.tokens > INT32_MAX)
    return fmt::format("tokens = {}: must be from 0 to {}", a.tokens, INT32_MAX);
  if (a.id_type != IdType::int32 && a.id_type != IdType::int64)
    return fmt::format("id_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(a.id_type));
  const std::array<Pointer, 7> pointers{{{"x", a.x, 16, true},
                                         {"topk_ids", a.topk_ids, a.id_type == IdType::int64 ? 8u : 4u, true},
                                         {"h", a.h, 16, true},
                                         {"expert_offsets", a.expert_offsets, 4, true},
                                         {"slot_row", a.slot_row, 4, true},
                                         {"token_count", a.token_count, 4, false},
                                         {"workspace", a.workspace, 256, true}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  const std::int64_t widest = model::h_columns(spec.widest_of_all());
  const struct {
    const char* name;
    std::int64_t stride, least;
  } strides[] = {{"x_stride", a.x_stride, spec.hidden_size}, {"h_stride", a.h_stride, widest}};
  for (const auto& s : strides)
    if (s.stride != 0 && (s.stride < s.least || s.stride > kMaxStride || s.stride % kWidthMultiple != 0))
      return fmt::format("{} = {}: must be 0 ({}), or a multiple of {} from {} to {}", s.name, s.stride,
                         s.least, kWidthMultiple, s.least, kMaxStride);
  const Span x =
      rows_span("x", a.x, a.tokens, a.x_stride != 0 ? a.x_stride : spec.hidden_size, spec.hidden_size);
  const Span h =
      rows_span("h", a.h, a.tokens * spec.slots_per_token(), a.h_stride != 0 ? a.h_stride : widest, widest);
  const Span workspace{"workspace", a.workspace, workspace_needed};
  return overlap_problem({{h, x}, {workspace, h}, {workspace, x}});
}

}  // namespace engine

Status Layer::Impl::up(const UpArgs& args) noexcept try {
  if (!engine_->fork.same_process()) [[unlikely]]
    return engine_->fork.error();
  if (spec_.weight_on_input) [[unlikely]]
    return Error(ErrorCode::unsupported,
                 "up: the layer has weight_on_input, and UpArgs has no weights: use forward");
  if (args.tokens == 0) return {};
  const std::size_t needed = args.tokens > 0 ? needed_workspace(args.tokens) : 0;
  if (std::string problem = engine::up_argument_problem(spec_, args, needed); !problem.empty()) [[unlikely]]
    return Error(ErrorCode::invalid_argument, "UpArgs: " + problem);
  if (args.tokens > max_chunk_) [[unlikely]]
    return Error(
        ErrorCode::unsupported,
        fmt::format("up of {} tokens: LayerOptions::max_workspace_bytes allows {} at a time, and their "
                    "rows are sorted together",
                    args.tokens, max_chunk_));
  if (args.workspace_bytes < needed) [[unlikely]]
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("UpArgs: workspace_bytes = {}: {} tokens need {} (Layer::workspace_bytes)",
                             args.workspace_bytes, args.tokens, needed));
  const std::uint64_t table = table_.address();
  if (table == 0) [[unlikely]]
    return Error(ErrorCode::not_bound, "up before bind: the layer does not know where its weights lie");
  if (cpu_) return cpu_->up(args);

  const cuda::ContextScope current(*engine_->device);
  if (!current.ok()) [[unlikely]]
    return current.status();
  const plan::KernelSet* set = kernels_.serving(args.tokens);
  if (!set) [[unlikely]] {
    auto found = first_use(args.tokens, args.stream);
    if (!found) return std::move(found).error();
    set = *found;
  }
  plan::RunContext context = context_;
  context.expert_table = table;
  return plan::run_up(context, *set, args);
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "out of memory");
} catch (...) {
  return Error(ErrorCode::internal, "exception");
}

Status Layer::up(const UpArgs& args) noexcept {
  if (!impl_) [[unlikely]]
    return Error(ErrorCode::invalid_argument, "moved from");
  return impl_->up(args);
}

}  // namespace varmoe
