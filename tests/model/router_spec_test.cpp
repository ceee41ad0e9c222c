#include "varmoe/router_spec.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <limits>

#include "support/router_methods.hpp"

using namespace varmoe;

namespace {

RouterSpec deepseek_v3() {
  RouterSpec spec;
  spec.num_experts = 256;
  spec.top_k = 8;
  spec.scoring = Scoring::sigmoid;
  spec.correction_bias = true;
  spec.num_groups = 8;
  spec.top_groups = 4;
  spec.group_score = GroupScore::top2_sum;
  return spec;
}

std::string refusal(const std::function<void(RouterSpec&)>& change) {
  RouterSpec spec = deepseek_v3();
  REQUIRE(spec.validate().ok());
  change(spec);
  const Status status = spec.validate();
  if (status) return "accepted";
  CHECK(status.error().code() == ErrorCode::invalid_spec);
  return status.error().message();
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a router that multiplies itself: what it takes and its signature") {
  RouterSpec spec;
  spec.num_experts = 64;
  spec.top_k = 6;
  const std::string given = router_signature(spec);
  // Read where there is a product alone.
  spec.weight_type = LogitType::fp16;
  spec.logit_bias = true;
  CHECK(router_signature(spec) == given);
  spec.hidden_size = 2048;
  CHECK(spec.validate().ok());
  CHECK(router_signature(spec) == given + " hidden=2048 x=bf16 weight=fp16 logit_bias=1");
  for (const std::int64_t hidden :
       {std::int64_t{-8}, std::int64_t{4}, std::int64_t{2049}, kMaxRouterHidden + 8}) {
    spec.hidden_size = hidden;
    const Status status = spec.validate();
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().message().find("multiple of 8") != std::string::npos);
  }
  spec.hidden_size = 2048;
  spec.logit_type = LogitType::bf16;
  CHECK(spec.validate().error().message().find("must be fp32") != std::string::npos);
}

TEST_CASE("a router spec out of range is refused by field, value and what is allowed") {
  using S = RouterSpec;
  CHECK(contains(refusal([](S& s) { s.num_experts = 0; }), "num_experts is 0; must be from 1 to 1024"));
  CHECK(contains(refusal([](S& s) { s.num_experts = 1025; }), "num_experts is 1025"));
  CHECK(contains(refusal([](S& s) { s.top_k = 33; }), "top_k is 33; must be from 1 to 32"));
  CHECK(contains(refusal([](S& s) {
                   s.num_experts = 4;
                   s.num_groups = s.top_groups = 1;
                   s.top_k = 5;
                 }),
                 "top_k is 5; must be from 1 to 4"));
  CHECK(contains(refusal([](S& s) { s.top_k = 0; }), "top_k is 0"));
  CHECK(contains(refusal([](S& s) { s.num_groups = 7; }), "num_groups is 7"));
  CHECK(contains(refusal([](S& s) { s.num_groups = 64; }), "from 1 to 32"));
  CHECK(
      contains(refusal([](S& s) { s.top_groups = 9; }), "top_groups is 9; must be from 1 to num_groups, 8"));
  CHECK(contains(refusal([](S& s) { s.top_groups = 0; }), "top_groups is 0"));
  CHECK(contains(refusal([](S& s) {
                   s.num_experts = 32;
                   s.num_groups = 16;
                   s.top_groups = 3;
                 }),
                 "hold 6 experts"));
  CHECK(contains(refusal([](S& s) {
                   s.num_experts = 8;
                   s.top_k = 2;
                 }),
                 "a group has 1 expert"));
  CHECK(contains(refusal([](S& s) { s.epsilon = -1; }), "epsilon is -1"));
  CHECK(contains(refusal([](S& s) { s.epsilon = std::numeric_limits<float>::infinity(); }), "epsilon"));
  CHECK(contains(refusal([](S& s) { s.scaling_factor = std::numeric_limits<float>::quiet_NaN(); }),
                 "scaling_factor"));
  CHECK(contains(refusal([](S& s) {
                   s.scoring = Scoring::softmax;
                   s.order = ScoreOrder::after_top_k;
                 }),
                 "correction_bias"));
  CHECK(contains(refusal([](S& s) { s.scoring = static_cast<Scoring>(9); }), "scoring is 9"));
  CHECK(contains(refusal([](S& s) { s.logit_type = static_cast<LogitType>(3); }), "logit_type is 3"));
}

TEST_CASE("a router's signature tells methods apart, and only methods") {
  const auto methods = test::router_methods();
  for (std::size_t a = 0; a < methods.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      // Llama-4 differs in what the layer does with the weight.
      if (methods[a].name == "sigmoid on the input" && methods[b].name == "sigmoid") continue;
      CHECK(router_signature(test::router_of(methods[a], 64, 4)) !=
            router_signature(test::router_of(methods[b], 64, 4)));
    }
  }
  RouterSpec spec = deepseek_v3();
  const std::string text = router_signature(spec);
  spec.order = ScoreOrder::after_top_k;  // sigmoid has no sum
  spec.epsilon = 3;                      // not renormalised
  spec.weight_on_input = true;
  CHECK(router_signature(spec) == text);
  spec.top_groups = 8;
  const std::string all_groups = router_signature(spec);
  spec.num_groups = spec.top_groups = 1;
  CHECK(router_signature(spec) == all_groups);
}

TEST_CASE("names of logit types are read back") {
  for (const LogitType type : {LogitType::fp32, LogitType::bf16, LogitType::fp16})
    CHECK(parse_logit_type(to_string(type)).value() == type);
  CHECK(contains(parse_logit_type("fp64").error().message(), "fp32, bf16, fp16"));
}

TEST_CASE("sizes of an alignment") {
  const AlignSpec spec{8, 128};
  CHECK(spec.validate().ok());
  CHECK(sorted_ids_size(spec, 0) == 0);
  CHECK(sorted_ids_size(spec, 3) == 3 * 128);  // fewer rows than experts: a block each
  CHECK(sorted_ids_size(spec, 1000) == 1000 + 8 * 127);
  CHECK(aligned_blocks(spec, 1000 + 8 * 127) == 16);
  CHECK(aligned_blocks(spec, 0) == 0);
  CHECK(contains(AlignSpec{0, 128}.validate().error().message(), "num_experts is 0"));
  CHECK(contains(AlignSpec{8, 0}.validate().error().message(), "block_size is 0"));
}
