#include <fmt/format.h>

#include <string>
#include <utility>

#include "c_api/convert.hpp"
#include "c_api/handles.hpp"
#include "c_api/last_error.hpp"
#include "c_api/prepare.hpp"
#include "c_api/structs.hpp"

/// The building blocks.
namespace varmoe::c_api {
namespace {

template <class T>
T sized() {
  T value{};
  value.struct_size = sizeof value;
  return value;
}
template <class T>
T defaults() {
  return sized<T>();
}
template <>
varmoe_rows_by_expert defaults() {
  auto rows = sized<varmoe_rows_by_expert>();
  rows.multiple = 1;
  return rows;
}

template <>
varmoe_grouped_down_backward_args defaults() {
  auto args = sized<varmoe_grouped_down_backward_args>();
  args.weight_gradients = 1;
  return args;
}
template <>
varmoe_grouped_up_backward_args defaults() {
  auto args = sized<varmoe_grouped_up_backward_args>();
  args.weight_gradients = 1;
  return args;
}

template <class T>
int init(T* given, std::size_t size, const char* type) noexcept {
  if (!given) return fail_null(type);
  return guarded([&] {
    Status status = write_struct(given, size, type, defaults<T>());
    return status ? int{VARMOE_OK} : fail(status.error());
  });
}

Error bad_member(const char* type, const char* member, std::int64_t value, const char* choices) {
  return {ErrorCode::invalid_argument, fmt::format("{}: {} = {}: must be {}", type, member, value, choices)};
}

Result<BlocksOptions> convert(const varmoe_blocks_options* given) {
  constexpr const char* where = "varmoe_blocks_options";
  if (!given) return BlocksOptions{};
  auto read = read_struct(given, where, defaults<varmoe_blocks_options>());
  if (!read) return std::move(read).error();
  if (read->weighted_down != 0 && read->weighted_down != 1)
    return bad_member(where, "weighted_down", read->weighted_down, "0 or 1");
  if (read->training != 0 && read->training != 1)
    return bad_member(where, "training", read->training, "0 or 1");
  if (read->gradient_type < 0 || read->gradient_type > VARMOE_GRADIENT_FP32)
    return bad_member(where, "gradient_type", read->gradient_type, "one of VARMOE_GRADIENT_*");
  BlocksOptions o;
  o.training = read->training != 0;
  o.gradient_type = static_cast<GradientType>(read->gradient_type);
  o.max_sms = read->max_sms;
  o.weighted_down = read->weighted_down != 0;
  return o;
}

Result<RowsByExpert> convert(const varmoe_rows_by_expert* given) {
  constexpr const char* where = "varmoe_rows_by_expert";
  if (!given) return Error(ErrorCode::invalid_argument, "by_expert is null");
  auto read = read_struct(given, where, defaults<varmoe_rows_by_expert>());
  if (!read) return std::move(read).error();
  if (read->layout < VARMOE_ROWS_OFFSETS || read->layout > VARMOE_ROWS_ALIGNED_BLOCKS)
    return bad_member(where, "layout", read->layout, "one of VARMOE_ROWS_*");
  if (read->index_type != VARMOE_ID_INT32 && read->index_type != VARMOE_ID_INT64)
    return bad_member(where, "index_type", read->index_type, "one of VARMOE_ID_*");
  RowsByExpert r;
  r.layout = static_cast<RowLayout>(read->layout);
  r.rows = read->rows;
  r.expert_offsets = read->expert_offsets;
  r.expert_counts = read->expert_counts;
  r.index_type = static_cast<IdType>(read->index_type);
  r.multiple = read->multiple;
  r.sorted_token_ids = read->sorted_token_ids;
  r.expert_ids = read->expert_ids;
  r.num_tokens_post_pad = read->num_tokens_post_pad;
  r.routed_rows = read->routed_rows;
  return r;
}

Result<GatherArgs> convert(const varmoe_gather_args* given) {
  auto read = read_struct(given, "varmoe_gather_args", defaults<varmoe_gather_args>());
  if (!read) return std::move(read).error();
  if (read->map_to != VARMOE_ROW_MAP_SLOTS && read->map_to != VARMOE_ROW_MAP_TOKENS)
    return bad_member("varmoe_gather_args", "map_to", read->map_to, "one of VARMOE_ROW_MAP_*");
  GatherArgs a;
  a.tokens = read->tokens;
  a.x = read->x;
  a.x_stride = read->x_stride;
  a.rows = read->rows;
  a.row_map = read->row_map;
  a.map_to = static_cast<RowMap>(read->map_to);
  a.row_count = read->row_count;
  a.out = read->out;
  a.stream = read->stream;
  return a;
}

Result<SlotRowsArgs> convert(const varmoe_slot_rows_args* given) {
  auto read = read_struct(given, "varmoe_slot_rows_args", defaults<varmoe_slot_rows_args>());
  if (!read) return std::move(read).error();
  return SlotRowsArgs{read->tokens, read->rows, read->row_map, read->row_count, read->slot_row, read->stream};
}

Result<GroupedUpArgs> convert(const varmoe_grouped_up_args* given) {
  auto read = read_struct(given, "varmoe_grouped_up_args", defaults<varmoe_grouped_up_args>());
  if (!read) return std::move(read).error();
  auto rows = convert(read->by_expert);
  if (!rows) return std::move(rows).error();
  GroupedUpArgs a;
  a.by_expert = *rows;
  a.x = read->x;
  a.x_stride = read->x_stride;
  a.row_weights = read->row_weights;
  a.h = read->h;
  a.h_stride = read->h_stride;
  a.z = read->z;
  a.z_stride = read->z_stride;
  a.workspace = read->workspace;
  a.workspace_bytes = read->workspace_bytes;
  a.stream = read->stream;
  return a;
}

Result<GroupedDownArgs> convert(const varmoe_grouped_down_args* given) {
  auto read = read_struct(given, "varmoe_grouped_down_args", defaults<varmoe_grouped_down_args>());
  if (!read) return std::move(read).error();
  auto rows = convert(read->by_expert);
  if (!rows) return std::move(rows).error();
  GroupedDownArgs a;
  a.by_expert = *rows;
  a.h = read->h;
  a.h_stride = read->h_stride;
  a.row_weights = read->row_weights;
  a.y = read->y;
  a.workspace = read->workspace;
  a.workspace_bytes = read->workspace_bytes;
  a.stream = read->stream;
  return a;
}

Result<CombineArgs> convert(const varmoe_combine_args* given) {
  constexpr const char* where = "varmoe_combine_args";
  auto read = read_struct(given, where, defaults<varmoe_combine_args>());
  if (!read) return std::move(read).error();
  if (read->accumulate != 0 && read->accumulate != 1)
    return bad_member(where, "accumulate", read->accumulate, "0 or 1");
  if (read->absent_tokens != VARMOE_ABSENT_WRITE_ZEROS && read->absent_tokens != VARMOE_ABSENT_UNTOUCHED)
    return bad_member(where, "absent_tokens", read->absent_tokens, "one of VARMOE_ABSENT_*");
  CombineArgs a;
  a.tokens = read->tokens;
  a.rows = read->rows;
  a.y = read->y;
  a.slot_row = read->slot_row;
  a.topk_weights = read->topk_weights;
  a.shared_weights = read->shared_weights;
  a.out = read->out;
  a.out_stride = read->out_stride;
  a.accumulate = read->accumulate != 0;
  a.absent_tokens = static_cast<AbsentTokens>(read->absent_tokens);
  a.token_count = read->token_count;
  a.stream = read->stream;
  return a;
}

Result<CombineBackwardArgs> convert(const varmoe_combine_backward_args* given) {
  auto read = read_struct(given, "varmoe_combine_backward_args", defaults<varmoe_combine_backward_args>());
  if (!read) return std::move(read).error();
  CombineBackwardArgs a;
  a.tokens = read->tokens;
  a.rows = read->rows;
  a.dout = read->dout;
  a.dout_stride = read->dout_stride;
  a.slot_row = read->slot_row;
  a.topk_weights = read->topk_weights;
  a.shared_weights = read->shared_weights;
  a.y = read->y;
  a.dy = read->dy;
  a.dtopk_weights = read->dtopk_weights;
  a.dshared_weights = read->dshared_weights;
  a.token_count = read->token_count;
  a.stream = read->stream;
  return a;
}

/// Flags that both backward passes have.
template <class Read, class Args>
Status convert_gradients(const Read& read, const char* where, Args& args) {
  if (read.weight_gradients != 0 && read.weight_gradients != 1)
    return bad_member(where, "weight_gradients", read.weight_gradients, "0 or 1");
  if (read.accumulate_weight_gradients != 0 && read.accumulate_weight_gradients != 1)
    return bad_member(where, "accumulate_weight_gradients", read.accumulate_weight_gradients, "0 or 1");
  args.weight_gradients = read.weight_gradients != 0;
  args.accumulate_weight_gradients = read.accumulate_weight_gradients != 0;
  return {};
}

Result<GroupedDownBackwardArgs> convert(const varmoe_grouped_down_backward_args* given) {
  constexpr const char* where = "varmoe_grouped_down_backward_args";
  auto read = read_struct(given, where, defaults<varmoe_grouped_down_backward_args>());
  if (!read) return std::move(read).error();
  auto rows = convert(read->by_expert);
  if (!rows) return std::move(rows).error();
  GroupedDownBackwardArgs a;
  if (Status status = convert_gradients(*read, where, a); !status) return std::move(status).error();
  a.by_expert = *rows;
  a.dy = read->dy;
  a.dy_stride = read->dy_stride;
  a.h = read->h;
  a.h_stride = read->h_stride;
  a.z = read->z;
  a.z_stride = read->z_stride;
  a.row_weights = read->row_weights;
  a.dh = read->dh;
  a.dz = read->dz;
  a.drow_weights = read->drow_weights;
  a.workspace = read->workspace;
  a.workspace_bytes = read->workspace_bytes;
  a.stream = read->stream;
  return a;
}

Result<GroupedUpBackwardArgs> convert(const varmoe_grouped_up_backward_args* given) {
  constexpr const char* where = "varmoe_grouped_up_backward_args";
  auto read = read_struct(given, where, defaults<varmoe_grouped_up_backward_args>());
  if (!read) return std::move(read).error();
  auto rows = convert(read->by_expert);
  if (!rows) return std::move(rows).error();
  GroupedUpBackwardArgs a;
  if (Status status = convert_gradients(*read, where, a); !status) return std::move(status).error();
  a.by_expert = *rows;
  a.x = read->x;
  a.x_stride = read->x_stride;
  a.z = read->z;
  a.z_stride = read->z_stride;
  a.dh = read->dh;
  a.dh_stride = read->dh_stride;
  a.row_weights = read->row_weights;
  a.dz = read->dz;
  a.dx = read->dx;
  a.drow_weights = read->drow_weights;
  a.workspace = read->workspace;
  a.workspace_bytes = read->workspace_bytes;
  a.stream = read->stream;
  return a;
}

/// workspace_bytes and backward_workspace_bytes.
template <class Size>
int size_of(const varmoe_blocks* blocks, std::size_t* bytes, Size&& size) noexcept {
  if (!bytes) return fail_null("bytes");
  *bytes = 0;
  if (!blocks) return fail_null("blocks");
  return guarded([&] {
    auto needed = size(blocks->blocks);
    if (!needed) return fail(needed.error());
    *bytes = *needed;
    return int{VARMOE_OK};
  });
}

int code_of(const Status& status) {
  return status ? int{VARMOE_OK} : fail(status.error());
}

template <class Args, class Method>
int run(varmoe_blocks* blocks, const Args* args, Method method) noexcept {
  if (!blocks) return fail_null("blocks");
  if (!args) return fail_null("args");
  return guarded([&] {
    auto converted = convert(args);
    if (!converted) return fail(converted.error());
    return code_of((blocks->blocks.*method)(*converted));
  });
}

}  // namespace
}  // namespace varmoe::c_api

