#pragma once

#include <cstdint>
#include <vector>

#include "varmoe/layer_spec.hpp"

/// How many rows an expert gets when T tokens choose k distinct experts uniformly: a binomial distribution.
namespace varmoe::model {

/// Row tiles of one expert: expectation and variance over the routing.
struct RowTiles {
  double mean = 0;
  double variance = 0;
};

class RoutingStats {
 public:
  /// Of a routed expert.
  RoutingStats(const LayerSpec& spec, std::int64_t tokens);
  /// Of a shared expert: a row of every token.
  static RoutingStats of_every_token(std::int64_t tokens);

  /// Expected rows of an expert.
  double mean() const noexcept { return mean_; }
  /// Expected share of experts that get a row at all.
  double hit_share() const noexcept { return hit_share_; }
  /// `cluster`: an expert's tiles are completed to a multiple of this.
  RowTiles row_tiles(std::int32_t block_m, std::int32_t cluster = 1) const;

 private:
  struct Point {
    double rows, weight;
  };
  RoutingStats() = default;

  double mean_ = 0, hit_share_ = 0;
  std::vector<Point> points_;  ///< weights sum to 1
};

}  // namespace varmoe::model
