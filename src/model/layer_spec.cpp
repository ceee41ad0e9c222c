#include "varmoe/layer_spec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/text.hpp"

namespace varmoe {
namespace {

/// The one table of activations, in the enumeration's order. A new activation is one line here and one in the
/// kernels.
constexpr std::array<ActivationInfo, 10> kActivations = {{
    {Activation::silu_mul, "silu_mul", true, true, false},
    {Activation::gelu_tanh_mul, "gelu_tanh_mul", true, true, false},
    {Activation::gelu_erf_mul, "gelu_erf_mul", true, true, false},
    {Activation::swiglu_oai, "swiglu_oai", true, true, true},
    {Activation::silu, "silu", false, true, false},
    {Activation::gelu_tanh, "gelu_tanh", false, true, false},
    {Activation::gelu_erf, "gelu_erf", false, true, false},
    {Activation::relu, "relu", false, true, false},
    {Activation::relu2, "relu2", false, true, false},
    {Activation::identity, "identity", false, true, false},
}};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < kActivations.size(); ++i) {
    if (static_cast<std::size_t>(kActivations[i].activation) != i) return false;
  }
  return true;
}
static_assert(in_enum_order());
static_assert(kActivations.size() == static_cast<std::size_t>(Activation::identity) + 1);

template <class Enum>
struct Named {
  Enum value;
  const char* name;
};
constexpr std::array<Named<DType>, 2> kDTypes = {{{DType::bf16, "bf16"}, {DType::fp16, "fp16"}}};
constexpr std::array<Named<WeightLayout>, 2> kLayouts = {
    {{WeightLayout::nk, "nk"}, {WeightLayout::kn, "kn"}}};
constexpr std::array<Named<GateOrder>, 3> kGateOrders = {{{GateOrder::gate_first, "gate_first"},
                                                          {GateOrder::up_first, "up_first"},
                                                          {GateOrder::interleaved, "interleaved"}}};

template <class Enum, std::size_t N>
const char* name_of(const std::array<Named<Enum>, N>& table, Enum value) noexcept {
  for (const auto& row : table) {
    if (row.value == value) return row.name;
  }
  return "invalid";
}

Error unknown_name(const char* field, std::string_view text, const std::vector<std::string_view>& names) {
  return Error(ErrorCode::invalid_spec, fmt::format("{} \"{}\" is not known; must be one of {}", field,
                                                    printable(text, 64), join(names)));
}

template <class Enum, std::size_t N>
Result<Enum> parse_name(const char* field, const std::array<Named<Enum>, N>& table, std::string_view text) {
  std::vector<std::string_view> names;
  for (const auto& row : table) {
    if (text == row.name) return row.value;
    names.push_back(row.name);
  }
  return unknown_name(field, text, names);
}

bool known_activation(Activation activation) noexcept {
  return static_cast<std::size_t>(activation) < kActivations.size();
}

Error bad_spec(std::string message) {
  return Error(ErrorCode::invalid_spec, std::move(message));
}

/// Enumerators arrive as plain numbers through the C API.
Status check_enumerators(const LayerSpec& spec) {
  const auto bad = [](const char* field, auto value) {
    return bad_spec(fmt::format("{} is {}, which is no enumerator", field, static_cast<int>(value)));
  };
  if (!known_activation(spec.activation)) return bad("activation", spec.activation);
  if (spec.dtype > DType::fp16) return bad("dtype", spec.dtype);
  if (spec.fc1_layout > WeightLayout::kn) return bad("fc1_layout", spec.fc1_layout);
  if (spec.fc2_layout > WeightLayout::kn) return bad("fc2_layout", spec.fc2_layout);
  if (spec.gate_order > GateOrder::interleaved) return bad("gate_order", spec.gate_order);
  return {};
}

Status check_activation_params(const LayerSpec& spec) {
  if (!activation_info(spec.activation).uses_params) return {};
  const ActivationParams& params = spec.activation_params;
  if (!std::isfinite(params.alpha)) {
    return bad_spec(fmt::format("activation_params.alpha is {}; must be finite", params.alpha));
  }
  if (!std::isfinite(params.limit) || params.limit <= 0) {
    return bad_spec(fmt::format("activation_params.limit is {}; must be finite and above 0", params.limit));
  }
  return {};
}

}  // namespace

const ActivationInfo& activation_info(Activation activation) noexcept {
  return kActivations[known_activation(activation) ? static_cast<std::size_t>(activation)
                                                   : kActivations.size() - 1];
}

std::int64_t LayerSpec::max_width() const noexcept {
  return expert_widths.empty() ? 0 : *std::max_element(expert_widths.begin(), expert_widths.end());
}

