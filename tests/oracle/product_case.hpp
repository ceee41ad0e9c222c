#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "oracle/half_types.hpp"
#include "oracle/parallel.hpp"
#include "varmoe/router_spec.hpp"

/// Inputs of a router that multiplies itself, its logits in fp64, and what a result in fp32 must agree with.
namespace oracle {

/// Numbers of one of the router's types, as stored and as they count.
struct TypedNumbers {
  std::vector<std::byte> bytes;
  std::vector<double> exact;
};

/// `rows` × `columns` of `value()`, `stride` elements between rows; gaps hold NaN.
template <class Value>
TypedNumbers typed_numbers(varmoe::LogitType type, std::int64_t rows, std::int64_t columns,
                           std::int64_t stride, const Value& value) {
  TypedNumbers n;
  const std::size_t size = type == varmoe::LogitType::fp32 ? 4 : 2;
  n.bytes.assign(static_cast<std::size_t>(rows * stride) * size, std::byte{0xff});
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      const auto at = static_cast<std::size_t>(r * stride + c) * size;
      if (type == varmoe::LogitType::fp32) {
        const auto rounded = static_cast<float>(value());
        std::memcpy(&n.bytes[at], &rounded, 4);
        n.exact.push_back(static_cast<double>(rounded));
      } else {
        const auto dtype = type == varmoe::LogitType::bf16 ? varmoe::DType::bf16 : varmoe::DType::fp16;
        const std::uint16_t bits = encode(dtype, value());
        std::memcpy(&n.bytes[at], &bits, 2);
        n.exact.push_back(decode(dtype, bits));
      }
    }
  }
  return n;
}

struct ProductCase {
  varmoe::RouterSpec spec;
  std::int64_t tokens = 0, x_stride = 0, weight_stride = 0;
  TypedNumbers x, weight;
  std::vector<float> logit_bias, correction_bias;  ///< empty where the spec has none

  /// One logit, and the sum of its terms' magnitudes.
  double logit(std::int64_t t, std::int64_t e, double& magnitude) const {
    double sum = 0;
    magnitude = 0;
    for (std::int64_t k = 0; k < spec.hidden_size; ++k) {
      const double term = x.exact[static_cast<std::size_t>(t * spec.hidden_size + k)] *
                          weight.exact[static_cast<std::size_t>(e * spec.hidden_size + k)];
      sum += term;
      magnitude += std::abs(term);
    }
    if (!logit_bias.empty()) sum += static_cast<double>(logit_bias[static_cast<std::size_t>(e)]);
    return sum;
  }

  /// Empty when logits [tokens, E] are right to fp32 sums' rounding; tokens apart by `step`.
  std::string problem(const std::vector<float>& logits, std::int64_t step = 1) const {
    const std::int64_t count = (tokens + step - 1) / step;
    std::vector<std::string> found(static_cast<std::size_t>(count));
    parallel_for(count, 0, [&](std::int64_t i) {
      const std::int64_t t = i * step;
      for (std::int64_t e = 0; e < spec.num_experts && found[static_cast<std::size_t>(i)].empty(); ++e) {
        double magnitude = 0;
        const double expected = logit(t, e, magnitude);
        const auto got = static_cast<double>(logits[static_cast<std::size_t>(t * spec.num_experts + e)]);
        if (!(std::abs(got - expected) <= 4e-6 * (magnitude + std::abs(expected))))
          found[static_cast<std::size_t>(i)] = "logit " + std::to_string(e) + " of token " +
                                               std::to_string(t) + " is " + std::to_string(got) + ", not " +
                                               std::to_string(expected);
      }
    });
    for (const std::string& text : found)
      if (!text.empty()) return text;
    return {};
  }
};

/// `gap`: elements, a multiple of 8, between a row's end and the next.
inline ProductCase make_product_case(const varmoe::RouterSpec& spec, std::int64_t tokens, std::uint64_t seed,
                                     std::int64_t gap = 0) {
  ProductCase c;
  c.spec = spec;
  c.tokens = tokens;
  c.x_stride = spec.hidden_size + gap;
  c.weight_stride = spec.hidden_size + 2 * gap;
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const double scale = 1 / std::sqrt(static_cast<double>(spec.hidden_size));
  const auto x_type =
      spec.input_type == varmoe::DType::bf16 ? varmoe::LogitType::bf16 : varmoe::LogitType::fp16;
  c.x = typed_numbers(x_type, tokens, spec.hidden_size, c.x_stride, [&] { return normal(random); });
  c.weight = typed_numbers(spec.weight_type, spec.num_experts, spec.hidden_size, c.weight_stride,
                           [&] { return normal(random) * scale; });
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    if (spec.logit_bias) c.logit_bias.push_back(static_cast<float>(normal(random)));
    if (spec.correction_bias) c.correction_bias.push_back(static_cast<float>(normal(random) * 0.25));
  }
  return c;
}

}  // namespace oracle
