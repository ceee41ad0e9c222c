#include "tools/tune/record_text.hpp"

#include <fmt/format.h>

namespace varmoe::tools {

std::string brief(const GemmConfig& c) {
  std::string text =
      fmt::format("{} {}x{}, {} stages", to_string(c.schedule), c.block_m, c.block_n, c.stages);
  if (c.cluster > 1) text += fmt::format(", cluster {}", c.cluster);
  if (c.gather == GatherMode::copy) text += ", copied x";
  return text;
}

std::string one_launch_text(const LayerConfig& config) {
  return config.one_launch.max_tokens > 0 ? fmt::format("up to {} tokens", config.one_launch.max_tokens)
                                          : "-";
}

std::string layer_text(const TuningKey& key) {
  std::string widths;
  for (const WidthClass& c : key.inter_dim) {
    if (!widths.empty()) widths += ", ";
    widths += key.inter_dim.size() == 1 ? std::to_string(c.width) : fmt::format("{} x {}", c.count, c.width);
  }
  if (!key.shared_inter_dim.empty()) {
    std::string shared;
    for (const WidthClass& c : key.shared_inter_dim)
      shared += fmt::format("{}{} x {}", shared.empty() ? "" : ", ", c.count, c.width);
    widths += fmt::format(", shared {}{}", shared, key.shared_gate ? " with a gate" : "");
  }
  return fmt::format("{} experts of {}, top-{}, hidden {}, {}, {}", key.expert, widths, key.topk,
                     key.model_dim, to_string(key.act_type), to_string(key.dtype));
}

}  // namespace varmoe::tools
