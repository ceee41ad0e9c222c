#include "cpu/route.hpp"

#include <doctest/doctest.h>

#include <random>

#include "oracle/router_case.hpp"
#include "support/router_methods.hpp"

using namespace varmoe;

namespace {

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights, scores;
  bool operator==(const Routed&) const = default;
};

Routed route(const oracle::RouterCase& c, int threads, std::int64_t count = -1) {
  auto router = cpu::CpuRouter::create(c.spec, threads);
  REQUIRE(router.ok());
  const auto places = static_cast<std::size_t>(c.tokens * c.spec.top_k);
  Routed out{std::vector<std::int32_t>(places, -7), std::vector<float>(places, -7.0f),
             std::vector<float>(static_cast<std::size_t>(c.tokens * c.spec.num_experts), -7.0f)};
  RouteArgs args;
  args.tokens = c.tokens;
  args.logits = c.logits.data();
  args.logit_stride = c.stride;
  args.correction_bias = c.bias.empty() ? nullptr : c.bias.data();
  args.topk_ids = out.ids.data();
  args.topk_weights = out.weights.data();
  args.scores = out.scores.data();
  const auto live = static_cast<std::int32_t>(count);
  if (count >= 0) args.token_count = &live;
  (*router)->route(args);
  return out;
}

}  // namespace

TEST_CASE("the CPU router computes what the oracle computes, for every method, size and kind of logits") {
  std::uint64_t seed = 1;
  for (const auto& method : test::router_methods()) {
    for (const auto& [experts, top_k] :
         {std::pair<std::int64_t, std::int64_t>{8, 2}, {60, 4}, {128, 8}, {256, 8}, {1024, 32}}) {
      for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16}) {
        const RouterSpec spec = test::router_of(method, experts, top_k, type);
        REQUIRE_MESSAGE(spec.validate().ok(), method.name);
        for (const oracle::Logits kind : oracle::kLogits) {
          CAPTURE(method.name);
          CAPTURE(router_signature(spec));
          CAPTURE(static_cast<int>(kind));
          ++seed;
          const auto c = oracle::make_router_case(spec, 12, kind, seed, seed % 3 == 0 ? 5 : 0);
          const Routed out = route(c, 1);
          const std::string problem = c.problem(out.ids.data(), out.weights.data(), c.tokens);
          CHECK_MESSAGE(problem.empty(), problem);
          const std::string scores = c.scores_problem(out.scores.data(), c.tokens);
          CHECK_MESSAGE(scores.empty(), scores);
        }
      }
    }
  }
}

TEST_CASE("one expert, and every expert chosen") {
  for (const auto& method : test::router_methods()) {
    if (method.grouped()) continue;
    for (const std::int64_t experts : {1, 7, 32}) {
      const RouterSpec spec = test::router_of(method, experts, experts);
      const auto c = oracle::make_router_case(spec, 5, oracle::Logits::normal, 3);
      const Routed out = route(c, 1);
      CAPTURE(method.name);
      CHECK(c.problem(out.ids.data(), out.weights.data(), c.tokens) == "");
    }
  }
}

TEST_CASE("the CPU router: any number of threads gives the same bits, and rows beyond the count stay") {
  const auto methods = test::router_methods();
  const RouterSpec spec = test::router_of(methods.at(10), 256, 8);
  const auto c = oracle::make_router_case(spec, 3000, oracle::Logits::normal, 9);
  const Routed one = route(c, 1);
  CHECK(route(c, 4) == one);
  for (const std::int64_t count : {0, 1, 2999, 4000}) {
    const Routed some = route(c, 3, count);
    const auto live = static_cast<std::size_t>(std::min<std::int64_t>(count, 3000) * spec.top_k);
    CHECK(
        std::equal(some.ids.begin(), some.ids.begin() + static_cast<std::ptrdiff_t>(live), one.ids.begin()));
    CHECK(std::all_of(some.ids.begin() + static_cast<std::ptrdiff_t>(live), some.ids.end(),
                      [](std::int32_t id) { return id == -7; }));
  }
}

TEST_CASE("moe_align_block_size on the CPU is the oracle's, entry by entry") {
  std::mt19937_64 random(5);
  for (const std::int64_t experts : {1, 4, 60, 256}) {
    for (const std::int64_t block : {1, 16, 128}) {
      for (const std::int64_t rows : {0, 1, 63, 2000}) {
        std::vector<std::int64_t> ids64;
        for (std::int64_t i = 0; i < rows; ++i)
          ids64.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(experts + 3)) - 1);
        const std::vector<std::int32_t> ids32(ids64.begin(), ids64.end());
        const AlignSpec spec{experts, block};
        AlignArgs args;
        args.rows = rows;
        args.sorted_size = sorted_ids_size(spec, rows) + (rows % 2 == 0 ? 5 : 0);
        const auto blocks = aligned_blocks(spec, args.sorted_size);
        std::vector<std::int32_t> sorted(static_cast<std::size_t>(args.sorted_size), -7),
            expert_ids(static_cast<std::size_t>(blocks), -7);
        std::int32_t padded = -7;
        args.id_type = block == 16 ? IdType::int64 : IdType::int32;
        args.topk_ids = block == 16 ? static_cast<const void*>(ids64.data()) : ids32.data();
        args.sorted_token_ids = sorted.data();
        args.expert_ids = expert_ids.data();
        args.num_tokens_post_pad = &padded;
        cpu::align_rows(spec, args);
        const auto expected = oracle::align_rows(experts, block, ids64, args.sorted_size);
        CHECK(sorted == expected.sorted_token_ids);
        CHECK(expert_ids == expected.expert_ids);
        CHECK(padded == expected.num_tokens_post_pad);
      }
    }
  }
}
