#include "cpu/workspace.hpp"

#include "cpu/kernels.hpp"
#include "cpu/tiles.hpp"

namespace varmoe::cpu {

const std::size_t kThreadScratch = kTileScratch * sizeof(float);

WorkspaceLayout workspace_layout(const LayerSpec& spec, std::int64_t tokens, int threads) noexcept {
  WorkspaceLayout layout;
  const auto experts = static_cast<std::size_t>(spec.all_experts());
  const auto rows = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(spec.slots_per_token());
  std::int64_t token_h = spec.top_k * spec.max_width();
  for (const std::int64_t width : spec.shared_widths) token_h += width;
  const auto take = [&](std::size_t bytes) {
    const std::size_t at = layout.total_bytes;
    layout.total_bytes = (at + bytes + 255) / 256 * 256;
    return at;
  };
  layout.expert_rows = take((experts + 1) * sizeof(std::int64_t));
  layout.expert_h = take(experts * sizeof(std::int64_t));
  layout.fc1_tasks = take((experts + 1) * sizeof(std::int64_t));
  layout.fc2_tasks = take((experts + 1) * sizeof(std::int64_t));
  layout.row_slot = take(rows * sizeof(std::int64_t));
  layout.slot_row = take(rows * sizeof(std::int64_t));
  layout.h = take(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(token_h) * 2);
  layout.y = take(rows * static_cast<std::size_t>(spec.hidden_size) * 2);
  layout.gates = take(spec.shared_gate ? static_cast<std::size_t>(tokens) * sizeof(float) : 0);
  layout.scratch = take(static_cast<std::size_t>(threads) * kThreadScratch);
  return layout;
}

ZRows z_rows(const LayerSpec& spec) noexcept {
  const std::int64_t columns = (spec.widest_of_all() + 63) / 64 * 64;
  return {spec.gated() ? columns : 0, spec.gated() ? 2 * columns : columns};
}

std::int64_t tokens_that_fit(const LayerSpec& spec, std::int64_t tokens, int threads,
                             std::size_t bytes) noexcept {
  const auto fits = [&](std::int64_t t) { return workspace_layout(spec, t, threads).total_bytes <= bytes; };
  if (fits(tokens)) return tokens;
  std::int64_t low = 0, high = tokens;  // low fits (or is 0), high does not
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return low;
}

}  // namespace varmoe::cpu
