#include "tools/tune/record_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "tuningdb/record_order.hpp"

namespace varmoe::tools {

std::string brief(const GemmConfig& c) {
  std::string text =
      fmt::format("{} {}x{}, {} stages", to_string(c.schedule), c.block_m, c.block_n, c.stages);
  if (c.cluster > 1) text += fmt::format(", cluster {}", c.cluster);
  if (c.gather == GatherMode::copy) text += ", copied x";
  return text;
}

std::string brief(const GradientConfig& c) {
  return fmt::format("{} {}x{}, {} stages{}", to_string(c.schedule), c.block_m, c.block_n, c.stages,
                     c.gather == GatherMode::copy ? ", copied rows" : "");
}

std::vector<ProductText> products_of(const TuningRecord& r) {
  const auto product = [](const char* name, const auto& config, double us) {
    return ProductText{name, to_string(config), brief(config), us};
  };
  if (r.key.pass == TuningPass::backward) {
    return {product("dh", r.backward.dh, r.of_products.us_dh),
            product("dx", r.backward.dx, r.of_products.us_dx),
            product("fc1_gradient", r.backward.fc1_gradient, r.of_products.us_fc1_gradient),
            product("fc2_gradient", r.backward.fc2_gradient, r.of_products.us_fc2_gradient)};
  }
  return {product("fc1", r.config.fc1, r.us1), product("fc2", r.config.fc2, r.us2)};
}

std::string pass_text(const TuningKey& key) {
  if (key.pass == TuningPass::forward) return to_string(key.pass);
  return fmt::format("{}, {} gradients", to_string(key.pass), tuningdb::gradient_dtype(key));
}

std::string one_launch_text(const LayerConfig& config) {
  return config.one_launch.max_tokens > 0 ? fmt::format("up to {} tokens", config.one_launch.max_tokens)
                                          : "-";
}

namespace {

std::string layer_of(const TuningKey& key, std::string widths) {
  if (!key.shared_inter_dim.empty()) {
    std::string shared;
    for (const WidthClass& c : key.shared_inter_dim)
      shared += fmt::format("{}{} x {}", shared.empty() ? "" : ", ", c.count, c.width);
    widths += fmt::format(", shared {}{}", shared, key.shared_gate ? " with a gate" : "");
  }
  return fmt::format("{} experts of {}, top-{}, hidden {}, {}, {}", key.expert, widths, key.topk,
                     key.model_dim, to_string(key.act_type), to_string(key.dtype));
}

}  // namespace

std::string layer_text(const TuningKey& key) {
  std::string widths;
  for (const WidthClass& c : key.inter_dim) {
    if (!widths.empty()) widths += ", ";
    widths += key.inter_dim.size() == 1 ? std::to_string(c.width) : fmt::format("{} x {}", c.count, c.width);
  }
  return layer_of(key, std::move(widths));
}

std::string brief(const TuningKey& key) {
  constexpr std::size_t kMostNamed = 4;
  if (key.inter_dim.size() <= kMostNamed) return layer_text(key);
  const auto [least, most] = std::ranges::minmax(key.inter_dim, {}, &WidthClass::width);
  return layer_of(key, fmt::format("{} widths from {} to {}", key.inter_dim.size(), least.width, most.width));
}

}  // namespace varmoe::tools
