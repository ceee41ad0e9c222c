#pragma once

#include <string>
#include <vector>

#include "varmoe/router_spec.hpp"

/// Every routing method, for tests that go over all of them.
namespace varmoe::test {

struct RouterMethod {
  std::string name;
  RouterSpec spec;  ///< without num_experts and top_k
  bool grouped() const { return spec.num_groups > 1; }
};

inline std::vector<RouterMethod> router_methods() {
  std::vector<RouterMethod> methods;
  const auto add = [&](const char* name, auto change) {
    RouterSpec spec;
    change(spec);
    methods.push_back({name, spec});
  };
  const auto sigmoid = [](RouterSpec& s) { s.scoring = Scoring::sigmoid; };
  const auto deepseek_v3 = [&](RouterSpec& s) {
    sigmoid(s);
    s.correction_bias = s.renormalize = true;
    s.epsilon = 1e-20f;
    s.scaling_factor = 2.5f;
  };
  add("softmax", [](RouterSpec&) {});
  add("softmax, renormalised", [](RouterSpec& s) { s.renormalize = true; });
  add("softmax, renormalised with epsilon, scaled", [](RouterSpec& s) {
    s.renormalize = true;
    s.epsilon = 1e-3f;
    s.scaling_factor = 16;
  });
  add("top-k, then softmax", [](RouterSpec& s) { s.order = ScoreOrder::after_top_k; });
  add("top-k, then softmax, renormalised with epsilon", [](RouterSpec& s) {
    s.order = ScoreOrder::after_top_k;
    s.renormalize = true;
    s.epsilon = 0.5f;
  });
  add("softmax with bias", [](RouterSpec& s) { s.correction_bias = s.renormalize = true; });
  add("sigmoid", sigmoid);
  add("sigmoid, renormalised", [&](RouterSpec& s) {
    sigmoid(s);
    s.renormalize = true;
    s.epsilon = 1e-20f;
  });
  add("sigmoid on the input", [&](RouterSpec& s) {
    sigmoid(s);
    s.weight_on_input = true;
  });
  add("sigmoid with bias", deepseek_v3);
  add("sigmoid with bias, groups by two best, zero outside", [&](RouterSpec& s) {
    deepseek_v3(s);
    s.num_groups = 4;
    s.top_groups = 2;
    s.group_score = GroupScore::top2_sum;
    s.outside_groups = OutsideGroups::as_zero;
  });
  add("sigmoid with bias, groups by two best", [&](RouterSpec& s) {
    deepseek_v3(s);
    s.num_groups = 4;
    s.top_groups = 3;
    s.group_score = GroupScore::top2_sum;
  });
  add("sigmoid, groups by best", [&](RouterSpec& s) {
    sigmoid(s);
    s.num_groups = 2;
    s.top_groups = 1;
  });
  add("softmax, groups by best", [](RouterSpec& s) {
    s.num_groups = 4;
    s.top_groups = 2;
    s.scaling_factor = 16;
  });
  add("softmax, groups by two best", [](RouterSpec& s) {
    s.num_groups = 4;
    s.top_groups = 2;
    s.group_score = GroupScore::top2_sum;
    s.renormalize = true;
  });
  return methods;
}

/// The method for `experts` and `top_k`; k is cut to what the groups hold.
inline RouterSpec router_of(const RouterMethod& method, std::int64_t experts, std::int64_t top_k,
                            LogitType type = LogitType::fp32) {
  RouterSpec spec = method.spec;
  spec.num_experts = experts;
  spec.logit_type = type;
  const std::int64_t within = experts / spec.num_groups * spec.top_groups;
  spec.top_k = top_k < within ? top_k : within;
  return spec;
}

}  // namespace varmoe::test
