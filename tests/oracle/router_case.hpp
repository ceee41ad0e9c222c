#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/parallel.hpp"
#include "oracle/router_oracle.hpp"

/// Random inputs of a router, and those that break careless ones.
namespace oracle {

enum class Logits : std::uint8_t {
  normal,      ///< standard normal
  ties,        ///< of eight values, so that many are equal
  equal,       ///< all equal
  special,     ///< normal, with NaN, +∞, −∞, −0 and +0 among them
  degenerate,  ///< rows of −∞ and NaN alone, rows of very negative and of very large logits, in turn
};
inline constexpr Logits kLogits[] = {Logits::normal, Logits::ties, Logits::equal, Logits::special,
                                     Logits::degenerate};

struct RouterCase {
  varmoe::RouterSpec spec;
  std::int64_t tokens = 0, stride = 0;  ///< elements
  std::vector<std::byte> logits;        ///< [tokens, stride], the spec's type; gaps hold NaN
  std::vector<double> exact;            ///< [tokens, E] what they stand for
  std::vector<float> bias;              ///< [E]; empty without a correction bias
  std::vector<double> exact_bias;

  std::span<const double> row(std::int64_t token) const {
    return {exact.data() + token * spec.num_experts, static_cast<std::size_t>(spec.num_experts)};
  }
  /// Empty when every row of a result is right; rows [0, count).
  std::string problem(const std::int32_t* ids, const float* weights, std::int64_t count) const {
    const auto k = static_cast<std::size_t>(spec.top_k);
    return first_problem(count, [&](std::int64_t t) {
      const auto at = static_cast<std::size_t>(t) * k;
      return routing_problem(spec, row(t), exact_bias, {ids + at, k}, {weights + at, k});
    });
  }
  std::string scores_problem(const float* scores, std::int64_t count) const {
    return first_problem(count, [&](std::int64_t t) -> std::string {
      const auto expected = scores_of(spec, row(t), std::vector<bool>(row(t).size(), true));
      for (std::size_t e = 0; e < expected.size(); ++e) {
        const double got = static_cast<double>(scores[static_cast<std::size_t>(t) * expected.size() + e]);
        if (!(std::abs(got - expected[e]) <= 1e-5 * expected[e] + 1e-36))
          return "score " + std::to_string(e) + " is " + std::to_string(got) + ", not " +
                 std::to_string(expected[e]);
      }
      return {};
    });
  }

 private:
  /// Of `problem_of(token)`, the first that is one.
  template <class F>
  std::string first_problem(std::int64_t count, const F& problem_of) const {
    constexpr std::int64_t kTokens = 64;
    std::vector<std::string> found(static_cast<std::size_t>((count + kTokens - 1) / kTokens));
    parallel_for(static_cast<std::int64_t>(found.size()), 0, [&](std::int64_t part) {
      std::string& text = found[static_cast<std::size_t>(part)];
      for (std::int64_t t = part * kTokens; t < std::min(count, (part + 1) * kTokens) && text.empty(); ++t) {
        if (const std::string what = problem_of(t); !what.empty())
          text = "token " + std::to_string(t) + ": " + what;
      }
    });
    for (const std::string& text : found)
      if (!text.empty()) return text;
    return {};
  }
};

inline double special_logit(std::uint64_t draw, double otherwise) {
  switch (draw % 12) {
    case 0:
      return std::numeric_limits<double>::quiet_NaN();
    case 1:
      return draw % 24 == 1 ? INFINITY : otherwise;
    case 2:
      return -INFINITY;
    case 3:
      return -0.0;
    case 4:
      return 0.0;
    default:
      return otherwise;
  }
}

/// `gap`: elements between a row's end and the next.
inline RouterCase make_router_case(const varmoe::RouterSpec& spec, std::int64_t tokens, Logits kind,
                                   std::uint64_t seed, std::int64_t gap = 0) {
  RouterCase c;
  c.spec = spec;
  c.tokens = tokens;
  c.stride = spec.num_experts + gap;
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const std::size_t bytes = spec.logit_type == varmoe::LogitType::fp32 ? 4 : 2;
  c.logits.assign(static_cast<std::size_t>(tokens * c.stride) * bytes, std::byte{0xff});
  const double level = normal(random);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      double value = normal(random);
      const std::uint64_t draw = random();
      if (kind == Logits::ties) value = static_cast<double>(draw % 8) / 4 - 1;
      if (kind == Logits::equal) value = level;
      if (kind == Logits::special) value = special_logit(draw, value);
      if (kind == Logits::degenerate) {
        if (t % 4 == 0) value = draw % 2 != 0 ? -INFINITY : std::numeric_limits<double>::quiet_NaN();
        if (t % 4 == 1) value = -200 + value;
        if (t % 4 == 2) value = 200 + value;
        if (t % 4 == 3) value = e == t % spec.num_experts ? INFINITY : value * 30;
      }
      const auto at = static_cast<std::size_t>(t * c.stride + e) * bytes;
      if (spec.logit_type == varmoe::LogitType::fp32) {
        const auto rounded = static_cast<float>(value);
        std::memcpy(&c.logits[at], &rounded, 4);
        value = static_cast<double>(rounded);
      } else {
        const auto dtype =
            spec.logit_type == varmoe::LogitType::bf16 ? varmoe::DType::bf16 : varmoe::DType::fp16;
        const std::uint16_t bits = std::isnan(value) ? std::uint16_t{0x7fff} : encode(dtype, value);
        std::memcpy(&c.logits[at], &bits, 2);
        value = decode(dtype, bits);
      }
      c.exact.push_back(value);
    }
  }
  if (spec.correction_bias) {
    for (std::int64_t e = 0; e < spec.num_experts; ++e) {
      // Of both signs, so that choice scores go below zero; equal ones where logits are to tie.
      const auto b = static_cast<float>(kind == Logits::ties || kind == Logits::equal
                                            ? static_cast<double>(random() % 3) * 0.25 - 0.5
                                            : normal(random) * 0.5 - 0.25);
      c.bias.push_back(b);
      c.exact_bias.push_back(static_cast<double>(b));
    }
  }
  return c;
}

}  // namespace oracle
