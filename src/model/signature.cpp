#include <fmt/format.h>

#include <bit>

#include "varmoe/layer_spec.hpp"

/// Canonical texts of a layer. What the computation does not read is written as "-", so that it cannot tell
/// layers apart.
namespace varmoe {
namespace {

/// -0 and +0 compute the same.
std::uint32_t float_bits(float value) {
  return std::bit_cast<std::uint32_t>(value == 0.0f ? 0.0f : value);
}

std::string classes_text(const std::vector<std::int64_t>& widths) {
  std::string text;
  for (const WidthClass& c : classes_of_widths(widths))
    fmt::format_to(std::back_inserter(text), "{}{}x{}", text.empty() ? "" : ",", c.count, c.width);
  return text;
}

/// `shared`: number or widths of the shared experts; layers without any do not speak of them.
std::string signature(const LayerSpec& spec, const std::string& widths, const std::string& shared) {
  const ActivationInfo& activation = activation_info(spec.activation);
  std::string params = "-";
  if (activation.uses_params) {
    params = fmt::format("{:08x}:{:08x}", float_bits(spec.activation_params.alpha),
                         float_bits(spec.activation_params.limit));
  }
  std::string text = fmt::format(
      "hidden={} experts={} top_k={} widths={} activation={} params={} dtype={} fc1={} fc2={} gate={} "
      "batch_invariant={}{}{}",
      spec.hidden_size, spec.num_experts(), spec.top_k, widths, to_string(spec.activation), params,
      to_string(spec.dtype), to_string(spec.fc1_layout), to_string(spec.fc2_layout),
      activation.gated ? to_string(spec.gate_order) : "-", spec.batch_invariant ? 1 : 0,
      spec.bias ? " bias=1" : "", spec.weight_on_input ? " weight_on_input=1" : "");
  if (!spec.shared_widths.empty())
    text += fmt::format(" shared={} shared_gate={}", shared, spec.shared_gate ? 1 : 0);
  return text;
}

}  // namespace

std::string kernel_signature(const LayerSpec& spec) {
  const std::vector<WidthClass> classes = width_classes(spec);
  const std::string shared = std::to_string(spec.num_shared());
  if (classes.size() > kMaxWidthClasses) return signature(spec, "runtime", shared);
  std::string widths;
  for (const WidthClass& c : classes)
    fmt::format_to(std::back_inserter(widths), "{}{}", widths.empty() ? "" : ",", c.width);
  return signature(spec, widths, shared);
}

std::string tuning_signature(const LayerSpec& spec) {
  return signature(spec, classes_text(spec.expert_widths), classes_text(spec.shared_widths));
}

}  // namespace varmoe
