#include "tools/gpu/weight_copies.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace varmoe::tools {
namespace {

constexpr double kL2Multiple = 8;
constexpr std::int64_t kMaxForwardsPerReplay = 256;

}  // namespace

double weight_bytes_hit(const LayerSpec& spec, std::span<const std::int32_t> ids) {
  std::vector<bool> hit(spec.expert_widths.size());
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < spec.num_experts()) hit[static_cast<std::size_t>(id)] = true;
  }
  double bytes = 0;
  for (std::size_t e = 0; e < hit.size(); ++e) {
    if (hit[e])
      bytes += static_cast<double>(spec.expert_widths[e] * spec.hidden_size) * (spec.gated() ? 6 : 4);
  }
  for (const std::int64_t width : spec.shared_widths) {
    if (!ids.empty()) bytes += static_cast<double>(width * spec.hidden_size) * (spec.gated() ? 6 : 4);
  }
  return bytes;
}

std::size_t weight_copies(double bytes_hit, std::int64_t l2_bytes, std::int64_t least) {
  const double wanted = std::ceil(kL2Multiple * static_cast<double>(l2_bytes) / std::max(bytes_hit, 1.0)) + 1;
  return static_cast<std::size_t>(
      std::clamp(wanted, static_cast<double>(least), static_cast<double>(kMaxWeightCopies)));
}

std::int64_t forwards_per_replay(double forward_us, std::size_t copies, double replay_us) {
  const auto round = static_cast<std::int64_t>(copies);
  const double rounds = std::ceil(replay_us / std::max(forward_us, 1.0) / static_cast<double>(round));
  const std::int64_t most = std::max<std::int64_t>(1, kMaxForwardsPerReplay / round);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(rounds), 1, most) * round;
}

}  // namespace varmoe::tools
