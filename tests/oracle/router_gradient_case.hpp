#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "oracle/product_case.hpp"
#include "oracle/router_case.hpp"
#include "oracle/router_gradient_oracle.hpp"
#include "oracle/statistics_oracle.hpp"
#include "varmoe/router_gradient.hpp"

/// Inputs of a router's gradient, and what is wrong with a result.
namespace oracle {

/// A number of one of the router's types.
inline double typed_at(varmoe::LogitType type, const std::byte* bytes, std::int64_t at) {
  if (type == varmoe::LogitType::fp32) {
    float value;
    std::memcpy(&value, bytes + at * 4, 4);
    return static_cast<double>(value);
  }
  std::uint16_t bits;
  std::memcpy(&bits, bytes + at * 2, 2);
  return decode(type == varmoe::LogitType::bf16 ? varmoe::DType::bf16 : varmoe::DType::fp16, bits);
}

/// How far rounding to a type may move a number.
inline double rounding_of(varmoe::LogitType type, double value) {
  switch (type) {
    case varmoe::LogitType::fp32:
      return 0;
    case varmoe::LogitType::bf16:
      return std::ldexp(std::abs(value), -8);
    case varmoe::LogitType::fp16:
      return std::ldexp(std::abs(value), -11) + std::ldexp(1.0, -25);
  }
  return 0;
}

struct GradientCase {
  varmoe::RouterGradientSpec spec;
  RouterCase router;
  std::vector<std::int64_t> ids;     ///< [tokens, k]; about one in 16 is none
  std::vector<float> dweights;       ///< [tokens, k]
  std::vector<std::int32_t> widths;  ///< [E]
  std::vector<std::int32_t> counts;  ///< [E]
  std::vector<float> means;          ///< [E]
  float coefficients[varmoe::kRouterLosses] = {};
  std::int64_t loss_tokens = 0;  ///< 0: those that are live

  /// What is wrong with rows [0, live) of dlogits [tokens, stride]; `with_weights`: dweights were given.
  std::string problem(const std::vector<std::byte>& dlogits, std::int64_t stride, std::int64_t live,
                      bool with_weights = true) const {
    const auto experts = static_cast<std::size_t>(spec.router.num_experts),
               k = static_cast<std::size_t>(spec.router.top_k);
    LossInputs in;
    std::copy(coefficients, coefficients + varmoe::kRouterLosses, in.coefficients.begin());
    in.tokens = static_cast<double>(loss_tokens != 0 ? loss_tokens : live);
    in.counts.assign(counts.begin(), counts.end());
    in.means.assign(means.begin(), means.end());
    in.widths = widths;
    const Numbers by_mean = by_mean_score(in, static_cast<double>(k));
    std::vector<std::string> found(static_cast<std::size_t>(live));
    parallel_for(live, 0, [&](std::int64_t t) {
      const auto at = static_cast<std::size_t>(t);
      const auto given = std::span(dweights).subspan(at * k, with_weights ? k : 0);
      const Numbers expected =
          dlogits_of(spec.router, router.row(t), std::span(ids).subspan(at * k, k), given, in, by_mean);
      double floor = 1e-30;
      for (const float g : given) floor += 1e-30 * std::abs(static_cast<double>(g));
      for (std::size_t e = 0; e < experts; ++e) {
        const double got =
            typed_at(spec.dlogit_type, dlogits.data(), t * stride + static_cast<std::int64_t>(e));
        const double right = expected.value[e];
        const double allowed = 3e-5 * expected.magnitude[e] + rounding_of(spec.dlogit_type, right) + floor;
        if (!(std::abs(got - right) <= allowed) && found[at].empty())
          found[at] = "dlogit " + std::to_string(e) + " of token " + std::to_string(t) + " is " +
                      std::to_string(got) + ", not " + std::to_string(right) + " to " +
                      std::to_string(allowed);
      }
    });
    for (const std::string& text : found)
      if (!text.empty()) return text;
    return {};
  }
};

/// Logits of a kind, the experts that the oracle chooses, and what the statistics of all tokens come to.
inline GradientCase make_gradient_case(const varmoe::RouterGradientSpec& spec, std::int64_t tokens,
                                       Logits kind, std::uint64_t seed, std::int64_t gap = 0) {
  GradientCase c;
  c.spec = spec;
  c.router = make_router_case(spec.router, tokens, kind, seed, gap);
  std::mt19937_64 random(seed * 7 + 1);
  std::normal_distribution<double> normal;
  const std::int64_t experts = spec.router.num_experts;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const std::int32_t id : route_token(spec.router, c.router.row(t), c.router.exact_bias).ids) {
      c.ids.push_back(random() % 16 == 0 ? (random() % 2 != 0 ? -1 : experts) : id);
      c.dweights.push_back(static_cast<float>(normal(random)));
    }
  }
  for (std::int64_t e = 0; e < experts; ++e)
    c.widths.push_back(seed % 3 == 0 ? 1 : static_cast<std::int32_t>(64 * (1 + e % 4)));
  const auto statistics =
      statistics_of({experts, spec.router.top_k, varmoe::LogitType::fp32, spec.router.scoring},
                    c.router.exact, c.ids, c.widths, tokens);
  c.counts.assign(statistics.counts.begin(), statistics.counts.end());
  for (const double mean : statistics.mean_scores) c.means.push_back(static_cast<float>(mean));
  for (std::size_t i = 0; i < varmoe::kRouterLosses; ++i)
    if ((spec.losses >> i & 1) != 0) c.coefficients[i] = static_cast<float>(normal(random));
  return c;
}

