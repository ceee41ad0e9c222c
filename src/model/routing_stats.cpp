#include "model/routing_stats.hpp"

#include <math.h>  // lgamma_r

#include <algorithm>
#include <cmath>

namespace varmoe::model {
namespace {

/// lgamma, without the global that std::lgamma writes: this runs on any thread.
double log_gamma(double x) {
  int sign = 0;
  return ::lgamma_r(x, &sign);
}

/// Logarithm of the binomial probability of `rows` among `trials`, up to a constant.
double log_binomial(double trials, double p, double rows) {
  const double mean = trials * p, variance = mean * (1 - p);
  // Past this the normal distribution is as good, and differences of huge logarithms are not.
  if (mean > 1000) return -0.5 * (rows - mean) * (rows - mean) / variance;
  return log_gamma(trials + 1) - log_gamma(rows + 1) - log_gamma(trials - rows + 1) + rows * std::log(p) +
         (trials - rows) * std::log1p(-p);
}

}  // namespace

RoutingStats::RoutingStats(const LayerSpec& spec, std::int64_t tokens) {
  const double experts = static_cast<double>(std::max<std::int64_t>(spec.num_experts(), 1));
  const double top_k = static_cast<double>(spec.top_k);
  // More choices than experts: a token may name one twice, and every row is a trial of its own.
  const bool distinct = top_k <= experts;
  const double trials = static_cast<double>(std::max<std::int64_t>(tokens, 0)) * (distinct ? 1 : top_k);
  const double p = distinct ? top_k / experts : 1 / experts;
  mean_ = trials * p;
  const double deviation = std::sqrt(mean_ * (1 - p));
  if (deviation < 1e-6) {
    hit_share_ = mean_ > 0 ? 1 : 0;
    points_.push_back({mean_, 1});
    return;
  }
  hit_share_ = -std::expm1(trials * std::log1p(-p));

  // Within six deviations: every count where they are few, else a grid fine enough for any tile height.
  constexpr double kDeviations = 6, kMostPoints = 97;
  const double low = std::max(0.0, std::floor(mean_ - kDeviations * deviation));
  const double high = std::min(trials, std::ceil(mean_ + kDeviations * deviation));
  const double step = std::max(1.0, std::floor((high - low) / kMostPoints));
  double sum = 0;
  for (double rows = low; rows <= high; rows += step) {
    points_.push_back({rows, std::exp(log_binomial(trials, p, rows))});
    sum += points_.back().weight;
  }
  for (Point& point : points_) point.weight /= sum;
}

RoutingStats RoutingStats::of_every_token(std::int64_t tokens) {
  RoutingStats stats;
  stats.mean_ = static_cast<double>(std::max<std::int64_t>(tokens, 0));
  stats.hit_share_ = stats.mean_ > 0 ? 1 : 0;
  stats.points_.push_back({stats.mean_, 1});
  return stats;
}

RowTiles RoutingStats::row_tiles(std::int32_t block_m, std::int32_t cluster) const {
  RowTiles tiles;
  double squares = 0;
  for (const Point& point : points_) {
    const double count = std::ceil(std::ceil(point.rows / block_m) / cluster) * cluster;
    tiles.mean += point.weight * count;
    squares += point.weight * count * count;
  }
  tiles.variance = std::max(0.0, squares - tiles.mean * tiles.mean);
  return tiles;
}

}  // namespace varmoe::model
