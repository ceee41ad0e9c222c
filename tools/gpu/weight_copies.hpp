#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "varmoe/layer_spec.hpp"

/// Copies of a layer's weights that forwards use in turn, so that L2 holds nothing of the next forward.
namespace varmoe::tools {

inline constexpr std::int64_t kMaxWeightCopies = 64;

/// Bytes of weights that a forward reads whose tokens go to these experts (an id that names none: nothing).
double weight_bytes_hit(const LayerSpec& spec, std::span<const std::int32_t> ids);

/// How many copies: what forwards read before the first comes round again is at least eight times the L2's
/// size. At least `least`.
std::size_t weight_copies(double bytes_hit, std::int64_t l2_bytes, std::int64_t least);

/// Forwards that a replay should hold so that it lasts about `replay_us` and uses every copy equally often.
std::int64_t forwards_per_replay(double forward_us, std::size_t copies, double replay_us);

}  // namespace varmoe::tools
