#pragma once

#include <cstddef>
#include <cstdint>

#include "varmoe/layer_spec.hpp"

namespace varmoe::cpu {

/// Where each intermediate lies in a workspace. Offsets in bytes, 256-byte aligned. E counts the shared
/// experts too, k their slots.
struct WorkspaceLayout {
  std::size_t expert_rows = 0;  ///< int64 [E + 1]: first routed row of each expert, and their number
  std::size_t expert_h = 0;     ///< int64 [E]: where each expert's h begins, in elements
  std::size_t fc1_tasks = 0;    ///< int64 [E + 1]: first work item of each expert
  std::size_t fc2_tasks = 0;
  std::size_t row_slot = 0;  ///< int64 [R]: routed row, in expert order → token·k + j
  std::size_t slot_row = 0;  ///< int64 [R]: the inverse; −1 where the id is no expert
  std::size_t h = 0;         ///< [Σ rows_e · I_e]
  std::size_t y = 0;         ///< [R, H]
  std::size_t gates = 0;     ///< float [T], of a layer with a shared gate
  std::size_t scratch = 0;   ///< kThreadScratch bytes a thread
  std::size_t total_bytes = 0;
};

/// Bytes that a thread needs to itself.
extern const std::size_t kThreadScratch;

WorkspaceLayout workspace_layout(const LayerSpec& spec, std::int64_t tokens, int threads) noexcept;

/// How z lies where it is kept: row r's gate at r·stride, its up `up` elements further, each of the widest
/// expert's width rounded up to 64.
struct ZRows {
  std::int64_t up, stride;  ///< up: 0 of an ungated layer
};
ZRows z_rows(const LayerSpec& spec) noexcept;

/// The most tokens ≤ `tokens` whose layout fits in `bytes`; 0 when not even one does.
std::int64_t tokens_that_fit(const LayerSpec& spec, std::int64_t tokens, int threads,
                             std::size_t bytes) noexcept;

}  // namespace varmoe::cpu