using namespace varmoe;
using namespace varmoe::c_api;

extern "C" {

int varmoe_blocks_options_init(varmoe_blocks_options* options, size_t struct_size) {
  return init(options, struct_size, "varmoe_blocks_options");
}
int varmoe_rows_by_expert_init(varmoe_rows_by_expert* rows, size_t struct_size) {
  return init(rows, struct_size, "varmoe_rows_by_expert");
}
int varmoe_gather_args_init(varmoe_gather_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_gather_args");
}
int varmoe_slot_rows_args_init(varmoe_slot_rows_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_slot_rows_args");
}
int varmoe_grouped_up_args_init(varmoe_grouped_up_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_grouped_up_args");
}
int varmoe_grouped_down_args_init(varmoe_grouped_down_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_grouped_down_args");
}
int varmoe_grouped_down_backward_args_init(varmoe_grouped_down_backward_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_grouped_down_backward_args");
}
int varmoe_grouped_up_backward_args_init(varmoe_grouped_up_backward_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_grouped_up_backward_args");
}
int varmoe_combine_args_init(varmoe_combine_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_combine_args");
}

int varmoe_combine_backward_args_init(varmoe_combine_backward_args* args, size_t struct_size) {
  return init(args, struct_size, "varmoe_combine_backward_args");
}

int varmoe_blocks_create(varmoe_engine* engine, const varmoe_layer_spec* spec,
                         const varmoe_blocks_options* options, varmoe_blocks** blocks) {
  if (!blocks) return fail_null("blocks");
  *blocks = nullptr;
  if (!engine) return fail_null("engine");
  return guarded([&] {
    auto cpp_spec = to_cpp(spec);
    if (!cpp_spec) return fail(cpp_spec.error());
    auto cpp_options = convert(options);
    if (!cpp_options) return fail(cpp_options.error());
    auto created = engine->engine.create_blocks(*cpp_spec, *cpp_options);
    if (!created) return fail(created.error());
    *blocks = new varmoe_blocks{*std::move(created)};
    return int{VARMOE_OK};
  });
}

void varmoe_blocks_destroy(varmoe_blocks* blocks) {
  delete blocks;
}

int varmoe_blocks_prepare(varmoe_blocks* blocks, const varmoe_prepare_options* options,
                          varmoe_report** report) {
  if (report) *report = nullptr;
  if (!blocks) return fail_null("blocks");
  return prepare(blocks->blocks, options, report);
}

int varmoe_blocks_bind(varmoe_blocks* blocks, const varmoe_weights* weights) {
  if (!blocks) return fail_null("blocks");
  return guarded([&] {
    auto converted = to_cpp(weights, blocks->blocks.spec());
    if (!converted) return fail(converted.error());
    return code_of(blocks->blocks.bind(*converted));
  });
}

int varmoe_blocks_bind_gradients(varmoe_blocks* blocks, const varmoe_weights* gradients) {
  if (!blocks) return fail_null("blocks");
  return guarded([&] {
    auto converted = to_cpp(gradients, blocks->blocks.spec(), blocks->blocks.options().gradient_type);
    if (!converted)
      return fail(converted.error().code(), "gradients: " + std::string(converted.error().message()));
    return code_of(blocks->blocks.bind_gradients(*converted));
  });
}

int varmoe_blocks_workspace_bytes(const varmoe_blocks* blocks, int64_t rows, size_t* bytes) {
  return size_of(blocks, bytes, [&](const Blocks& b) { return b.workspace_bytes(rows); });
}
int varmoe_blocks_backward_workspace_bytes(const varmoe_blocks* blocks, int64_t rows, size_t* bytes) {
  return size_of(blocks, bytes, [&](const Blocks& b) { return b.backward_workspace_bytes(rows); });
}

int varmoe_blocks_gather(varmoe_blocks* blocks, const varmoe_gather_args* args) {
  return run(blocks, args, &Blocks::gather);
}
int varmoe_blocks_slot_rows(varmoe_blocks* blocks, const varmoe_slot_rows_args* args) {
  return run(blocks, args, &Blocks::slot_rows);
}
int varmoe_blocks_up(varmoe_blocks* blocks, const varmoe_grouped_up_args* args) {
  return run(blocks, args, &Blocks::up);
}
int varmoe_blocks_down(varmoe_blocks* blocks, const varmoe_grouped_down_args* args) {
  return run(blocks, args, &Blocks::down);
}
int varmoe_blocks_combine(varmoe_blocks* blocks, const varmoe_combine_args* args) {
  return run(blocks, args, &Blocks::combine);
}
int varmoe_blocks_combine_backward(varmoe_blocks* blocks, const varmoe_combine_backward_args* args) {
  return run(blocks, args, &Blocks::combine_backward);
}
int varmoe_blocks_down_backward(varmoe_blocks* blocks, const varmoe_grouped_down_backward_args* args) {
  return run(blocks, args, &Blocks::down_backward);
}
int varmoe_blocks_up_backward(varmoe_blocks* blocks, const varmoe_grouped_up_backward_args* args) {
  return run(blocks, args, &Blocks::up_backward);
}
}
