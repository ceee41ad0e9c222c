#include "tools/gpu/routing.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>

namespace varmoe::tools {
namespace {

constexpr double kZipfExponent = 1.2;
constexpr int kMaxDraws = 100;

}  // namespace

Routing random_routing(const LayerSpec& spec, std::int64_t tokens, RoutingKind kind, std::uint64_t seed) {
  // The engine's numbers are the standard's; its distributions are not, so none is used.
  std::mt19937_64 engine(seed);
  const auto unit = [&engine] { return static_cast<double>(engine() >> 11) * 0x1p-53; };
  const auto experts = static_cast<std::size_t>(spec.num_experts());
  std::vector<std::int32_t> ranked(experts);
  std::iota(ranked.begin(), ranked.end(), 0);
  for (std::size_t i = experts - 1; i > 0; --i)
    std::swap(ranked[i], ranked[static_cast<std::size_t>(engine() % (i + 1))]);
  std::vector<double> cumulative(experts);
  double sum = 0;
  for (std::size_t r = 0; r < experts; ++r) {
    sum += kind == RoutingKind::zipf ? std::pow(static_cast<double>(r + 1), -kZipfExponent) : 1.0;
    cumulative[r] = sum;
  }
  const auto draw = [&] {
    const auto at = std::upper_bound(cumulative.begin(), cumulative.end(), unit() * sum);
    return ranked[std::min(static_cast<std::size_t>(at - cumulative.begin()), experts - 1)];
  };

  const auto k = static_cast<std::size_t>(spec.top_k);
  Routing routing;
  routing.ids.resize(static_cast<std::size_t>(tokens) * k);
  routing.weights.resize(routing.ids.size());
  for (std::size_t begin = 0; begin < routing.ids.size(); begin += k) {
    std::int32_t* ids = routing.ids.data() + begin;
    float* weights = routing.weights.data() + begin;
    double total = 0;
    for (std::size_t j = 0; j < k; ++j) {
      for (int attempt = 0; attempt < kMaxDraws; ++attempt) {
        ids[j] = draw();
        if (j >= experts || std::find(ids, ids + j, ids[j]) == ids + j) break;
      }
      if (kind == RoutingKind::hot) {
        if (j % 2 == 0) ids[j] = ranked[0];
        if (engine() % 64 == 0) ids[j] = -1;
      }
      weights[j] = static_cast<float>(0.1 + unit());
      total += static_cast<double>(weights[j]);
    }
    for (std::size_t j = 0; j < k; ++j)
      weights[j] = static_cast<float>(static_cast<double>(weights[j]) / total);
  }
  return routing;
}

std::vector<std::int32_t> sampled_tokens(std::int64_t tokens, std::int64_t count) {
  const std::int64_t n = std::min(tokens, count);
  std::vector<std::int32_t> sample;
  for (std::int64_t i = 0; i < n; ++i)
    sample.push_back(static_cast<std::int32_t>(n == 1 ? 0 : i * (tokens - 1) / (n - 1)));
  return sample;
}

}  // namespace varmoe::tools
