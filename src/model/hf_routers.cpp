#include <fmt/format.h>

#include "base/text.hpp"
#include "model/model_readers.hpp"

/// Routers of the Hugging Face families. Fields, defaults and formulas are those of each family's
/// configuration and modeling classes; docs/routing.md lists them.
namespace varmoe::model {
namespace {

/// A text field that may say one thing only.
void require_name(const JsonFields& text, const char* field, std::initializer_list<std::string_view> known) {
  if (!text.has(field)) return;
  const std::string& value = text.string(field);
  for (const std::string_view name : known)
    if (value == name) return;
  text.fail(fmt::format("{} \"{}\" is not known of this family; must be {}", field, printable(value, 64),
                        join(std::vector<std::string_view>(known), " or ")));
}

float scaling_factor(const JsonFields& text, double fallback) {
  return static_cast<float>(text.real_or("routed_scaling_factor", -1e6, 1e6, fallback));
}

void read_groups(const JsonFields& text, RouterSpec& router, std::int64_t default_groups,
                 std::int64_t default_kept) {
  router.num_groups = text.integer_or("n_group", 1, kMaxExpertGroups, default_groups);
  router.top_groups = text.integer_or("topk_group", 1, kMaxExpertGroups, default_kept);
  if (router.num_experts % router.num_groups != 0)
    text.fail(fmt::format("n_group is {}; must divide n_routed_experts, {}", router.num_groups,
                          router.num_experts));
  if (router.top_groups > router.num_groups)
    text.fail(
        fmt::format("topk_group is {}; must be at most n_group, {}", router.top_groups, router.num_groups));
}

/// Softmax over all experts, top-k; renormalised on request, or always (Mixtral).
void read_softmax(const JsonFields& text, RouterSpec& router, bool always) {
  router.renormalize = always || text.boolean_or("norm_topk_prob", false);
}

void read_deepseek_v2(const JsonFields& text, RouterSpec& router, std::vector<std::string>& notes) {
  require_name(text, "scoring_func", {"softmax"});
  require_name(text, "topk_method", {"greedy", "group_limited_greedy"});
  router.logit_type = LogitType::fp32;
  router.scaling_factor = scaling_factor(text, 1);
  if (text.string_or_empty("topk_method") == "group_limited_greedy") {
    for (const char* field : {"n_group", "topk_group"})
      if (!text.has(field))
        text.fail(fmt::format("{} is missing; topk_method group_limited_greedy needs it", field));
    read_groups(text, router, 1, 1);
  }
  if (text.boolean_or("norm_topk_prob", false))
    notes.emplace_back(
        "norm_topk_prob is true; the family's module in Hugging Face's library does not renormalise, nor "
        "does "
        "this router");
}

/// DeepSeek-V3 and what has its form: sigmoid, correction bias, groups by their two best.
void read_deepseek_v3(const JsonFields& text, RouterSpec& router, std::int64_t groups, std::int64_t kept,
                      double scaling) {
  require_name(text, "scoring_func", {"sigmoid"});
  require_name(text, "topk_method", {"noaux_tc"});
  router.logit_type = LogitType::fp32;
  router.scoring = Scoring::sigmoid;
  router.correction_bias = true;
  router.renormalize = text.boolean_or("norm_topk_prob", true);
  router.epsilon = 1e-20f;
  router.scaling_factor = scaling_factor(text, scaling);
  read_groups(text, router, groups, kept);
  router.group_score = GroupScore::top2_sum;
}

}  // namespace

RouterSpec read_hf_router(const JsonFields& text, std::string_view family, const LayerSpec& layer,
                          std::vector<std::string>& notes) {
  RouterSpec router;
  router.num_experts = layer.num_experts();
  router.top_k = layer.top_k;
  // Most families' routers are linear layers in the model's dtype.
  router.logit_type = layer.dtype == DType::fp16 ? LogitType::fp16 : LogitType::bf16;
  if (family == "deepseek_v2") {
    read_deepseek_v2(text, router, notes);
  } else if (family == "deepseek_v3" || family == "kimi_k2") {
    read_deepseek_v3(text, router, 8, 4, 2.5);
  } else if (family == "glm4_moe") {
    read_deepseek_v3(text, router, 1, 1, 1);
  } else if (family == "gpt_oss") {
    router.order = ScoreOrder::after_top_k;
    notes.emplace_back("the linear layer before the router has a bias of its own");
  } else if (family == "llama4") {
    router.scoring = Scoring::sigmoid;
    router.weight_on_input = true;
  } else if (family == "mixtral" || family == "olmoe" || family == "qwen2_moe" || family == "qwen3_moe") {
    read_softmax(text, router, family == "mixtral");
  } else {
    text.fail("the family's router is not known");
  }
  if (const Status status = router.validate(); !status)
    text.fail(fmt::format("router: {}", status.error().message()));
  return router;
}

}  // namespace varmoe::model