/// A product's gradient: inputs as of a product, dlogits, and what lies in the outputs before (for
/// accumulation).
struct ProductGradientCase {
  varmoe::RouterGradientSpec spec;
  ProductCase product;
  std::int64_t dlogit_stride = 0;
  std::vector<float> dlogits;      ///< [tokens, dlogit_stride]
  TypedNumbers dx, dweight;        ///< strides as x and weight
  std::vector<float> dlogit_bias;  ///< [E]; empty without a logit bias
  varmoe::LogitType input() const {
    return spec.router.input_type == varmoe::DType::bf16 ? varmoe::LogitType::bf16 : varmoe::LogitType::fp16;
  }

  double dlogit(std::int64_t t, std::int64_t e) const {
    return static_cast<double>(dlogits[static_cast<std::size_t>(t * dlogit_stride + e)]);
  }

  /// Rows apart by `step`, columns likewise.
  std::string dx_problem(const std::vector<std::byte>& got, std::int64_t live, bool accumulated,
                         std::int64_t step = 1) const {
    const auto hidden = spec.router.hidden_size;
    return first_problem(
        "dx", live, step,
        [&](std::int64_t t, std::int64_t h, double& sum, double& size) {
          for (std::int64_t e = 0; e < spec.router.num_experts; ++e) {
            const double term = dlogit(t, e) * product.weight.exact[static_cast<std::size_t>(e * hidden + h)];
            sum += term;
            size += std::abs(term);
          }
          if (accumulated) sum += dx.exact[static_cast<std::size_t>(t * hidden + h)];
          size += std::abs(sum);
          return typed_at(input(), got.data(), t * product.x_stride + h);
        },
        input());
  }

  std::string dweight_problem(const std::vector<std::byte>& got, std::int64_t live, bool accumulated,
                              std::int64_t step = 1) const {
    const auto hidden = spec.router.hidden_size;
    return first_problem(
        "dweight", spec.router.num_experts, step,
        [&](std::int64_t e, std::int64_t h, double& sum, double& size) {
          for (std::int64_t t = 0; t < live; ++t) {
            const double term = dlogit(t, e) * product.x.exact[static_cast<std::size_t>(t * hidden + h)];
            sum += term;
            size += std::abs(term);
          }
          if (accumulated) sum += dweight.exact[static_cast<std::size_t>(e * hidden + h)];
          size += std::abs(sum);
          return typed_at(spec.dweight_type, got.data(), e * product.weight_stride + h);
        },
        spec.dweight_type);
  }

  std::string bias_problem(const std::vector<float>& got, std::int64_t live, bool accumulated) const {
    for (std::int64_t e = 0; e < spec.router.num_experts; ++e) {
      const auto at = static_cast<std::size_t>(e);
      double sum = 0, size = 0;
      for (std::int64_t t = 0; t < live; ++t) {
        sum += dlogit(t, e);
        size += std::abs(dlogit(t, e));
      }
      if (accumulated) sum += static_cast<double>(dlogit_bias[at]);
      if (!(std::abs(static_cast<double>(got[at]) - sum) <= 4e-6 * (size + std::abs(sum))))
        return "dlogit_bias " + std::to_string(e) + " is " + std::to_string(got[at]) + ", not " +
               std::to_string(sum);
    }
    return {};
  }

 private:
  template <class F>
  std::string first_problem(const char* name, std::int64_t rows, std::int64_t step, const F& of,
                            varmoe::LogitType type) const {
    const std::int64_t count = (rows + step - 1) / step;
    std::vector<std::string> found(static_cast<std::size_t>(count));
    parallel_for(count, 0, [&](std::int64_t i) {
      for (std::int64_t h = i % step;
           h < spec.router.hidden_size && found[static_cast<std::size_t>(i)].empty(); h += step) {
        double right = 0, size = 0;
        const double got = of(i * step, h, right, size);
        if (!(std::abs(got - right) <= 4e-6 * size + 1.001 * rounding_of(type, right)))
          found[static_cast<std::size_t>(i)] = std::string(name) + "[" + std::to_string(i * step) + ", " +
                                               std::to_string(h) + "] is " + std::to_string(got) + ", not " +
                                               std::to_string(right);
      }
    });
    for (const std::string& text : found)
      if (!text.empty()) return text;
    return {};
  }
};

inline ProductGradientCase make_product_gradient_case(const varmoe::RouterGradientSpec& spec,
                                                      std::int64_t tokens, std::uint64_t seed,
                                                      std::int64_t gap = 0) {
  ProductGradientCase c;
  c.spec = spec;
  c.product = make_product_case(spec.router, tokens, seed, gap);
  c.dlogit_stride = spec.router.num_experts + gap / 8;
  std::mt19937_64 random(seed * 13 + 5);
  std::normal_distribution<double> normal;
  c.dlogits.assign(static_cast<std::size_t>(tokens * c.dlogit_stride),
                   std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t e = 0; e < spec.router.num_experts; ++e)
      c.dlogits[static_cast<std::size_t>(t * c.dlogit_stride + e)] = static_cast<float>(normal(random) * 0.1);
  c.dx = typed_numbers(c.input(), tokens, spec.router.hidden_size, c.product.x_stride,
                       [&] { return normal(random); });
  c.dweight = typed_numbers(spec.dweight_type, spec.router.num_experts, spec.router.hidden_size,
                            c.product.weight_stride, [&] { return normal(random); });
  if (spec.router.logit_bias)
    for (std::int64_t e = 0; e < spec.router.num_experts; ++e)
      c.dlogit_bias.push_back(static_cast<float>(normal(random)));
  return c;
}

}  // namespace oracle