std::int64_t LayerSpec::total_width() const noexcept {
  std::int64_t total = 0;
  for (const std::int64_t width : expert_widths) total += width;
  return total;
}

std::int64_t LayerSpec::widest_of_all() const noexcept {
  std::int64_t widest = max_width();
  for (const std::int64_t width : shared_widths) widest = std::max(widest, width);
  return widest;
}

Status LayerSpec::validate() const {
  if (auto status = check_enumerators(*this); !status) return status;
  if (hidden_size < kMinHidden || hidden_size > kMaxHidden || hidden_size % kWidthMultiple != 0) {
    return bad_spec(fmt::format("hidden_size is {}; must be a multiple of {} from {} to {}", hidden_size,
                                kWidthMultiple, kMinHidden, kMaxHidden));
  }
  if (expert_widths.empty() || num_experts() > kMaxExperts) {
    return bad_spec(fmt::format("expert_widths has {} entries; a layer has from 1 to {} experts",
                                num_experts(), kMaxExperts));
  }
  if (num_shared() > kMaxSharedExperts) {
    return bad_spec(fmt::format("shared_widths has {} entries; a layer has up to {} shared experts",
                                num_shared(), kMaxSharedExperts));
  }
  for (const auto& [name, widths] :
       {std::pair{"expert_widths", &expert_widths}, std::pair{"shared_widths", &shared_widths}}) {
    for (std::size_t e = 0; e < widths->size(); ++e) {
      const std::int64_t width = (*widths)[e];
      if (width < kWidthMultiple || width > kMaxWidth || width % kWidthMultiple != 0) {
        return bad_spec(
            fmt::format("{}[{}] is {}; must be a multiple of {} from {} to {}{}", name, e, width,
                        kWidthMultiple, kWidthMultiple, kMaxWidth,
                        width > 0 && width < kMaxWidth ? " (pack_expert pads other widths)" : ""));
      }
    }
  }
  if (bias && !shared_widths.empty())
    return bad_spec(
        "bias is true of a layer with shared_widths; biases are of routed experts alone in this version: "
        "compute the shared ones apart");
  if (shared_gate && shared_widths.empty())
    return bad_spec("shared_gate is true without shared experts; name their widths in shared_widths");
  if (top_k < 1 || top_k > kMaxTopK) {
    return bad_spec(fmt::format("top_k is {}; must be from 1 to {}", top_k, kMaxTopK));
  }
  return check_activation_params(*this);
}

std::vector<WidthClass> width_classes(const LayerSpec& spec) {
  std::vector<std::int64_t> widths = spec.expert_widths;
  widths.insert(widths.end(), spec.shared_widths.begin(), spec.shared_widths.end());
  return classes_of_widths(std::move(widths));
}

std::vector<WidthClass> classes_of_widths(std::vector<std::int64_t> widths) {
  std::sort(widths.begin(), widths.end());
  std::vector<WidthClass> classes;
  for (const std::int64_t width : widths) {
    if (classes.empty() || classes.back().width != width) classes.push_back({width, 0});
    ++classes.back().count;
  }
  return classes;
}

LayerSpec uniform_spec(std::int64_t hidden_size, std::int64_t num_experts, std::int64_t width,
                       std::int64_t top_k, Activation activation, DType dtype) {
  LayerSpec spec;
  spec.hidden_size = hidden_size;
  // One expert too many is enough for `validate` to refuse, and allocates nothing to speak of.
  spec.expert_widths.assign(
      static_cast<std::size_t>(std::clamp<std::int64_t>(num_experts, 0, kMaxExperts + 1)), width);
  spec.top_k = top_k;
  spec.activation = activation;
  spec.dtype = dtype;
  return spec;
}

const char* to_string(DType value) noexcept {
  return name_of(kDTypes, value);
}
const char* to_string(Activation value) noexcept {
  return known_activation(value) ? activation_info(value).name : "invalid";
}
const char* to_string(WeightLayout value) noexcept {
  return name_of(kLayouts, value);
}
const char* to_string(GateOrder value) noexcept {
  return name_of(kGateOrders, value);
}

Result<DType> parse_dtype(std::string_view text) {
  return parse_name("dtype", kDTypes, text);
}
Result<WeightLayout> parse_weight_layout(std::string_view text) {
  return parse_name("weight layout", kLayouts, text);
}
Result<GateOrder> parse_gate_order(std::string_view text) {
  return parse_name("gate order", kGateOrders, text);
}

Result<Activation> parse_activation(std::string_view text) {
  std::vector<std::string_view> names;
  for (const auto& row : kActivations) {
    if (text == row.name) return row.activation;
    names.push_back(row.name);
  }
  return unknown_name("activation", text, names);
}

}  // namespace varmoe
