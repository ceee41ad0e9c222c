// A router's own product, and router statistics, on the CPU.
#include <doctest/doctest.h>

#include <random>

#include "cpu/route.hpp"
#include "cpu/router_statistics.hpp"
#include "oracle/product_case.hpp"
#include "oracle/router_case.hpp"
#include "oracle/statistics_oracle.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;

namespace {

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, logits;
  bool operator==(const Routed&) const = default;
};

Routed route(const oracle::ProductCase& c, int threads) {
  auto router = cpu::CpuRouter::create(c.spec, threads);
  REQUIRE(router.ok());
  const auto places = static_cast<std::size_t>(c.tokens * c.spec.top_k);
  Routed out{std::vector<std::int32_t>(places, -7), std::vector<float>(places, -7.0f),
             std::vector<float>(static_cast<std::size_t>(c.tokens * c.spec.num_experts), -7.0f)};
  RouteArgs args;
  args.tokens = c.tokens;
  args.x = c.x.bytes.data();
  args.x_stride = c.x_stride;
  args.weight = c.weight.bytes.data();
  args.weight_stride = c.weight_stride;
  args.logit_bias = c.logit_bias.empty() ? nullptr : c.logit_bias.data();
  args.correction_bias = c.correction_bias.empty() ? nullptr : c.correction_bias.data();
  args.logits_out = out.logits.data();
  args.topk_ids = out.ids.data();
  args.topk_weights = out.weights.data();
  (*router)->route(args);
  return out;
}

/// The routing is that of the logits returned, by the oracle's rules.
std::string routing_problem(const oracle::ProductCase& c, const Routed& out) {
  const auto experts = static_cast<std::size_t>(c.spec.num_experts),
             k = static_cast<std::size_t>(c.spec.top_k);
  const std::vector<double> logits(out.logits.begin(), out.logits.end());
  const std::vector<double> bias(c.correction_bias.begin(), c.correction_bias.end());
  for (std::size_t t = 0; t < static_cast<std::size_t>(c.tokens); ++t) {
    const std::string what = oracle::routing_problem(c.spec, std::span(logits).subspan(t * experts, experts),
                                                     bias, std::span(out.ids).subspan(t * k, k),
                                                     std::span(out.weights).subspan(t * k, k));
    if (!what.empty()) return what;
  }
  return {};
}

}  // namespace

TEST_CASE("the CPU router's own product: every method and pair of types against fp64") {
  std::uint64_t seed = 1;
  for (const auto& method : test::router_methods()) {
    for (const DType input : {DType::bf16, DType::fp16}) {
      for (const LogitType weight : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
        RouterSpec spec = test::router_of(method, 60, 4);
        spec.hidden_size = ++seed % 2 != 0 ? 200 : 64;
        spec.input_type = input;
        spec.weight_type = weight;
        spec.logit_bias = seed % 3 == 0;
        REQUIRE(spec.validate().ok());
        const auto c = oracle::make_product_case(spec, 9, seed, seed % 4 == 0 ? 8 : 0);
        const Routed out = route(c, 1);
        CAPTURE(router_signature(spec));
        CHECK(c.problem(out.logits) == "");
        CHECK(routing_problem(c, out) == "");
        CHECK(route(c, 3) == out);
      }
    }
  }
}

TEST_CASE("the CPU router's own product: one wrong weight shows") {
  RouterSpec spec = test::router_of(test::router_methods().at(1), 8, 2);
  spec.hidden_size = 64;
  auto c = oracle::make_product_case(spec, 5, 3);
  const Routed out = route(c, 1);
  c.weight.exact[64 * 3 + 7] += 0.01;
  CHECK(c.problem(out.logits).find("logit 3") != std::string::npos);
}

TEST_CASE("router statistics on the CPU are the oracle's") {
  std::uint64_t seed = 50;
  for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid}) {
    for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
      for (const std::int64_t tokens : {0, 1, 7, 300}) {
        const RouterStatisticsSpec spec{24, 3, type, scoring};
        RouterSpec of;
        of.num_experts = 24;
        of.top_k = 3;
        of.logit_type = type;
        ++seed;
        // Infinite logits make infinite losses, of which there is nothing to compare.
        const auto c = oracle::make_router_case(of, tokens,
                                                seed % 2 != 0 ? oracle::Logits::normal : oracle::Logits::ties,
                                                seed, seed % 3 == 0 ? 5 : 0);
        std::mt19937_64 random(seed);
        std::vector<std::int64_t> ids;
        for (std::int64_t i = 0; i < tokens * 3; ++i)
          ids.push_back(static_cast<std::int64_t>(random() % 27) - 1);
        std::vector<std::int32_t> widths;
        for (int e = 0; e < 24; ++e) widths.push_back(seed % 2 != 0 ? 64 * (1 + e % 4) : 1);
        const auto expected = oracle::statistics_of(spec, c.exact, ids, widths, tokens);
        std::vector<std::int32_t> counts(24, -7);
        std::vector<float> means(24, -7.0f), losses(kRouterLosses, -7.0f);
        RouterStatisticsArgs args;
        args.tokens = tokens;
        args.logits = c.logits.data();
        args.logit_stride = c.stride;
        args.topk_ids = ids.data();
        args.id_type = IdType::int64;
        args.expert_widths = seed % 2 != 0 ? widths.data() : nullptr;
        args.tokens_per_expert = counts.data();
        args.mean_scores = means.data();
        args.losses = losses.data();
        cpu::router_statistics(spec, args);
        CHECK(oracle::statistics_problem(expected, counts, means, losses) == "");
      }
    }
  }
}

TEST_CASE("router statistics: what even and uneven loads come to") {
  // Two tokens, four experts, k = 1: even scores, all tokens to expert 0.
  const RouterStatisticsSpec spec{4, 1};
  const std::vector<float> logits(8, 0.0f);
  const std::vector<std::int32_t> widths = {32, 32, 8, 8};
  std::vector<float> losses(kRouterLosses);
  std::vector<std::int32_t> counts(4);
  RouterStatisticsArgs args;
  args.tokens = 2;
  args.logits = logits.data();
  args.expert_widths = widths.data();
  args.losses = losses.data();
  args.tokens_per_expert = counts.data();
  const std::vector<std::int32_t> hot = {0, 0}, narrow = {2, 3}, dropped = {-1, 4};
  args.topk_ids = hot.data();
  cpu::router_statistics(spec, args);
  CHECK(losses[0] == doctest::Approx(std::pow(std::log(4.0), 2)));
  CHECK(losses[1] == doctest::Approx(1.0));  // scores are even
  CHECK(losses[2] == doctest::Approx(1.0));
  CHECK(losses[3] == doctest::Approx(32.0 / 20.0));  // of the mean width
  CHECK(counts == std::vector<std::int32_t>{2, 0, 0, 0});
  args.topk_ids = narrow.data();
  cpu::router_statistics(spec, args);
  CHECK(losses[3] == doctest::Approx(8.0 / 20.0));
  args.topk_ids = dropped.data();
  cpu::router_statistics(spec, args);
  CHECK(losses[1] == 0.0f);
  CHECK(counts == std::vector<std::int32_t>(4, 0));
  const std::int32_t none = 0;
  args.token_count = &none;
  cpu::router_statistics(spec, args);
  CHECK(losses == std::vector<float>(kRouterLosses, 0.0f));
}
