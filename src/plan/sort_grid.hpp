#pragma once

#include <algorithm>
#include <cstdint>

namespace varmoe::plan {

/// How the two-launch sort splits its routed slots over blocks. Every scattering block reads every block's
/// histogram, so blocks are few and their slots many.
struct SortGrid {
  static constexpr std::int64_t kMaxBlocks = 128;
  static constexpr std::int64_t kMinSlots = 512;

  std::int64_t slots_per_block;
  std::int64_t blocks;

  explicit constexpr SortGrid(std::int64_t slots)
      : slots_per_block(std::max(kMinSlots, ((slots + kMaxBlocks - 1) / kMaxBlocks + 31) / 32 * 32)),
        blocks(std::max<std::int64_t>(1, (slots + slots_per_block - 1) / slots_per_block)) {}
};

}  // namespace varmoe::plan
