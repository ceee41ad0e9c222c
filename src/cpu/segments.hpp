#pragma once

#include <algorithm>
#include <cstdint>

#include "varmoe/blocks.hpp"

/// A caller's segments as a first row and a number of rows per expert; what reaches beyond the arrays is cut
/// off.
namespace varmoe::cpu {

/// Fills begin [experts] and count [experts].
inline void read_segments(const RowsByExpert& r, std::int64_t experts, std::int64_t* begin,
                          std::int64_t* count) noexcept {
  const auto number = [&](const void* array, std::int64_t at) {
    const std::int64_t n = r.index_type == IdType::int64 ? static_cast<const std::int64_t*>(array)[at]
                                                         : static_cast<const std::int32_t*>(array)[at];
    return std::clamp<std::int64_t>(n, 0, r.rows);
  };
  std::int64_t next = 0;
  for (std::int64_t e = 0; e < experts; ++e) begin[e] = count[e] = 0;
  switch (r.layout) {
    case RowLayout::offsets:
      for (std::int64_t e = 0; e < experts; ++e) {
        begin[e] = number(r.expert_offsets, e);
        count[e] = std::max<std::int64_t>(0, number(r.expert_offsets, e + 1) - begin[e]);
        if (r.expert_counts != nullptr) count[e] = std::min(count[e], number(r.expert_counts, e));
      }
      break;
    case RowLayout::counts:
      for (std::int64_t e = 0; e < experts; ++e) {
        begin[e] = next;
        count[e] = number(r.expert_counts, e);
        next += (count[e] + r.multiple - 1) / r.multiple * r.multiple;
      }
      break;
    case RowLayout::batched:
      for (std::int64_t e = 0; e < experts; ++e) {
        begin[e] = e * r.multiple;
        count[e] = std::min(number(r.expert_counts, e), r.multiple);
      }
      break;
    case RowLayout::aligned_blocks: {
      const std::int64_t blocks = std::clamp<std::int64_t>(*r.num_tokens_post_pad, 0, r.rows) / r.multiple;
      const auto is_row = [&](std::int64_t at) {
        return r.sorted_token_ids[at] >= 0 && r.sorted_token_ids[at] < r.routed_rows;
      };
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t e = r.expert_ids[b];
        if (e < 0 || e >= experts) continue;
        if (b == 0 || r.expert_ids[b - 1] != e) begin[e] = b * r.multiple;
        std::int64_t end = b * r.multiple;
        while (end < (b + 1) * r.multiple && is_row(end)) ++end;
        count[e] = end - begin[e];
      }
      break;
    }
  }
  std::int64_t before = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    begin[e] = std::min(begin[e], r.rows);
    count[e] = std::clamp<std::int64_t>(count[e], 0, std::min(r.rows - begin[e], r.rows - before));
    before += count[e];
  }
}

}  // namespace varmoe::cpu
