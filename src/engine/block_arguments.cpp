#include "engine/block_arguments.hpp"

#include <fmt/format.h>

#include <initializer_list>
#include <utility>

#include "engine/operation.hpp"
#include "model/config_space.hpp"

namespace varmoe::engine {
namespace {

std::string count_problem(const char* name, std::int64_t count, std::int64_t most) {
  if (count >= 0 && count <= most) return {};
  return fmt::format("{} = {}: must be from 0 to {}", name, count, most);
}

std::string stride_problem(const char* name, std::int64_t stride, std::int64_t least, const char* standard) {
  if (stride == 0 || (stride >= least && stride <= kMaxStride && stride % kWidthMultiple == 0)) return {};
  return fmt::format("{} = {}: must be 0 ({}), or a multiple of {} from {} to {}", name, stride, standard,
                     kWidthMultiple, least, kMaxStride);
}

std::string tokens_problem(const LayerSpec& spec, std::int64_t tokens) {
  return count_problem("tokens", tokens, kMaxBlockRows / spec.slots_per_token());
}

/// A pointer that this layout names must be there, another must not.
std::string named_only(const RowsByExpert& r) {
  static constexpr const char* kNames[] = {"offsets", "counts", "batched", "aligned_blocks"};
  const char* layout = kNames[static_cast<int>(r.layout)];
  const std::uintptr_t index = r.index_type == IdType::int64 ? 8 : 4;
  const bool aligned_blocks = r.layout == RowLayout::aligned_blocks;
  const struct {
    const char* name;
    const void* pointer;
    std::uintptr_t alignment;
    bool required, allowed;
  } pointers[] = {{"expert_offsets", r.expert_offsets, index, r.layout == RowLayout::offsets,
                   r.layout == RowLayout::offsets},
                  {"expert_counts", r.expert_counts, index,
                   r.layout == RowLayout::counts || r.layout == RowLayout::batched, !aligned_blocks},
                  {"sorted_token_ids", r.sorted_token_ids, 4, aligned_blocks && r.rows > 0, aligned_blocks},
                  {"expert_ids", r.expert_ids, 4, aligned_blocks && r.rows > 0, aligned_blocks},
                  {"num_tokens_post_pad", r.num_tokens_post_pad, 4, aligned_blocks, aligned_blocks}};
  for (const auto& p : pointers) {
    if (p.required && !p.pointer) return fmt::format("{} is null: layout {} is made of it", p.name, layout);
    if (p.pointer && !p.allowed)
      return fmt::format("{} is given: layout {} has none; must be null", p.name, layout);
    if (!aligned(p.pointer, p.alignment))
      return fmt::format("{} = {}: must be {}-byte aligned", p.name, fmt::ptr(p.pointer), p.alignment);
  }
  return {};
}

std::string rows_problem(const LayerSpec& spec, const RowsByExpert& r) {
  if (r.layout > RowLayout::aligned_blocks)
    return fmt::format("layout = {}: must be offsets (0), counts (1), batched (2) or aligned_blocks (3)",
                       static_cast<int>(r.layout));
  if (r.index_type != IdType::int32 && r.index_type != IdType::int64)
    return fmt::format("index_type = {}: must be int32 (0) or int64 (1)", static_cast<int>(r.index_type));
  if (std::string problem = count_problem("rows", r.rows, kMaxBlockRows); !problem.empty()) return problem;
  if (std::string problem = named_only(r); !problem.empty()) return problem;
  if (r.layout == RowLayout::batched) {
    if (r.multiple < 0 || r.multiple > kMaxBlockRows || r.multiple * spec.all_experts() != r.rows)
      return fmt::format("multiple = {}: rows = {} of {} experts in a batch are {} of each", r.multiple,
                         r.rows, spec.all_experts(), r.rows / spec.all_experts());
  } else if (r.layout != RowLayout::offsets && (r.multiple < 1 || r.multiple > kMaxRowMultiple)) {
    return fmt::format("multiple = {}: must be from 1 to {}", r.multiple, kMaxRowMultiple);
  }
  if (r.layout == RowLayout::aligned_blocks) return count_problem("routed_rows", r.routed_rows, INT32_MAX);
  return {};
}

std::string row_weights_problem(const float* weights, bool wanted, const char* wanted_by) {
  if (wanted && !weights) return fmt::format("row_weights is null: must be given, by {}", wanted_by);
  if (!wanted && weights) return fmt::format("row_weights is given: must be null without {}", wanted_by);
  if (!aligned(weights, 4)) return fmt::format("row_weights = {}: must be 4-byte aligned", fmt::ptr(weights));
  return {};
}

/// Weights of a combine.
std::string slot_weights_problem(const LayerSpec& spec, const float* topk, const float* shared) {
  if (spec.weight_on_input && topk)
    return "topk_weights is given: must be null with the layer's weight_on_input, whose rows have their "
           "weights";
  if (!spec.shared_gate && shared)
    return "shared_weights is given: must be null without the layer's shared_gate";
  if (spec.shared_gate && !spec.weight_on_input && (topk == nullptr) != (shared == nullptr))
    return "topk_weights and shared_weights: must both be given, or both be null, with the layer's "
           "shared_gate";
  return {};
}

/// The first sentence that there is.
std::string first_of(std::initializer_list<std::string> problems) {
  for (const std::string& problem : problems)
    if (!problem.empty()) return problem;
  return {};
}

std::int64_t stride_of(std::int64_t given, std::int64_t standard) {
  return given != 0 ? given : standard;
}

constexpr const char* kWidest = "the widest expert rounded up to 64";

std::int64_t z_width(const LayerSpec& spec) {
  return model::h_columns(spec.widest_of_all()) * (spec.gated() ? 2 : 1);
}
std::string z_stride_problem(const LayerSpec& spec, std::int64_t stride) {
  return stride_problem("z_stride", stride, z_width(spec),
                        spec.gated() ? "twice the widest expert rounded up to 64" : kWidest);
}
Span z_span(const char* name, const LayerSpec& spec, const void* at, std::int64_t rows, std::int64_t stride) {
  return rows_span(name, at, rows, stride_of(stride, z_width(spec)), z_width(spec));
}

/// Outputs, of which none may overlap another or an input.
std::string outputs_problem(std::initializer_list<Span> outputs, std::initializer_list<Span> inputs) {
  for (const Span* one = outputs.begin(); one != outputs.end(); ++one) {
    for (const Span& input : inputs)
      if (one->overlaps(input)) return fmt::format("{} overlaps {}", one->name, input.name);
    for (const Span* other = one + 1; other != outputs.end(); ++other)
      if (one->overlaps(*other)) return fmt::format("{} overlaps {}", one->name, other->name);
  }
  return {};
}

constexpr const char* kNotTraining = "BlocksOptions::training is false: these blocks have no backward pass";

}  // namespace

std::string gather_problem(const LayerSpec& spec, const GatherArgs& a) {
  if (std::string problem =
          first_of({tokens_problem(spec, a.tokens), count_problem("rows", a.rows, kMaxBlockRows),
                    stride_problem("x_stride", a.x_stride, spec.hidden_size, "the hidden size")});
      !problem.empty())
    return problem;
  if (a.map_to != RowMap::slots && a.map_to != RowMap::tokens)
    return fmt::format("map_to = {}: must be slots (0) or tokens (1)", static_cast<int>(a.map_to));
  const bool rows = a.rows > 0;
  const std::array<Pointer, 4> pointers{{{"x", a.x, 16, rows && a.tokens > 0},
                                         {"row_map", a.row_map, 4, rows},
                                         {"row_count", a.row_count, 4, false},
                                         {"out", a.out, 16, rows}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  return overlap_problem(
      {{rows_span("out", a.out, a.rows, spec.hidden_size, spec.hidden_size),
        rows_span("x", a.x, a.tokens, stride_of(a.x_stride, spec.hidden_size), spec.hidden_size)}});
}

std::string slot_rows_problem(const LayerSpec& spec, const SlotRowsArgs& a) {
  if (std::string problem =
          first_of({tokens_problem(spec, a.tokens), count_problem("rows", a.rows, kMaxBlockRows)});
      !problem.empty())
    return problem;
  const std::array<Pointer, 3> pointers{{{"row_map", a.row_map, 4, a.rows > 0},
                                         {"row_count", a.row_count, 4, false},
                                         {"slot_row", a.slot_row, 4, a.tokens > 0}}};
  return pointer_problem(pointers);
}

std::string up_problem(const LayerSpec& spec, const BlocksOptions& options, const GroupedUpArgs& a,
                       std::size_t workspace_needed) {
  const std::int64_t widest = model::h_columns(spec.widest_of_all()), rows = a.by_expert.rows;
  if (std::string problem = first_of(
          {rows_problem(spec, a.by_expert),
           stride_problem("x_stride", a.x_stride, spec.hidden_size, "the hidden size"),
           stride_problem("h_stride", a.h_stride, widest, kWidest), z_stride_problem(spec, a.z_stride),
           row_weights_problem(a.row_weights, spec.weight_on_input, "the layer's weight_on_input")});
      !problem.empty())
    return problem;
  if (a.z && !options.training) return "z is given: must be null without BlocksOptions::training";
  const std::array<Pointer, 4> pointers{{{"x", a.x, 16, rows > 0},
                                         {"h", a.h, 16, rows > 0},
                                         {"z", a.z, 16, false},
                                         {"workspace", a.workspace, 256, rows > 0}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  const Span x = rows_span("x", a.x, rows, stride_of(a.x_stride, spec.hidden_size), spec.hidden_size);
  const Span h = rows_span("h", a.h, rows, stride_of(a.h_stride, widest), widest);
  const Span z = z_span("z", spec, a.z, rows, a.z_stride);
  const Span workspace{"workspace", a.workspace, workspace_needed};
  return overlap_problem({{h, x}, {z, x}, {z, h}, {workspace, h}, {workspace, x}, {workspace, z}});
}

std::string down_problem(const LayerSpec& spec, const BlocksOptions& options, const GroupedDownArgs& a,
                         std::size_t workspace_needed) {
  const std::int64_t widest = spec.widest_of_all(), rows = a.by_expert.rows;
  if (std::string problem = first_of(
          {rows_problem(spec, a.by_expert),
           stride_problem("h_stride", a.h_stride, widest, "the widest expert rounded up to 64"),
           row_weights_problem(a.row_weights, options.weighted_down, "BlocksOptions::weighted_down")});
      !problem.empty())
    return problem;
  const std::array<Pointer, 3> pointers{
      {{"h", a.h, 16, rows > 0}, {"y", a.y, 16, rows > 0}, {"workspace", a.workspace, 256, rows > 0}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  const Span h = rows_span("h", a.h, rows, stride_of(a.h_stride, model::h_columns(widest)), widest);
  const Span y = rows_span("y", a.y, rows, spec.hidden_size, spec.hidden_size);
  const Span workspace{"workspace", a.workspace, workspace_needed};
  return overlap_problem({{y, h}, {workspace, y}, {workspace, h}});
}

std::string down_backward_problem(const LayerSpec& spec, const BlocksOptions& options,
                                  const GroupedDownBackwardArgs& a, std::size_t workspace_needed) {
  if (!options.training) return kNotTraining;
  const std::int64_t widest = model::h_columns(spec.widest_of_all()), rows = a.by_expert.rows;
  if (std::string problem = first_of(
          {rows_problem(spec, a.by_expert),
           stride_problem("dy_stride", a.dy_stride, spec.hidden_size, "the hidden size"),
           stride_problem("h_stride", a.h_stride, widest, kWidest), z_stride_problem(spec, a.z_stride),
           rows > 0
               ? row_weights_problem(a.row_weights, options.weighted_down, "BlocksOptions::weighted_down")
               : std::string()});
      !problem.empty())
    return problem;
  if (a.z && a.h) return "h and z are given: must be one of them, z being what h is made of";
  if (a.z && a.dh) return "dh is given: must be null with z, of which dz is made";
  if (!a.z && a.dz) return "dz is given: must be null without z";
  if (a.drow_weights && !a.row_weights && rows > 0)
    return "drow_weights is given: must be null without row_weights";
  const bool reads_h = !a.z && (a.row_weights || a.weight_gradients);
  const std::array<Pointer, 8> pointers{{{"dy", a.dy, 16, rows > 0},
                                         {"h", a.h, 16, rows > 0 && reads_h},
                                         {"z", a.z, 16, false},
                                         {"row_weights", a.row_weights, 4, false},
                                         {"dh", a.dh, 16, rows > 0 && !a.z && a.row_weights},
                                         {"dz", a.dz, 16, rows > 0 && a.z},
                                         {"drow_weights", a.drow_weights, 4, false},
                                         {"workspace", a.workspace, 256, rows > 0}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  const auto bytes = static_cast<std::uint64_t>(rows) * 4;
  const std::int64_t h_stride = stride_of(a.h_stride, widest);
  return outputs_problem(
      {rows_span("dh", a.dh, rows, h_stride, widest),
       z_span("dz", spec, a.dz, rows, a.z_stride),
       {"drow_weights", a.drow_weights, bytes},
       {"workspace", a.workspace, workspace_needed}},
      {rows_span("dy", a.dy, rows, stride_of(a.dy_stride, spec.hidden_size), spec.hidden_size),
       rows_span("h", a.h, rows, h_stride, widest),
       z_span("z", spec, a.z, rows, a.z_stride),
       {"row_weights", a.row_weights, bytes}});
}

std::string up_backward_problem(const LayerSpec& spec, const BlocksOptions& options,
                                const GroupedUpBackwardArgs& a, std::size_t workspace_needed) {
  if (!options.training) return kNotTraining;
  const std::int64_t widest = model::h_columns(spec.widest_of_all()), rows = a.by_expert.rows;
  if (std::string problem = first_of(
          {rows_problem(spec, a.by_expert),
           stride_problem("x_stride", a.x_stride, spec.hidden_size, "the hidden size"),
           stride_problem("dh_stride", a.dh_stride, widest, kWidest), z_stride_problem(spec, a.z_stride),
           rows > 0 ? row_weights_problem(a.row_weights, spec.weight_on_input, "the layer's weight_on_input")
                    : std::string()});
      !problem.empty())
    return problem;
  if (a.z && !a.dh && rows > 0) return "z is given: must be null without dh, as dz is made of both";
  if (a.drow_weights && !a.row_weights && rows > 0)
    return "drow_weights is given: must be null without row_weights";
  if (a.drow_weights && !a.dx && rows > 0) return "dx is null: must be given with drow_weights";
  const std::array<Pointer, 8> pointers{{{"x", a.x, 16, rows > 0 && (a.weight_gradients || a.drow_weights)},
                                         {"z", a.z, 16, rows > 0 && a.dh},
                                         {"dh", a.dh, 16, false},
                                         {"row_weights", a.row_weights, 4, false},
                                         {"dz", a.dz, 16, rows > 0},
                                         {"dx", a.dx, 16, false},
                                         {"drow_weights", a.drow_weights, 4, false},
                                         {"workspace", a.workspace, 256, rows > 0}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  const auto bytes = static_cast<std::uint64_t>(rows) * 4;
  return outputs_problem(
      {z_span("dz", spec, a.dz, rows, a.z_stride),
       rows_span("dx", a.dx, rows, spec.hidden_size, spec.hidden_size),
       {"drow_weights", a.drow_weights, bytes},
       {"workspace", a.workspace, workspace_needed}},
      {rows_span("x", a.x, rows, stride_of(a.x_stride, spec.hidden_size), spec.hidden_size),
       z_span("z", spec, a.z, rows, a.z_stride),
       rows_span("dh", a.dh, rows, stride_of(a.dh_stride, widest), widest),
       {"row_weights", a.row_weights, bytes}});
}

std::string combine_problem(const LayerSpec& spec, const CombineArgs& a) {
  if (std::string problem =
          first_of({tokens_problem(spec, a.tokens), count_problem("rows", a.rows, kMaxBlockRows),
                    stride_problem("out_stride", a.out_stride, spec.hidden_size, "the hidden size")});
      !problem.empty())
    return problem;
  if (a.absent_tokens != AbsentTokens::write_zeros && a.absent_tokens != AbsentTokens::untouched)
    return fmt::format("absent_tokens = {}: must be write_zeros (0) or untouched (1)",
                       static_cast<int>(a.absent_tokens));
  const bool tokens = a.tokens > 0;
  const std::array<Pointer, 6> pointers{{{"y", a.y, 16, tokens && a.rows > 0},
                                         {"slot_row", a.slot_row, 4, tokens},
                                         {"topk_weights", a.topk_weights, 4, false},
                                         {"shared_weights", a.shared_weights, 4, false},
                                         {"out", a.out, 16, tokens},
                                         {"token_count", a.token_count, 4, false}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  if (std::string problem = slot_weights_problem(spec, a.topk_weights, a.shared_weights); !problem.empty())
    return problem;
  return overlap_problem(
      {{rows_span("out", a.out, a.tokens, stride_of(a.out_stride, spec.hidden_size), spec.hidden_size),
        rows_span("y", a.y, a.rows, spec.hidden_size, spec.hidden_size)}});
}

std::string combine_backward_problem(const LayerSpec& spec, const CombineBackwardArgs& a) {
  if (std::string problem =
          first_of({tokens_problem(spec, a.tokens), count_problem("rows", a.rows, kMaxBlockRows),
                    stride_problem("dout_stride", a.dout_stride, spec.hidden_size, "the hidden size"),
                    slot_weights_problem(spec, a.topk_weights, a.shared_weights)});
      !problem.empty())
    return problem;
  const bool tokens = a.tokens > 0, weights = a.dtopk_weights != nullptr || a.dshared_weights != nullptr;
  const std::array<Pointer, 9> pointers{{{"dout", a.dout, 16, tokens},
                                         {"slot_row", a.slot_row, 4, tokens},
                                         {"y", a.y, 16, tokens && weights && a.rows > 0},
                                         {"topk_weights", a.topk_weights, 4, false},
                                         {"shared_weights", a.shared_weights, 4, false},
                                         {"dy", a.dy, 16, false},
                                         {"dtopk_weights", a.dtopk_weights, 4, false},
                                         {"dshared_weights", a.dshared_weights, 4, false},
                                         {"token_count", a.token_count, 4, false}}};
  if (std::string problem = pointer_problem(pointers); !problem.empty()) return problem;
  if (a.dshared_weights && spec.num_shared() == 0)
    return "dshared_weights is given: must be null of a layer without shared experts";
  const Span dout =
      rows_span("dout", a.dout, a.tokens, stride_of(a.dout_stride, spec.hidden_size), spec.hidden_size);
  const Span dy = rows_span("dy", a.dy, a.dy ? a.rows : 0, spec.hidden_size, spec.hidden_size);
  const Span y = rows_span("y", a.y, a.y ? a.rows : 0, spec.hidden_size, spec.hidden_size);
  return overlap_problem({{dy, dout}, {dy, y}});
}

}  // namespace varmoe::engine
