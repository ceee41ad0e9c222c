#pragma once

#include <cstdint>
#include <vector>

#include "varmoe/layer_spec.hpp"

/// Random routing for measurements: the same on every machine.
namespace varmoe::tools {

enum class RoutingKind : std::uint8_t {
  uniform,
  zipf,  ///< the expert of rank r with weight 1 / r^1.2, ranks shuffled
  hot,  ///< every other slot to one expert, so that tokens name it several times; one slot in 64 to none (−1)
};

struct Routing {
  std::vector<std::int32_t> ids;  ///< [T, k]; uniform and zipf: a token's are distinct where k ≤ E
  std::vector<float> weights;     ///< [T, k], each token's sum is 1
};
Routing random_routing(const LayerSpec& spec, std::int64_t tokens, RoutingKind kind, std::uint64_t seed);

/// Up to `count` tokens spread over 0 … T − 1, ascending, first and last among them.
std::vector<std::int32_t> sampled_tokens(std::int64_t tokens, std::int64_t count);

}  // namespace varmoe::tools
