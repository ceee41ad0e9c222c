#include "model/named_sets.hpp"

#include <fmt/format.h>

#include "base/text.hpp"

namespace varmoe::model {
namespace {

/// Experts in descending width, as the sets are written down.
NamedSet relu2_set(std::string name, std::vector<WidthClass> classes, std::int64_t top_k) {
  NamedSet set;
  set.name = std::move(name);
  for (const WidthClass& c : classes) {
    fmt::format_to(std::back_inserter(set.summary), "{}{}x{}", set.summary.empty() ? "" : " + ", c.count,
                   c.width);
    set.spec.expert_widths.insert(set.spec.expert_widths.end(), static_cast<std::size_t>(c.count), c.width);
  }
  set.summary += fmt::format(", top-{}, relu2", top_k);
  set.spec.hidden_size = 2048;
  set.spec.top_k = top_k;
  set.spec.activation = Activation::relu2;
  return set;
}

/// 64 gated experts whose widths 128, 256, … repeat in order.
NamedSet gated_set(std::string name, std::int64_t distinct, std::int64_t hidden_size) {
  NamedSet set;
  set.name = std::move(name);
  set.summary = fmt::format("64 experts of 128, 256, ... {} repeated, top-8, silu_mul", 128 * distinct);
  for (std::int64_t e = 0; e < 64; ++e) set.spec.expert_widths.push_back(128 * (e % distinct + 1));
  set.spec.hidden_size = hidden_size;
  set.spec.top_k = 8;
  set.spec.activation = Activation::silu_mul;
  return set;
}

}  // namespace

const std::vector<NamedSet>& named_sets() {
  static const std::vector<NamedSet> sets = {
      relu2_set("8_uniform", {{512, 8}}, 2),
      relu2_set("8_variable", {{512, 4}, {256, 4}}, 2),
      relu2_set("16_uniform", {{256, 16}}, 2),
      relu2_set("16_variable", {{512, 4}, {256, 8}, {128, 4}}, 2),
      relu2_set("64_uniform", {{256, 64}}, 8),
      relu2_set("64_variable", {{512, 16}, {256, 32}, {128, 16}}, 8),
      relu2_set("128_uniform", {{256, 128}}, 8),
      relu2_set("128_variable", {{512, 32}, {256, 64}, {128, 32}}, 8),
      gated_set("gated_4_widths", 4, 2048),
      gated_set("gated_16_widths", 16, 4096),
  };
  return sets;
}

Result<LayerSpec> named_set(std::string_view name, std::int64_t hidden_size) {
  std::vector<std::string_view> names;
  for (const NamedSet& set : named_sets()) {
    names.push_back(set.name);
    if (set.name != name) continue;
    LayerSpec spec = set.spec;
    if (hidden_size != 0) spec.hidden_size = hidden_size;
    if (auto status = spec.validate(); !status) return status.error();
    return spec;
  }
  return Error(ErrorCode::invalid_argument,
               fmt::format("no set \"{}\"; there are {}", printable(name, 64), join(names)));
}

}  // namespace varmoe::model
