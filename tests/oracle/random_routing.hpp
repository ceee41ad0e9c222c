#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "oracle/case_options.hpp"
#include "oracle/random_values.hpp"
#include "varmoe/layer_spec.hpp"

namespace oracle {

/// Draws ids of `tokens` tokens.
inline std::vector<std::int64_t> random_ids(const varmoe::LayerSpec& spec, const CaseOptions& o) {
  const auto E = static_cast<std::int64_t>(spec.expert_widths.size());
  const std::int64_t k = spec.top_k;
  const auto random = [&](std::uint64_t what, std::int64_t t, std::int64_t j, std::uint64_t attempt = 0) {
    return detail::mix(o.seed, 1000 + what, static_cast<std::uint64_t>(t * k + j), attempt);
  };
  std::vector<std::int64_t> allowed;
  for (std::int64_t e = 0; e < E; ++e) {
    if (o.empty_every < 2 || e % o.empty_every != 1) allowed.push_back(e);
  }
  const auto n = static_cast<std::int64_t>(allowed.size());
  for (std::int64_t i = n - 1; i > 0;
       --i) {  // shuffled: the favourite of zipf, one_expert and half_on_one is any expert
    const std::uint64_t j =
        detail::mix(o.seed, 999, static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(i + 1);
    std::swap(allowed[static_cast<std::size_t>(i)], allowed[j]);
  }
  std::vector<double>
      cumulative;  // of Zipf(1.2); r^1.2 by fifth roots would need libm, so 1/(r·r^(1/5)) by Newton
  double sum = 0;
  for (std::int64_t r = 1; r <= n; ++r) {
    double root = 1.5;  // r^(1/5): + − × ÷ alone, the same bits everywhere
    for (int i = 0; i < 60; ++i) root = (4 * root + static_cast<double>(r) / (root * root * root * root)) / 5;
    sum += 1.0 / (static_cast<double>(r) * root);
    cumulative.push_back(sum);
  }
  const auto draw = [&](std::uint64_t bits) -> std::int64_t {
    if (o.routing == Routing::zipf) {
      const auto it = std::upper_bound(cumulative.begin(), cumulative.end(), detail::unit(bits) * sum);
      return allowed[static_cast<std::size_t>(std::min<std::ptrdiff_t>(it - cumulative.begin(), n - 1))];
    }
    return allowed[bits % static_cast<std::uint64_t>(n)];
  };

  std::vector<std::int64_t> ids(static_cast<std::size_t>(o.tokens * k));
  for (std::int64_t t = 0; t < o.tokens; ++t) {
    std::int64_t* row = ids.data() + t * k;
    for (std::int64_t j = 0; j < k; ++j) {
      if (o.routing == Routing::one_expert ||
          (o.routing == Routing::half_on_one && random(1, t, j) % 2 == 0)) {
        row[j] = allowed[0];
        continue;
      }
      for (std::uint64_t attempt = 0; attempt < 100; ++attempt) {  // distinct where there are experts enough
        row[j] = draw(random(2, t, j, attempt));
        if (j >= n || std::find(row, row + j, row[j]) == row + j) break;
      }
    }
    for (std::int64_t j = 1; j < k; ++j) {
      if (detail::unit(random(3, t, j)) < o.duplicate_fraction) row[j] = row[0];
    }
    for (std::int64_t j = 0; j < k; ++j) {
      if (detail::unit(random(4, t, j)) >= o.invalid_fraction) continue;
      const std::int64_t bad[] = {-1, E, E + 5, 2147483647, -2147483648LL};
      row[j] = bad[random(5, t, j) % 5];
    }
  }
  return ids;
}

/// Up to `count` tokens spread over 0 … T−1, first and last among them: what a large layer is checked on.
inline std::vector<std::int64_t> sample_tokens(std::int64_t tokens, std::int64_t count,
                                               std::uint64_t seed = 1) {
  std::vector<std::int64_t> sample;
  if (tokens <= count) {
    for (std::int64_t t = 0; t < tokens; ++t) sample.push_back(t);
    return sample;
  }
  sample = {0, tokens - 1};
  for (std::uint64_t i = 0; static_cast<std::int64_t>(sample.size()) < count; ++i) {
    const auto t = static_cast<std::int64_t>(detail::mix(seed, 8, i) % static_cast<std::uint64_t>(tokens));
    if (std::find(sample.begin(), sample.end(), t) == sample.end()) sample.push_back(t);
  }
  std::sort(sample.begin(), sample.end());
  return sample;
}

}  // namespace oracle
