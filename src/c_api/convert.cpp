#include "c_api/convert.hpp"

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "c_api/structs.hpp"

namespace varmoe::c_api {
namespace {

Error bad_member(const char* where, const char* member, long long value, const char* allowed) {
  return {ErrorCode::invalid_argument, fmt::format("{}: {} = {}: must be {}", where, member, value, allowed)};
}

Error null_member(const char* where, const char* member) {
  return {ErrorCode::invalid_argument, fmt::format("{}: {} is null", where, member)};
}

std::string text(const char* given) {
  return given ? std::string(given) : std::string();
}

static_assert(VARMOE_E_INTERNAL == static_cast<int>(ErrorCode::internal));
static_assert(VARMOE_E_NOT_PREPARED == static_cast<int>(ErrorCode::not_prepared));
static_assert(VARMOE_E_CANCELLED == static_cast<int>(ErrorCode::cancelled));
static_assert(VARMOE_DTYPE_FP16 == static_cast<int>(DType::fp16));
static_assert(VARMOE_ACTIVATION_SWIGLU_OAI == static_cast<int>(Activation::swiglu_oai));
static_assert(VARMOE_ACTIVATION_IDENTITY == static_cast<int>(Activation::identity));
static_assert(VARMOE_LAYOUT_KN == static_cast<int>(WeightLayout::kn));
static_assert(VARMOE_GATE_INTERLEAVED == static_cast<int>(GateOrder::interleaved));
static_assert(VARMOE_ID_INT64 == static_cast<int>(IdType::int64));
static_assert(VARMOE_ABSENT_UNTOUCHED == static_cast<int>(AbsentTokens::untouched));
static_assert(VARMOE_CACHE_OFF == static_cast<int>(CacheMode::off));
static_assert(VARMOE_JIT_CACHED_ONLY == static_cast<int>(JitMode::cached_only));
static_assert(VARMOE_TUNE_ONLINE == static_cast<int>(TuneMode::online));
static_assert(VARMOE_LOG_ERROR == static_cast<int>(LogLevel::error));
static_assert(VARMOE_CONFIG_PREDICTED == static_cast<int>(ConfigSource::predicted));
static_assert(VARMOE_CPU_DEVICE == kCpuDevice);
static_assert(VARMOE_LOGITS_FP16 == static_cast<int>(LogitType::fp16));
static_assert(VARMOE_SCORING_SIGMOID == static_cast<int>(Scoring::sigmoid));
static_assert(VARMOE_ORDER_AFTER_TOP_K == static_cast<int>(ScoreOrder::after_top_k));
static_assert(VARMOE_GROUP_SCORE_TOP2_SUM == static_cast<int>(GroupScore::top2_sum));
static_assert(VARMOE_GRADIENT_FP32 == static_cast<int>(GradientType::fp32));
static_assert(VARMOE_OUTSIDE_GROUPS_AS_ZERO == static_cast<int>(OutsideGroups::as_zero));

}  // namespace

Result<EngineOptions> to_cpp(const varmoe_engine_options* given) {
  constexpr const char* where = "varmoe_engine_options";
  if (!given) return EngineOptions{};
  auto read = read_struct(given, where, default_engine_options());
  if (!read) return std::move(read).error();
  const varmoe_engine_options& c = *read;
  EngineOptions o;
  o.device = c.device;
  if (c.cache_mode < -1 || c.cache_mode > VARMOE_CACHE_OFF)
    return bad_member(where, "cache_mode", c.cache_mode, "-1 (unset) or one of VARMOE_CACHE_*");
  if (c.cache_mode >= 0) o.cache_mode = static_cast<CacheMode>(c.cache_mode);
  if (c.jit < -1 || c.jit > VARMOE_JIT_CACHED_ONLY)
    return bad_member(where, "jit", c.jit, "-1 (unset) or one of VARMOE_JIT_*");
  if (c.jit >= 0) o.jit = static_cast<JitMode>(c.jit);
  o.compile_threads = c.compile_threads;
  o.cpu_threads = c.cpu_threads;
  if (c.cache_max_bytes < -1)
    return bad_member(where, "cache_max_bytes", c.cache_max_bytes, "-1 (unset), 0 (no limit) or more");
  if (c.cache_max_bytes >= 0) o.cache_max_bytes = static_cast<std::uint64_t>(c.cache_max_bytes);
  o.cache_dir = text(c.cache_dir);
  if (c.cubin_path_count > 0 && !c.cubin_path) return null_member(where, "cubin_path");
  for (std::size_t i = 0; i < c.cubin_path_count; ++i) {
    if (!c.cubin_path[i]) return null_member(where, fmt::format("cubin_path[{}]", i).c_str());
    o.cubin_path.emplace_back(c.cubin_path[i]);
  }
  if (c.tuning_db_count > 0 && !c.tuning_db) return null_member(where, "tuning_db");
  for (std::size_t i = 0; i < c.tuning_db_count; ++i) {
    if (!c.tuning_db[i]) return null_member(where, fmt::format("tuning_db[{}]", i).c_str());
    o.tuning_db.emplace_back(c.tuning_db[i]);
  }
  if (c.tune < -1 || c.tune > VARMOE_TUNE_ONLINE)
    return bad_member(where, "tune", c.tune, "-1 (unset) or one of VARMOE_TUNE_*");
  if (c.tune >= 0) o.tune = static_cast<TuneMode>(c.tune);
  o.nvrtc_lib = text(c.nvrtc_lib);
  o.dump_dir = text(c.dump_dir);
  o.fc1_config = text(c.fc1_config);
  o.fc2_config = text(c.fc2_config);
  o.dh_config = text(c.dh_config);
  o.dx_config = text(c.dx_config);
  o.dw1_config = text(c.dw1_config);
  o.dw2_config = text(c.dw2_config);
  if (c.log)
    o.log = [log = c.log, user = c.log_user](LogLevel level, std::string_view line) {
      const std::string terminated(line);
      log(user, static_cast<int>(level), terminated.c_str());
    };
  return o;
}

Result<LayerSpec> to_cpp(const varmoe_layer_spec* given) {
  constexpr const char* where = "varmoe_layer_spec";
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_layer_spec is null");
  auto read = read_struct(given, where, default_layer_spec());
  if (!read) return std::move(read).error();
  const varmoe_layer_spec& c = *read;
  const struct {
    const char* member;
    std::int32_t value;
    std::int32_t last;
  } enumerators[] = {{"activation", c.activation, VARMOE_ACTIVATION_IDENTITY},
                     {"dtype", c.dtype, VARMOE_DTYPE_FP16},
                     {"fc1_layout", c.fc1_layout, VARMOE_LAYOUT_KN},
                     {"fc2_layout", c.fc2_layout, VARMOE_LAYOUT_KN},
                     {"gate_order", c.gate_order, VARMOE_GATE_INTERLEAVED},
                     {"batch_invariant", c.batch_invariant, 1},
                     {"shared_gate", c.shared_gate, 1},
                     {"bias", c.bias, 1},
                     {"weight_on_input", c.weight_on_input, 1}};
  for (const auto& e : enumerators)
    if (e.value < 0 || e.value > e.last)
      return bad_member(where, e.member, e.value, fmt::format("in 0 … {}", e.last).c_str());
  if (c.num_shared > static_cast<std::size_t>(kMaxSharedExperts))
    return bad_member(where, "num_shared", static_cast<long long>(c.num_shared),
                      fmt::format("at most {}", kMaxSharedExperts).c_str());
  if (c.num_shared > 0 && !c.shared_widths) return null_member(where, "shared_widths");
  if (c.num_experts > static_cast<std::size_t>(kMaxExperts))
    return bad_member(where, "num_experts", static_cast<long long>(c.num_experts),
                      fmt::format("at most {}", kMaxExperts).c_str());
  if (c.num_experts > 0 && !c.expert_widths) return null_member(where, "expert_widths");
  LayerSpec s;
  s.hidden_size = c.hidden_size;
  s.expert_widths.assign(c.expert_widths, c.expert_widths + c.num_experts);
  s.top_k = c.top_k;
  s.activation = static_cast<Activation>(c.activation);
  s.activation_params = {c.alpha, c.limit};
  s.dtype = static_cast<DType>(c.dtype);
  s.fc1_layout = static_cast<WeightLayout>(c.fc1_layout);
  s.fc2_layout = static_cast<WeightLayout>(c.fc2_layout);
  s.gate_order = static_cast<GateOrder>(c.gate_order);
  s.batch_invariant = c.batch_invariant != 0;
  s.shared_widths.assign(c.shared_widths, c.shared_widths + c.num_shared);
  s.shared_gate = c.shared_gate != 0;
  s.bias = c.bias != 0;
  s.weight_on_input = c.weight_on_input != 0;
  return s;
}

Result<LayerOptions> to_cpp(const varmoe_layer_options* given) {
  if (!given) return LayerOptions{};
  auto read = read_struct(given, "varmoe_layer_options", default_layer_options());
  if (!read) return std::move(read).error();
  LayerOptions o;
  o.max_workspace_bytes = read->max_workspace_bytes;
  o.max_sms = read->max_sms;
  return o;
}

Result<PrepareOptions> to_cpp(const varmoe_prepare_options& c) {
  PrepareOptions o;
  if (c.token_count > 0 && !c.tokens) return null_member("varmoe_prepare_options", "tokens");
  // An empty list would mean "all buckets of the range", which is not what an array of no elements says.
  if (c.tokens && c.token_count == 0)
    return bad_member("varmoe_prepare_options", "token_count", 0, "at least 1 when tokens is given");
  if (c.tokens) o.tokens.assign(c.tokens, c.tokens + c.token_count);
  o.min_tokens = c.min_tokens;
  o.max_tokens = c.max_tokens;
  return o;
}

namespace {

/// Not by braces: two pointers in braces are a list of two.
std::vector<const void*> list_of(const void* const* pointers, std::size_t count) {
  return std::vector<const void*>(pointers, pointers + count);
}

ExpertWeights expert_of(const varmoe_expert_weights& e) {
  ExpertWeights expert;
  expert.gate = e.gate;
  expert.up = e.up;
  expert.down = e.down;
  expert.fc1_stride = e.fc1_stride;
  expert.fc2_stride = e.fc2_stride;
  return expert;
}

/// What the caller says of shared experts, which the layer may not have: bind compares the two.
Status add_shared(const varmoe_weights& c, const LayerSpec& spec, std::int64_t element_bytes,
                  Weights& weights) {
  constexpr const char* where = "varmoe_weights";
  const bool arrays = c.shared_experts || c.shared_fc1_pointers || c.shared_fc2_pointers;
  if (!arrays && !c.shared_fc1 && !c.shared_fc2) {
    weights.shared_gate = c.shared_gate;
    return {};
  }
  if (!arrays)
    return weights.set_shared_blocks(spec, c.shared_fc1, c.shared_fc2, c.shared_gate, element_bytes);
  if (c.num_shared != static_cast<std::size_t>(spec.num_shared()))
    return bad_member(where, "num_shared", static_cast<long long>(c.num_shared),
                      fmt::format("the layer's number of shared experts, {}", spec.num_shared()).c_str());
  if (c.shared_experts) {
    for (std::size_t i = 0; i < c.num_shared; ++i) weights.shared.push_back(expert_of(c.shared_experts[i]));
    weights.shared_gate = c.shared_gate;
    return {};
  }
  if (!c.shared_fc1_pointers) return null_member(where, "shared_fc1_pointers");
  if (!c.shared_fc2_pointers) return null_member(where, "shared_fc2_pointers");
  return weights.set_shared_pointers(spec, list_of(c.shared_fc1_pointers, c.num_shared),
                                     list_of(c.shared_fc2_pointers, c.num_shared), c.shared_gate,
                                     element_bytes);
}

Result<Weights> with_biases(const varmoe_weights& c, const LayerSpec& spec, std::int64_t element_bytes,
                            Result<Weights> matrices) {
  constexpr const char* where = "varmoe_weights";
  if (!matrices) return matrices;
  const bool pointers = c.storage == VARMOE_STORAGE_POINTERS;
  if (!spec.bias) {
    // Of what the storage reads nothing may be set: it would be left out in silence.
    const void* given = pointers ? static_cast<const void*>(c.fc1_bias_pointers) : c.fc1_bias;
    const void* given2 = pointers ? static_cast<const void*>(c.fc2_bias_pointers) : c.fc2_bias;
    if (given || given2)
      return Error(ErrorCode::invalid_argument, "varmoe_weights: biases are set; the layer has none");
    return matrices;
  }
  if (!pointers)
    return matrices->with_biases(spec, c.fc1_bias, c.fc2_bias,
                                 c.storage == VARMOE_STORAGE_PADDED ? c.padded_width : 0, element_bytes);
  if (!c.fc1_bias_pointers) return null_member(where, "fc1_bias_pointers");
  if (!c.fc2_bias_pointers) return null_member(where, "fc2_bias_pointers");
  return matrices->with_biases(spec, list_of(c.fc1_bias_pointers, c.num_experts),
                               list_of(c.fc2_bias_pointers, c.num_experts), element_bytes);
}

Result<Weights> routed_weights(const varmoe_weights& c, const LayerSpec& spec, std::int64_t element_bytes) {
  constexpr const char* where = "varmoe_weights";
  const auto check_count = [&]() -> Status {
    if (c.num_experts == static_cast<std::size_t>(spec.num_experts())) return {};
    return bad_member(where, "num_experts", static_cast<long long>(c.num_experts),
                      fmt::format("the layer's number of experts, {}", spec.num_experts()).c_str());
  };
  switch (c.storage) {
    case VARMOE_STORAGE_BLOCKS:
      return with_biases(c, spec, element_bytes, Weights::blocks(spec, c.fc1, c.fc2, element_bytes));
    case VARMOE_STORAGE_PADDED:
      return with_biases(c, spec, element_bytes,
                         Weights::padded(spec, c.fc1, c.fc2, c.padded_width, element_bytes));
    case VARMOE_STORAGE_PACKED:
      return with_biases(c, spec, element_bytes, Weights::packed(spec, c.gate, c.up, c.fc2, element_bytes));
    case VARMOE_STORAGE_PACKED_JOINT:
      return with_biases(c, spec, element_bytes, Weights::packed_joint(spec, c.fc1, c.fc2, element_bytes));
    case VARMOE_STORAGE_POINTERS: {
      if (Status status = check_count(); !status) return std::move(status).error();
      if (!c.fc1_pointers) return null_member(where, "fc1_pointers");
      if (!c.fc2_pointers) return null_member(where, "fc2_pointers");
      return with_biases(c, spec, element_bytes,
                         Weights::pointers(spec, list_of(c.fc1_pointers, c.num_experts),
                                           list_of(c.fc2_pointers, c.num_experts), c.fc1_stride, c.fc2_stride,
                                           element_bytes));
    }
    case VARMOE_STORAGE_EXPERTS: {
      if (Status status = check_count(); !status) return std::move(status).error();
      if (!c.experts) return null_member(where, "experts");
      if (spec.bias && !c.expert_biases) return null_member(where, "expert_biases");
      Weights w;
      for (std::size_t i = 0; i < c.num_experts; ++i) {
        ExpertWeights expert = expert_of(c.experts[i]);
        if (c.expert_biases) {
          const varmoe_expert_biases& b = c.expert_biases[i];
          expert.gate_bias = b.gate;
          expert.up_bias = b.up;
          expert.down_bias = b.down;
          expert.fc1_bias_stride = b.fc1_stride;
        }
        w.experts.push_back(expert);
      }
      return w;
    }
    default:
      break;
  }
  return bad_member(where, "storage", c.storage, "one of VARMOE_STORAGE_*");
}

Result<Weights> weights_of(const varmoe_weights* given, const LayerSpec& spec, std::int64_t element_bytes) {
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_weights is null");
  auto read = read_struct(given, "varmoe_weights", default_weights());
  if (!read) return std::move(read).error();
  auto weights = routed_weights(*read, spec, element_bytes);
  if (!weights) return weights;
  if (Status status = add_shared(*read, spec, element_bytes, *weights); !status)
    return std::move(status).error();
  return weights;
}

}  // namespace

Result<Weights> to_cpp(const varmoe_weights* given, const LayerSpec& spec) {
  return weights_of(given, spec, 2);
}

Result<Weights> to_cpp(const varmoe_weights* given, const LayerSpec& spec, GradientType type) {
  return weights_of(given, spec, type == GradientType::fp32 ? 4 : 2);
}

Result<ForwardArgs> to_cpp(const varmoe_forward_args* given) {
  auto read = read_struct(given, "varmoe_forward_args", default_forward_args());
  if (!read) return std::move(read).error();
  const varmoe_forward_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return Error(ErrorCode::invalid_argument,
                 "varmoe_forward_args: id_type must be VARMOE_ID_INT32 or VARMOE_ID_INT64");
  if (c.accumulate != 0 && c.accumulate != 1)
    return Error(ErrorCode::invalid_argument, "varmoe_forward_args: accumulate must be 0 or 1");
  ForwardArgs a;
  a.tokens = c.tokens;
  a.x = c.x;
  a.x_stride = c.x_stride;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.topk_weights = c.topk_weights;
  a.out = c.out;
  a.out_stride = c.out_stride;
  a.accumulate = c.accumulate != 0;
  a.token_count = c.token_count;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  if (c.absent_tokens != VARMOE_ABSENT_WRITE_ZEROS && c.absent_tokens != VARMOE_ABSENT_UNTOUCHED)
    return bad_member("varmoe_forward_args", "absent_tokens", c.absent_tokens, "one of VARMOE_ABSENT_*");
  a.expert_map = c.expert_map;
  a.num_global_experts = c.num_global_experts;
  a.absent_tokens = static_cast<AbsentTokens>(c.absent_tokens);
  return a;
}

Result<UpArgs> to_cpp(const varmoe_up_args* given) {
  auto read = read_struct(given, "varmoe_up_args", default_up_args());
  if (!read) return std::move(read).error();
  const varmoe_up_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return Error(ErrorCode::invalid_argument,
                 "varmoe_up_args: id_type must be VARMOE_ID_INT32 or VARMOE_ID_INT64");
  UpArgs a;
  a.tokens = c.tokens;
  a.x = c.x;
  a.x_stride = c.x_stride;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.h = c.h;
  a.h_stride = c.h_stride;
  a.expert_offsets = c.expert_offsets;
  a.slot_row = c.slot_row;
  a.token_count = c.token_count;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  return a;
}

Result<TrainingOptions> to_cpp(const varmoe_training_options* given) {
  constexpr const char* where = "varmoe_training_options";
  if (!given) return TrainingOptions{};
  auto read = read_struct(given, where, default_training_options());
  if (!read) return std::move(read).error();
  if (read->save_preactivation != 0 && read->save_preactivation != 1)
    return bad_member(where, "save_preactivation", read->save_preactivation, "0 or 1");
  if (read->gradient_type < 0 || read->gradient_type > VARMOE_GRADIENT_FP32)
    return bad_member(where, "gradient_type", read->gradient_type, "one of VARMOE_GRADIENT_*");
  TrainingOptions o;
  o.save_preactivation = read->save_preactivation != 0;
  o.gradient_type = static_cast<GradientType>(read->gradient_type);
  o.max_sms = read->max_sms;
  return o;
}

Result<BackwardArgs> to_cpp(const varmoe_backward_args* given) {
  constexpr const char* where = "varmoe_backward_args";
  auto read = read_struct(given, where, default_backward_args());
  if (!read) return std::move(read).error();
  const varmoe_backward_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return bad_member(where, "id_type", c.id_type, "VARMOE_ID_INT32 or VARMOE_ID_INT64");
  const struct {
    const char* member;
    std::int32_t value;
  } flags[] = {{"weight_gradients", c.weight_gradients},
               {"accumulate_weight_gradients", c.accumulate_weight_gradients},
               {"accumulate_dx", c.accumulate_dx}};
  for (const auto& flag : flags)
    if (flag.value != 0 && flag.value != 1) return bad_member(where, flag.member, flag.value, "0 or 1");
  BackwardArgs a;
  a.tokens = c.tokens;
  a.x = c.x;
  a.x_stride = c.x_stride;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.topk_weights = c.topk_weights;
  a.token_count = c.token_count;
  a.expert_map = c.expert_map;
  a.num_global_experts = c.num_global_experts;
  a.dout = c.dout;
  a.dout_stride = c.dout_stride;
  a.saved = c.saved;
  a.saved_bytes = c.saved_bytes;
  a.dx = c.dx;
  a.dx_stride = c.dx_stride;
  a.dtopk_weights = c.dtopk_weights;
  a.weight_gradients = c.weight_gradients != 0;
  a.accumulate_weight_gradients = c.accumulate_weight_gradients != 0;
  a.accumulate_dx = c.accumulate_dx != 0;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  return a;
}

Result<RouterSpec> to_cpp(const varmoe_router_spec* given) {
  constexpr const char* where = "varmoe_router_spec";
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_router_spec is null");
  auto read = read_struct(given, where, default_router_spec());
  if (!read) return std::move(read).error();
  const varmoe_router_spec& c = *read;
  const struct {
    const char* member;
    std::int32_t value;
    std::int32_t last;
  } enumerators[] = {{"logit_type", c.logit_type, VARMOE_LOGITS_FP16},
                     {"scoring", c.scoring, VARMOE_SCORING_SIGMOID},
                     {"order", c.order, VARMOE_ORDER_AFTER_TOP_K},
                     {"renormalize", c.renormalize, 1},
                     {"correction_bias", c.correction_bias, 1},
                     {"group_score", c.group_score, VARMOE_GROUP_SCORE_TOP2_SUM},
                     {"outside_groups", c.outside_groups, VARMOE_OUTSIDE_GROUPS_AS_ZERO},
                     {"weight_on_input", c.weight_on_input, 1},
                     {"input_type", c.input_type, VARMOE_DTYPE_FP16},
                     {"weight_type", c.weight_type, VARMOE_LOGITS_FP16},
                     {"logit_bias", c.logit_bias, 1}};
  for (const auto& e : enumerators)
    if (e.value < 0 || e.value > e.last)
      return bad_member(where, e.member, e.value, fmt::format("in 0 … {}", e.last).c_str());
  RouterSpec s;
  s.num_experts = c.num_experts;
  s.top_k = c.top_k;
  s.logit_type = static_cast<LogitType>(c.logit_type);
  s.scoring = static_cast<Scoring>(c.scoring);
  s.order = static_cast<ScoreOrder>(c.order);
  s.renormalize = c.renormalize != 0;
  s.epsilon = c.epsilon;
  s.scaling_factor = c.scaling_factor;
  s.correction_bias = c.correction_bias != 0;
  s.group_score = static_cast<GroupScore>(c.group_score);
  s.num_groups = c.num_groups;
  s.top_groups = c.top_groups;
  s.outside_groups = static_cast<OutsideGroups>(c.outside_groups);
  s.weight_on_input = c.weight_on_input != 0;
  s.hidden_size = c.hidden_size;
  s.input_type = static_cast<DType>(c.input_type);
  s.weight_type = static_cast<LogitType>(c.weight_type);
  s.logit_bias = c.logit_bias != 0;
  return s;
}

Result<RouteArgs> to_cpp(const varmoe_route_args* given) {
  auto read = read_struct(given, "varmoe_route_args", default_route_args());
  if (!read) return std::move(read).error();
  const varmoe_route_args& c = *read;
  RouteArgs a;
  a.tokens = c.tokens;
  a.logits = c.logits;
  a.logit_stride = c.logit_stride;
  a.correction_bias = c.correction_bias;
  a.topk_ids = c.topk_ids;
  a.topk_weights = c.topk_weights;
  a.scores = c.scores;
  a.token_count = c.token_count;
  a.stream = c.stream;
  a.x = c.x;
  a.x_stride = c.x_stride;
  a.weight = c.weight;
  a.weight_stride = c.weight_stride;
  a.logit_bias = c.logit_bias;
  a.logits_out = c.logits_out;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  return a;
}

Result<RouterStatisticsSpec> to_cpp(const varmoe_router_statistics_spec* given) {
  constexpr const char* where = "varmoe_router_statistics_spec";
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_router_statistics_spec is null");
  auto read = read_struct(given, where, default_router_statistics_spec());
  if (!read) return std::move(read).error();
  if (read->logit_type < 0 || read->logit_type > VARMOE_LOGITS_FP16)
    return bad_member(where, "logit_type", read->logit_type, "one of VARMOE_LOGITS_*");
  if (read->scoring < 0 || read->scoring > VARMOE_SCORING_SIGMOID)
    return bad_member(where, "scoring", read->scoring, "one of VARMOE_SCORING_*");
  return RouterStatisticsSpec{read->num_experts, read->top_k, static_cast<LogitType>(read->logit_type),
                              static_cast<Scoring>(read->scoring)};
}

Result<RouterStatisticsArgs> to_cpp(const varmoe_router_statistics_args* given) {
  constexpr const char* where = "varmoe_router_statistics_args";
  auto read = read_struct(given, where, default_router_statistics_args());
  if (!read) return std::move(read).error();
  const varmoe_router_statistics_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return bad_member(where, "id_type", c.id_type, "VARMOE_ID_INT32 or VARMOE_ID_INT64");
  RouterStatisticsArgs a;
  a.tokens = c.tokens;
  a.logits = c.logits;
  a.logit_stride = c.logit_stride;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.expert_widths = c.expert_widths;
  a.tokens_per_expert = c.tokens_per_expert;
  a.mean_scores = c.mean_scores;
  a.losses = c.losses;
  a.token_count = c.token_count;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  return a;
}

Result<RouterGradientSpec> to_cpp(const varmoe_router_gradient_spec* given) {
  constexpr const char* where = "varmoe_router_gradient_spec";
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_router_gradient_spec is null");
  auto read = read_struct(given, where, default_router_gradient_spec());
  if (!read) return std::move(read).error();
  const varmoe_router_gradient_spec& c = *read;
  auto router = to_cpp(c.router);
  if (!router) return std::move(router).error();
  if (c.dlogit_type < 0 || c.dlogit_type > VARMOE_LOGITS_FP16)
    return bad_member(where, "dlogit_type", c.dlogit_type, "one of VARMOE_LOGITS_*");
  if (c.dweight_type < 0 || c.dweight_type > VARMOE_LOGITS_FP16)
    return bad_member(where, "dweight_type", c.dweight_type, "one of VARMOE_LOGITS_*");
  RouterGradientSpec s;
  s.router = *router;
  s.losses = static_cast<std::uint32_t>(c.losses);
  s.dlogit_type = static_cast<LogitType>(c.dlogit_type);
  s.dweight_type = static_cast<LogitType>(c.dweight_type);
  return s;
}

Result<RouterGradientArgs> to_cpp(const varmoe_router_gradient_args* given) {
  constexpr const char* where = "varmoe_router_gradient_args";
  auto read = read_struct(given, where, default_router_gradient_args());
  if (!read) return std::move(read).error();
  const varmoe_router_gradient_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return bad_member(where, "id_type", c.id_type, "VARMOE_ID_INT32 or VARMOE_ID_INT64");
  RouterGradientArgs a;
  a.tokens = c.tokens;
  a.logits = c.logits;
  a.logit_stride = c.logit_stride;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.dtopk_weights = c.dtopk_weights;
  a.dlogits = c.dlogits;
  a.dlogit_stride = c.dlogit_stride;
  a.coefficients[VARMOE_LOSS_Z] = c.z_coefficient;
  a.coefficients[VARMOE_LOSS_LOAD_BALANCE] = c.load_balance_coefficient;
  a.coefficients[VARMOE_LOSS_GROUP_BALANCE] = c.group_balance_coefficient;
  a.coefficients[VARMOE_LOSS_COMPUTE] = c.compute_coefficient;
  a.loss_tokens = c.loss_tokens;
  a.tokens_per_expert = c.tokens_per_expert;
  a.mean_scores = c.mean_scores;
  a.expert_widths = c.expert_widths;
  a.token_count = c.token_count;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  return a;
}

Result<RouterProductGradientArgs> to_cpp(const varmoe_router_product_gradient_args* given) {
  auto read =
      read_struct(given, "varmoe_router_product_gradient_args", default_router_product_gradient_args());
  if (!read) return std::move(read).error();
  const varmoe_router_product_gradient_args& c = *read;
  RouterProductGradientArgs a;
  a.tokens = c.tokens;
  a.dlogits = c.dlogits;
  a.dlogit_stride = c.dlogit_stride;
  a.x = c.x;
  a.x_stride = c.x_stride;
  a.weight = c.weight;
  a.weight_stride = c.weight_stride;
  a.dx = c.dx;
  a.dx_stride = c.dx_stride;
  a.dweight = c.dweight;
  a.dweight_stride = c.dweight_stride;
  a.dlogit_bias = c.dlogit_bias;
  a.accumulate_dx = c.accumulate_dx != 0;
  a.accumulate_weight = c.accumulate_weight != 0;
  a.token_count = c.token_count;
  a.stream = c.stream;
  return a;
}

Result<AlignSpec> to_cpp(const varmoe_align_spec* given) {
  if (!given) return Error(ErrorCode::invalid_argument, "varmoe_align_spec is null");
  auto read = read_struct(given, "varmoe_align_spec", default_align_spec());
  if (!read) return std::move(read).error();
  return AlignSpec{read->num_experts, read->block_size};
}

Result<AlignArgs> to_cpp(const varmoe_align_args* given) {
  auto read = read_struct(given, "varmoe_align_args", default_align_args());
  if (!read) return std::move(read).error();
  const varmoe_align_args& c = *read;
  if (c.id_type != VARMOE_ID_INT32 && c.id_type != VARMOE_ID_INT64)
    return bad_member("varmoe_align_args", "id_type", c.id_type, "VARMOE_ID_INT32 or VARMOE_ID_INT64");
  AlignArgs a;
  a.rows = c.rows;
  a.topk_ids = c.topk_ids;
  a.id_type = static_cast<IdType>(c.id_type);
  a.sorted_token_ids = c.sorted_token_ids;
  a.sorted_size = c.sorted_size;
  a.expert_ids = c.expert_ids;
  a.num_tokens_post_pad = c.num_tokens_post_pad;
  a.workspace = c.workspace;
  a.workspace_bytes = c.workspace_bytes;
  a.stream = c.stream;
  return a;
}

}  // namespace varmoe::c_api
