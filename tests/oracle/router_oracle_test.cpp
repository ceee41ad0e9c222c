#include "oracle/router_oracle.hpp"

#include <doctest/doctest.h>

#include "oracle/router_case.hpp"

using namespace varmoe;

namespace {

// Computed by hand-written transcriptions of the families' formulas, apart from this repository.
const std::vector<double> kLogits = {0.5,  -1.25, 2.0,  0.0,   1.5, -0.5, 0.25, 2.5,
                                     -2.0, 1.0,   0.75, -0.75, 3.0, -3.0, 1.25, -1.5};
const std::vector<double> kBias = {0.3, 0.0, -0.2, 0.1,  -0.4, 0.2, 0.0, -0.5,
                                   0.6, 0.0, 0.1,  -0.1, -0.6, 0.5, 0.0, 0.25};

void check(const RouterSpec& spec, const std::vector<double>& bias, std::vector<std::int32_t> ids,
           const std::vector<double>& weights) {
  REQUIRE(spec.validate().ok());
  const auto r = oracle::route_token(spec, kLogits, bias);
  CHECK(r.ids == ids);
  REQUIRE(r.weights.size() == weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i)
    CHECK(r.weights[i] == doctest::Approx(weights[i]).epsilon(1e-14));
}

RouterSpec spec_of(std::int64_t top_k) {
  RouterSpec spec;
  spec.num_experts = 16;
  spec.top_k = top_k;
  return spec;
}

RouterSpec deepseek_v3() {
  RouterSpec spec = spec_of(4);
  spec.scoring = Scoring::sigmoid;
  spec.correction_bias = spec.renormalize = true;
  spec.epsilon = 1e-20f;
  spec.scaling_factor = 2.5f;
  return spec;
}

}  // namespace

TEST_CASE("the router oracle computes the families' formulas") {
  RouterSpec softmax = spec_of(4);
  check(softmax, {}, {12, 7, 2, 4},
        {0.3452855420669339, 0.20942626761909167, 0.12702345226016218, 0.077043618298332367});
  const std::vector<double> over_chosen = {0.45505423392341127, 0.27600434470659363, 0.1674050972784433,
                                           0.10153632409155181};
  RouterSpec mixtral = softmax;
  mixtral.renormalize = true;
  check(mixtral, {}, {12, 7, 2, 4}, over_chosen);
  RouterSpec gpt_oss = softmax;
  gpt_oss.order = ScoreOrder::after_top_k;
  check(gpt_oss, {}, {12, 7, 2, 4}, over_chosen);
  RouterSpec llama4 = spec_of(1);
  llama4.scoring = Scoring::sigmoid;
  check(llama4, {}, {12}, {0.95257412682243336});
  RouterSpec deepseek_v2 = softmax;
  deepseek_v2.num_groups = 4;
  deepseek_v2.top_groups = 2;
  deepseek_v2.scaling_factor = 16;
  check(deepseek_v2, {}, {12, 7, 4, 14},
        {5.5245686730709425, 3.3508202819054667, 1.2326978927733179, 0.96002608418233071});
  check(deepseek_v3(), kBias, {0, 10, 14, 9},
        {0.55379013622172912, 0.60425227076123078, 0.69154878789257168, 0.65040880512446853});
}

TEST_CASE("the router oracle's groups: two best, and what lies outside of them") {
  RouterSpec spec = deepseek_v3();
  spec.num_groups = 4;
  spec.top_groups = 2;
  spec.group_score = GroupScore::top2_sum;
  for (const OutsideGroups outside : {OutsideGroups::never, OutsideGroups::as_zero}) {
    spec.outside_groups = outside;
    check(spec, kBias, {0, 10, 9, 8},
          {0.72315101405326609, 0.78904554950400629, 0.84931774008089977, 0.13848569636182823});
  }
  // Every choice score below zero: an outsider's zero goes before all of them.
  std::vector<double> low = kBias;
  for (double& b : low) b -= 1;
  check(spec, low, {4, 5, 6, 7},
        {0.76225504623190665, 0.35199518616209058, 0.52413802919613106, 0.86161173840987149});
  spec.outside_groups = OutsideGroups::never;
  check(spec, low, {0, 10, 9, 8},
        {0.72315101405326609, 0.78904554950400629, 0.84931774008089977, 0.13848569636182823});
}

TEST_CASE("the router oracle ranks NaN as -infinity, breaks ties by index, and divides by no zero") {
  RouterSpec spec = spec_of(3);
  spec.num_experts = 5;
  spec.renormalize = true;
  const double nan = NAN, inf = INFINITY;
  using Ids = std::vector<std::int32_t>;
  auto r = oracle::route_token(spec, std::vector<double>{nan, 1, nan, 1, 0}, {});
  CHECK(r.ids == Ids{1, 3, 4});
  r = oracle::route_token(spec, std::vector<double>{nan, -inf, nan, -inf, nan}, {});
  CHECK(r.ids == Ids{0, 1, 2});
  for (const double w : r.weights) CHECK(w == 0);
  r = oracle::route_token(spec, std::vector<double>{0, inf, nan, inf, -inf}, {});
  CHECK(r.ids == Ids{1, 3, 0});
  CHECK(r.weights == std::vector<double>{0.5, 0.5, 0});
  spec.scoring = Scoring::sigmoid;
  r = oracle::route_token(spec, std::vector<double>{-inf, -inf, nan, -inf, -inf}, {});
  for (const double w : r.weights) CHECK(w == 0);
}

TEST_CASE("a wrong routing is noticed") {
  const RouterSpec spec = spec_of(4);
  const auto r = oracle::route_token(spec, kLogits, {});
  std::vector<float> weights(r.weights.begin(), r.weights.end());
  const auto problem = [&](const std::vector<std::int32_t>& ids, const std::vector<float>& w) {
    return oracle::routing_problem(spec, kLogits, {}, ids, w);
  };
  CHECK(problem(r.ids, weights).empty());
  CHECK_FALSE(problem({12, 7, 4, 2}, weights).empty());
  CHECK_FALSE(problem({12, 7, 2, 2}, weights).empty());
  CHECK_FALSE(problem({12, 7, 2, 16}, weights).empty());
  std::vector<float> wrong = weights;
  wrong[2] *= 1.0001f;
  CHECK_FALSE(problem(r.ids, wrong).empty());
  wrong[2] = NAN;
  CHECK_FALSE(problem(r.ids, wrong).empty());
}

TEST_CASE("the alignment oracle: blocks of one expert, sentinels, and nothing for ids that are none") {
  const std::vector<std::int64_t> ids = {2, 0, -1, 2, 5, 2, 0, 3};
  const auto a = oracle::align_rows(4, 2, ids, 12);
  CHECK(a.num_tokens_post_pad == 8);
  CHECK(a.sorted_token_ids == std::vector<std::int32_t>{1, 6, 0, 3, 5, 8, 7, 8, 8, 8, 8, 8});
  CHECK(a.expert_ids == std::vector<std::int32_t>{0, 2, 2, 3, -1, -1});
}
