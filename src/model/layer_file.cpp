#include <fmt/format.h>

#include <limits>

#include "base/text.hpp"
#include "model/model_readers.hpp"

/// Our own layer file; its grammar is in model_config.hpp.
namespace varmoe::model {
namespace {

constexpr std::int64_t kVersion = 1;

const std::vector<std::string_view> kSpecFields = {
    "hidden_size", "expert_widths",   "top_k",      "activation",    "activation_params",
    "dtype",       "fc1_layout",      "fc2_layout", "gate_order",    "batch_invariant",
    "bias",        "weight_on_input", "router",     "shared_widths", "shared_gate"};

std::vector<std::string_view> with(std::vector<std::string_view> names,
                                   std::initializer_list<std::string_view> more) {
  names.insert(names.end(), more);
  return names;
}

/// A string field that one of our parsers reads; keeps `value` when absent.
template <class T, class Parse>
void read_name(const JsonFields& fields, std::string_view name, Parse parse, T& value) {
  if (!fields.has(name)) return;
  auto parsed = parse(fields.string(name));
  if (!parsed) fields.fail(fmt::format("{}: {}", name, parsed.error().message()));
  value = *parsed;
}

void read_widths(const JsonFields& fields, LayerSpec& spec) {
  constexpr std::string_view name = "expert_widths";
  const Json* value = fields.find(name);
  if (value == nullptr) return;
  if (value->as<Json::Array>()) {
    spec.expert_widths = fields.integers_or_empty(name, 1, kMaxWidth);
    return;
  }
  if (!value->as<Json::Object>())
    fields.fail(name, *value, "must be a list of widths or {\"repeat\": [...], \"times\": n}");
  const JsonFields repeat(*value, fmt::format("{}: {}", fields.where(), name), NullField::is_wrong);
  repeat.refuse_unknown({"repeat", "times"});
  const std::int64_t times = repeat.integer("times", 1, kMaxExperts);
  const std::vector<std::int64_t> pattern = repeat.integers_or_empty("repeat", 1, kMaxWidth);
  const std::int64_t experts = static_cast<std::int64_t>(pattern.size()) * times;
  if (experts < 1 || experts > kMaxExperts) {
    repeat.fail(fmt::format("{} widths {} times are {} experts; a layer has from 1 to {}", pattern.size(),
                            times, experts, kMaxExperts));
  }
  spec.expert_widths.clear();
  for (std::int64_t i = 0; i < times; ++i) {
    spec.expert_widths.insert(spec.expert_widths.end(), pattern.begin(), pattern.end());
  }
}

void read_activation_params(const JsonFields& fields, LayerSpec& spec) {
  const Json* value = fields.find("activation_params");
  if (value == nullptr) return;
  if (!activation_info(spec.activation).uses_params) {
    fields.fail(fmt::format("activation_params: activation {} has none", to_string(spec.activation)));
  }
  const JsonFields params(*value, fields.where() + ": activation_params", NullField::is_wrong);
  params.refuse_unknown({"alpha", "limit"});
  constexpr double kLargest = std::numeric_limits<float>::max();
  spec.activation_params.alpha =
      static_cast<float>(params.real_or("alpha", -kLargest, kLargest, spec.activation_params.alpha));
  spec.activation_params.limit = static_cast<float>(
      params.real_or("limit", std::numeric_limits<float>::min(), kLargest, spec.activation_params.limit));
}

/// One of some names, as an enumerator; keeps `value` when absent.
template <class Enum>
void read_enumerator(const JsonFields& fields, const char* name, std::initializer_list<Enum> known,
                     Enum& value) {
  if (!fields.has(name)) return;
  const std::string& text = fields.string(name);
  std::vector<std::string_view> names;
  for (const Enum e : known) {
    if (text == to_string(e)) {
      value = e;
      return;
    }
    names.emplace_back(to_string(e));
  }
  fields.fail(
      fmt::format("{} \"{}\" is not known; must be one of {}", name, printable(text, 64), join(names)));
}

/// In place of a hidden size, until the layer's is known.
constexpr std::int64_t kLayersHidden = -1;

/// The object "router", if it is there; experts and top-k are the layer's.
std::optional<RouterSpec> read_router(const JsonFields& fields, const std::optional<RouterSpec>& base) {
  const Json* value = fields.find("router");
  if (value == nullptr) return base;
  const JsonFields of(*value, fields.where() + ": router", NullField::is_wrong);
  of.refuse_unknown({"logit_type", "scoring", "order", "renormalize", "epsilon", "scaling_factor",
                     "correction_bias", "num_groups", "top_groups", "group_score", "outside_groups",
                     "weight_on_input", "product", "weight_type", "logit_bias"});
  constexpr double kLargest = std::numeric_limits<float>::max();
  RouterSpec router;
  read_name(of, "logit_type", parse_logit_type, router.logit_type);
  read_enumerator(of, "scoring", {Scoring::softmax, Scoring::sigmoid}, router.scoring);
  read_enumerator(of, "order", {ScoreOrder::before_top_k, ScoreOrder::after_top_k}, router.order);
  router.renormalize = of.boolean_or("renormalize", router.renormalize);
  router.epsilon = static_cast<float>(of.real_or("epsilon", 0, kLargest, 0));
  router.scaling_factor = static_cast<float>(of.real_or("scaling_factor", -kLargest, kLargest, 1));
  router.correction_bias = of.boolean_or("correction_bias", router.correction_bias);
  router.num_groups = of.integer_or("num_groups", 1, kMaxExpertGroups, router.num_groups);
  router.top_groups = of.integer_or("top_groups", 1, kMaxExpertGroups, router.top_groups);
  read_enumerator(of, "group_score", {GroupScore::max, GroupScore::top2_sum}, router.group_score);
  read_enumerator(of, "outside_groups", {OutsideGroups::never, OutsideGroups::as_zero},
                  router.outside_groups);
  router.weight_on_input = of.boolean_or("weight_on_input", router.weight_on_input);
  // The layer's hidden size stands in for it: router_of.
  if (of.boolean_or("product", false)) router.hidden_size = kLayersHidden;
  read_name(of, "weight_type", parse_logit_type, router.weight_type);
  router.logit_bias = of.boolean_or("logit_bias", router.logit_bias);
  if (router.hidden_size == 0 && (of.has("weight_type") || of.has("logit_bias")))
    of.fail("weight_type and logit_bias go with product: true");
  return router;
}

/// For the layer's experts, top-k, hidden size and dtype.
std::optional<RouterSpec> router_of(std::optional<RouterSpec> router, const LayerSpec& spec,
                                    const std::optional<DType>& dtype, const JsonFields& fields) {
  if (!router) return router;
  if (router->hidden_size != 0) {
    router->hidden_size = spec.hidden_size;
    router->input_type = dtype.value_or(spec.dtype);
  }
  router->num_experts = spec.num_experts();
  router->top_k = spec.top_k;
  if (const Status status = router->validate(); !status)
    fields.fail(fmt::format("router: {}", status.error().message()));
  if (router->weight_on_input != spec.weight_on_input)
    fields.fail(fmt::format("router: weight_on_input is {}; must be the layer's, {}", router->weight_on_input,
                            spec.weight_on_input));
  return router;
}

/// Replaces the fields of `spec` that the object names.
void read_spec_fields(const JsonFields& fields, LayerSpec& spec) {
  spec.hidden_size = fields.integer_or("hidden_size", kMinHidden, kMaxHidden, spec.hidden_size);
  read_widths(fields, spec);
  spec.top_k = fields.integer_or("top_k", 1, kMaxTopK, spec.top_k);
  read_name(fields, "activation", parse_activation, spec.activation);
  read_activation_params(fields, spec);
  read_name(fields, "dtype", parse_dtype, spec.dtype);
  read_name(fields, "fc1_layout", parse_weight_layout, spec.fc1_layout);
  read_name(fields, "fc2_layout", parse_weight_layout, spec.fc2_layout);
  read_name(fields, "gate_order", parse_gate_order, spec.gate_order);
  spec.batch_invariant = fields.boolean_or("batch_invariant", spec.batch_invariant);
  if (fields.has("shared_widths"))
    spec.shared_widths = fields.integers_or_empty("shared_widths", 1, kMaxWidth);
  spec.shared_gate = fields.boolean_or("shared_gate", spec.shared_gate);
  spec.bias = fields.boolean_or("bias", spec.bias);
  spec.weight_on_input = fields.boolean_or("weight_on_input", spec.weight_on_input);
}

void require_spec(const LayerSpec& spec, const JsonFields& fields) {
  if (spec.hidden_size == 0) fields.fail("hidden_size is missing");
  if (spec.expert_widths.empty()) fields.fail("expert_widths is missing or empty");
  if (spec.top_k == 0) fields.fail("top_k is missing");
}

}  // namespace

ModelConfig read_layer_file(const Json& root, const std::string& origin, const ReadOptions& options) {
  const JsonFields fields(root, origin, NullField::is_wrong);
  const std::int64_t version = fields.integer("varmoe_layer", 1, std::numeric_limits<std::int64_t>::max());
  if (version > kVersion) {
    fields.fail(fmt::format("varmoe_layer is {}; this library reads {}: update it to read this file", version,
                            kVersion));
  }
  fields.refuse_unknown(with(kSpecFields, {"varmoe_layer", "name", "num_layers", "layers"}));
  if (fields.has("name")) fields.string("name");

  ModelConfig model;
  model.family = "layer_file";
  LayerSpec base;
  read_spec_fields(fields, base);
  const std::optional<RouterSpec> base_router = read_router(fields, {});
  const auto finish = [&options](LayerSpec spec) {
    if (options.dtype) spec.dtype = *options.dtype;
    return spec;
  };

  const Json* layers = fields.find("layers");
  if (layers == nullptr) {
    require_spec(base, fields);
    const std::int64_t count = fields.integer_or("num_layers", 1, kMaxLayers, 1);
    const auto router = router_of(base_router, base, options.dtype, fields);
    for (int i = 0; i < count; ++i) add_layer(model, finish(base), i, origin, router);
    return model;
  }
  if (fields.has("num_layers")) fields.fail("num_layers and layers exclude each other");
  const auto* list = layers->as<Json::Array>();
  if (list == nullptr || list->empty() || static_cast<std::int64_t>(list->size()) > kMaxLayers) {
    fields.fail("layers", *layers, fmt::format("must be a list of 1 to {} objects", kMaxLayers));
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    const JsonFields layer((*list)[i], fmt::format("{}: layers[{}]", origin, i), NullField::is_wrong);
    layer.refuse_unknown(kSpecFields);
    LayerSpec spec = base;
    read_spec_fields(layer, spec);
    require_spec(spec, layer);
    add_layer(model, finish(spec), static_cast<int>(i), origin,
              router_of(read_router(layer, base_router), spec, options.dtype, layer));
  }
  return model;
}

}  // namespace varmoe::model
