#include "model/model_config.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace varmoe;
using namespace varmoe::model;

namespace {

const std::string kQwen = R"({"model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048,
  "moe_intermediate_size": 768, "num_hidden_layers": 6, "decoder_sparse_step": 1, "mlp_only_layers": [],
  "num_experts": 128, "num_experts_per_tok": 8, "torch_dtype": "bfloat16"})";
const std::string kLayer =
    R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [128, 64], "top_k": 2})";

/// The text with the value of a field replaced (a value holds no comma or brace).
std::string with(std::string text, const std::string& field, const std::string& value) {
  const auto at = text.find("\"" + field + "\": ");
  REQUIRE(at != std::string::npos);
  const auto from = at + field.size() + 4;
  const auto list = text[from] == '[' ? text.find(']', from) + 1 : text.find_first_of(",}", from);
  return text.replace(from, list - from, value);
}
/// The text with a field more.
std::string plus(std::string text, const std::string& field) {
  return text.insert(1, field + ", ");
}
/// The text without a field.
std::string without(const std::string& text, const std::string& field) {
  std::string result = with(text, field, "null");
  return result;
}

std::string refusal(const std::string& text, const ReadOptions& options = {}) {
  const auto result = read_model_text(text, "some/config.json", options);
  if (result) return "accepted";
  CHECK(result.error().code() == ErrorCode::invalid_spec);
  CHECK(result.error().message().find("some/config.json") == 0);
  CHECK(result.error().message().size() < 1500);
  return result.error().message();
}

ModelConfig read(const std::string& text, const ReadOptions& options = {}) {
  auto result = read_model_text(text, "some/config.json", options);
  REQUIRE_MESSAGE(result, (result ? "" : result.error().message()));
  for (const ModelLayer& layer : result->layers) CHECK(layer.spec.validate());
  return *result;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string family(const char* type, const std::string& fields) {
  return std::string(R"({"model_type": ")") + type +
         R"(", "hidden_size": 1024, "num_hidden_layers": 12, "num_experts_per_tok": 2, "torch_dtype": "bfloat16", )" +
         fields + "}";
}
const std::string kDeepseek = R"("n_routed_experts": 16, "moe_intermediate_size": 256)";
const std::string kLocal = R"("num_local_experts": 16, "intermediate_size": 512)";
const std::string kNamed = R"("num_experts": 16, "moe_intermediate_size": 256)";

}  // namespace

TEST_CASE("which decoder layers have experts") {
  using Indices = std::vector<int>;
  const auto indices = [](const std::string& text) {
    const ModelConfig model = read(text);
    REQUIRE(model.layers.size() == 1);
    return model.layers[0].layer_indices;
  };
  const Indices all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  CHECK(indices(family("mixtral", kLocal)) == all);
  CHECK(indices(family("olmoe", R"("num_experts": 16, "intermediate_size": 512)")) == all);
  CHECK(indices(family("gpt_oss", kLocal)) == all);
  CHECK(indices(family("qwen3_moe", kNamed)) == all);
  CHECK(indices(family("qwen2_moe", kNamed + R"(, "decoder_sparse_step": 3)")) == Indices{2, 5, 8, 11});
  CHECK(indices(family("qwen3_moe", kNamed + R"(, "decoder_sparse_step": 2, "mlp_only_layers": [3, 11])")) ==
        Indices{1, 5, 7, 9});
  CHECK(indices(family("deepseek_v2", kDeepseek)) == all);
  CHECK(indices(family("deepseek_v3", kDeepseek)) == Indices(all.begin() + 3, all.end()));
  CHECK(indices(family("deepseek_v2", kDeepseek + R"(, "first_k_dense_replace": 1, "moe_layer_freq": 4)")) ==
        Indices{4, 8});
  CHECK(indices(family("llama4", kLocal)) == all);
  CHECK(indices(family("llama4", kLocal + R"(, "interleave_moe_layer_step": 4)")) == Indices{3, 7, 11});
  CHECK(indices(family("llama4", kLocal + R"(, "moe_layers": [5, 1, 5])")) == Indices{1, 5});
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "first_k_dense_replace": 12)")),
                 "none of the 12 layers"));
  CHECK(contains(refusal(family("llama4", kLocal + R"(, "moe_layers": [12])")), "moe_layers[0] is 12"));
}

TEST_CASE("labels name layers as ranges") {
  CHECK(read(family("mixtral", kLocal)).layers[0].label == "layers 0-11");
  CHECK(read(family("qwen3_moe", kNamed + R"(, "mlp_only_layers": [0, 3, 5])")).layers[0].label ==
        "layers 1-2,4,6-11");
  CHECK(read(kLayer).layers[0].label == "layer 0");
}

TEST_CASE("what families store, compute and leave out") {
  const auto has_note = [](const ModelConfig& model, const char* part) {
    for (const std::string& note : model.notes) {
      if (contains(note, part)) return true;
    }
    return false;
  };
  ModelConfig oss = read(family("gpt_oss", kLocal + R"(, "swiglu_limit": 5.5, "hidden_act": "silu")"));
  CHECK(oss.layers[0].spec.activation == Activation::swiglu_oai);
  CHECK(oss.layers[0].spec.activation_params.alpha == 1.702f);
  CHECK(oss.layers[0].spec.activation_params.limit == 5.5f);
  CHECK(oss.layers[0].spec.gate_order == GateOrder::interleaved);
  CHECK(oss.layers[0].spec.fc1_layout == WeightLayout::kn);
  CHECK(oss.layers[0].spec.fc2_layout == WeightLayout::kn);
  CHECK(oss.layers[0].spec.bias);
  CHECK_FALSE(oss.layers[0].spec.weight_on_input);
  CHECK_FALSE(has_note(oss, "not added"));
  CHECK(has_note(oss, "router"));

  ModelConfig llama =
      read(R"({"model_type": "llama4", "text_config": )" + family("llama4_text", kLocal) + "}");
  CHECK(llama.family == "llama4");
  CHECK(llama.layers[0].spec.fc1_layout == WeightLayout::kn);
  CHECK(llama.layers[0].spec.gate_order == GateOrder::gate_first);
  CHECK(llama.layers[0].spec.activation == Activation::silu_mul);
  CHECK(has_note(llama, "shared experts"));
  CHECK(llama.layers[0].spec.weight_on_input);
  CHECK_FALSE(llama.layers[0].spec.bias);
  CHECK(has_note(llama, "rounds weight times input"));

  CHECK(has_note(read(family("deepseek_v2", kDeepseek + R"(, "n_shared_experts": 2)")), "shared experts"));
  CHECK_FALSE(has_note(read(family("deepseek_v2", kDeepseek)), "shared experts"));
  CHECK(has_note(read(family("qwen2_moe", kNamed)), "shared experts"));
  CHECK_FALSE(has_note(read(family("qwen3_moe", kNamed)), "shared experts"));

  CHECK(read(family("mixtral", kLocal + R"(, "hidden_act": "gelu")")).layers[0].spec.activation ==
        Activation::gelu_erf_mul);
  CHECK(
      read(family("mixtral", kLocal + R"(, "hidden_act": "gelu_pytorch_tanh")")).layers[0].spec.activation ==
      Activation::gelu_tanh_mul);
  CHECK(contains(refusal(family("mixtral", kLocal + R"(, "hidden_act": "mish")")), "mish"));
}

TEST_CASE("routers of the families") {
  const auto router = [](const std::string& text) {
    const ModelConfig model = read(text);
    REQUIRE(model.layers[0].router.has_value());
    CHECK(model.layers[0].router->validate());
    return *model.layers[0].router;
  };
  RouterSpec expected;
  expected.num_experts = 16;
  expected.top_k = 2;
  expected.logit_type = LogitType::bf16;
  for (const char* type : {"qwen2_moe", "qwen3_moe"}) {
    CHECK(router(family(type, kNamed)) == expected);
    CHECK(router(family(type, kNamed + R"(, "norm_topk_prob": true)")).renormalize);
  }
  CHECK(router(family("olmoe", R"("num_experts": 16, "intermediate_size": 512)")) == expected);
  RouterSpec mixtral = expected;
  mixtral.renormalize = true;
  CHECK(router(family("mixtral", kLocal)) == mixtral);
  RouterSpec oss = expected;
  oss.order = ScoreOrder::after_top_k;
  CHECK(router(family("gpt_oss", kLocal)) == oss);
  RouterSpec llama = expected;
  llama.scoring = Scoring::sigmoid;
  llama.weight_on_input = true;
  CHECK(router(family("llama4", kLocal)) == llama);

  RouterSpec v2 = expected;
  v2.logit_type = LogitType::fp32;
  CHECK(router(family("deepseek_v2", kDeepseek)) == v2);
  v2.num_groups = 4;
  v2.top_groups = 2;
  v2.scaling_factor = 16;
  CHECK(router(family("deepseek_v2", kDeepseek + R"(, "topk_method": "group_limited_greedy", "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 16.0, "scoring_func": "softmax")")) == v2);
  CHECK(contains(refusal(family("deepseek_v2", kDeepseek + R"(, "topk_method": "group_limited_greedy")")),
                 "n_group is missing"));
  CHECK(contains(refusal(family("deepseek_v2", kDeepseek + R"(, "topk_method": "noaux_tc")")),
                 "must be greedy or group_limited_greedy"));

  RouterSpec v3 = expected;
  v3.logit_type = LogitType::fp32;
  v3.scoring = Scoring::sigmoid;
  v3.correction_bias = v3.renormalize = true;
  v3.epsilon = 1e-20f;
  v3.scaling_factor = 2.5f;
  v3.num_groups = 8;
  v3.top_groups = 4;
  v3.group_score = GroupScore::top2_sum;
  CHECK(router(family("deepseek_v3", kDeepseek)) == v3);
  v3.num_groups = v3.top_groups = 1;
  v3.scaling_factor = 2.827f;
  CHECK(
      router(family("kimi_k2", kDeepseek + R"(, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc")")) == v3);
  v3.scaling_factor = 1;
  CHECK(router(family("glm4_moe", kDeepseek)) == v3);
  CHECK(read(family("glm4_moe", kDeepseek)).layers[0].label == "layers 1-11");
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "n_group": 5)")),
                 "n_group is 5; must divide n_routed_experts, 16"));
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "topk_group": 9)")), "at most n_group, 8"));
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "n_group": 16)")), "a group has 1 expert"));
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "scoring_func": "softmax")")), "sigmoid"));
  CHECK(contains(refusal(family("deepseek_v3", kDeepseek + R"(, "routed_scaling_factor": "2")")),
                 "routed_scaling_factor"));
  CHECK(contains(refusal(family("qwen3_moe", kNamed + R"(, "norm_topk_prob": 1)")), "norm_topk_prob"));
}

TEST_CASE("a layer file's router") {
  CHECK_FALSE(read(kLayer).layers[0].router.has_value());
  const ModelConfig model = read(plus(kLayer, R"("router": {"logit_type": "fp16", "scoring": "sigmoid",
    "order": "after_top_k", "renormalize": true, "epsilon": 0.5, "scaling_factor": 3, "correction_bias": true,
    "num_groups": 1, "top_groups": 1, "group_score": "top2_sum", "outside_groups": "as_zero",
    "weight_on_input": true}, "weight_on_input": true, "num_layers": 2)"));
  REQUIRE(model.layers.size() == 1);
  RouterSpec expected;
  expected.num_experts = 2;
  expected.top_k = 2;
  expected.logit_type = LogitType::fp16;
  expected.scoring = Scoring::sigmoid;
  expected.order = ScoreOrder::after_top_k;
  expected.renormalize = expected.correction_bias = expected.weight_on_input = true;
  expected.epsilon = 0.5f;
  expected.scaling_factor = 3;
  expected.group_score = GroupScore::top2_sum;
  expected.outside_groups = OutsideGroups::as_zero;
  CHECK(model.layers[0].router == expected);
  const ModelConfig two =
      read(plus(kLayer, R"("router": {}, "layers": [{}, {"router": {"scoring": "sigmoid"}}])"));
  REQUIRE(two.layers.size() == 2);
  CHECK(two.layers[0].router->scoring == Scoring::softmax);
  CHECK(two.layers[1].router->scoring == Scoring::sigmoid);
  const auto product =
      read(plus(kLayer, R"("router": {"product": true, "weight_type": "fp32", "logit_bias": true})"))
          .layers[0];
  CHECK(product.router->hidden_size == product.spec.hidden_size);
  CHECK(product.router->input_type == product.spec.dtype);
  CHECK(product.router->weight_type == LogitType::fp32);
  CHECK(product.router->logit_bias);
  ReadOptions fp16;
  fp16.dtype = DType::fp16;
  CHECK(read(plus(kLayer, R"("router": {"product": true})"), fp16).layers[0].router->input_type ==
        DType::fp16);
  CHECK(contains(refusal(plus(kLayer, R"("router": {"product": true, "logit_type": "bf16"})")),
                 "must be fp32"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"weight_type": "fp32"})")), "go with product"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"scoring": "tanh"})")), "softmax, sigmoid"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"score": 1})")), "unknown field"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"num_groups": 3})")), "router: num_groups is 3"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"epsilon": -1})")), "epsilon is -1"));
  CHECK(contains(refusal(plus(kLayer, R"("router": 5)")), "router"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {"weight_on_input": true})")),
                 "must be the layer's, false"));
  CHECK(contains(refusal(plus(kLayer, R"("router": {}, "weight_on_input": true)")),
                 "must be the layer's, true"));
}

TEST_CASE("dtype: the file's, or the caller's; float32 and quantised checkpoints need the caller's") {
  ReadOptions fp16;
  fp16.dtype = DType::fp16;
  CHECK(read(kQwen).layers[0].spec.dtype == DType::bf16);
  CHECK(read(with(kQwen, "torch_dtype", "\"float16\"")).layers[0].spec.dtype == DType::fp16);
  CHECK(read(with(kQwen, "torch_dtype", "\"torch.float16\"")).layers[0].spec.dtype == DType::fp16);
  CHECK(read(plus(without(kQwen, "torch_dtype"), R"("dtype": "float16")")).layers[0].spec.dtype ==
        DType::fp16);
  CHECK(read(kQwen, fp16).layers[0].spec.dtype == DType::fp16);
  const ModelConfig assumed = read(without(kQwen, "torch_dtype"));
  CHECK(assumed.layers[0].spec.dtype == DType::bf16);
  CHECK(contains(assumed.notes.back(), "bf16 is assumed"));
  CHECK(contains(refusal(with(kQwen, "torch_dtype", "\"float32\"")), "torch_dtype \"float32\""));
  CHECK(read(with(kQwen, "torch_dtype", "\"float32\""), fp16).layers[0].spec.dtype == DType::fp16);
  CHECK(contains(refusal(with(kQwen, "torch_dtype", "7")), "torch_dtype is 7"));

  const std::string quantised = plus(kQwen, R"("quantization_config": {"quant_method": "fp8"})");
  CHECK(contains(refusal(quantised), "quantised (fp8)"));
  CHECK(contains(refusal(quantised), "name a dtype"));
  CHECK(read(quantised, fp16).layers[0].spec.dtype == DType::fp16);
  CHECK(contains(refusal(plus(kQwen, R"("quantization_config": {})")), "quantised"));
  CHECK(read(plus(kQwen, R"("quantization_config": null)")).layers[0].spec.dtype == DType::bf16);
  const std::string nested = family("llama4_text", kLocal);
  CHECK(contains(
      refusal(R"({"model_type": "llama4", "quantization_config": {"quant_method": "fp8"}, "text_config": )" +
              nested + "}"),
      "quantised"));
  ReadOptions bf16;
  bf16.dtype = DType::bf16;
  CHECK(read(R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [64], "top_k": 1, "dtype": "fp16"})",
             bf16)
            .layers[0]
            .spec.dtype == DType::bf16);
}

TEST_CASE("an unknown family is refused with the known ones and what a layer file would need") {
  const std::string message = refusal(with(kQwen, "model_type", "\"dbrx\""));
  CHECK(contains(message, "\"dbrx\""));
  for (const std::string& known : model_families()) CHECK(contains(message, known));
  CHECK(contains(message, "expert_widths"));
  CHECK(contains(refusal("{}"), "model_type"));
  CHECK(contains(refusal("[]"), "must be an object"));
  CHECK(contains(refusal(with(kQwen, "model_type", "5")), "model_type is 5"));
}

TEST_CASE("fault 22: every number of a config.json out of range or of another type is refused by name") {
  for (const char* field : {"hidden_size", "moe_intermediate_size", "num_hidden_layers",
                            "decoder_sparse_step", "num_experts", "num_experts_per_tok"}) {
    for (const char* value : {"4294967296", "-1", "1.9", "true", "\"64\"", "0", "9223372036854775807",
                              "99999999999999999999", "1e400", "2048.0", "[2048]", "{}"}) {
      CAPTURE(field);
      CAPTURE(value);
      const std::string message = refusal(with(kQwen, field, value));
      CHECK(message != "accepted");
      if (std::string(value) != "1e400") CHECK(contains(message, field));
    }
  }
  CHECK(contains(refusal(without(kQwen, "num_experts")), "num_experts is missing"));
  CHECK(contains(refusal(with(kQwen, "hidden_size", "100")), "hidden_size is 100"));
  CHECK(contains(refusal(with(kQwen, "moe_intermediate_size", "764")), "764"));
  CHECK(contains(refusal(with(with(kQwen, "num_experts", "4"), "num_experts_per_tok", "5")),
                 "num_experts_per_tok is 5"));
  CHECK(contains(refusal(with(kQwen, "mlp_only_layers", "[1, true]")), "mlp_only_layers[1] is true"));
  CHECK(contains(refusal(with(kQwen, "mlp_only_layers", "{}")), "mlp_only_layers"));
  CHECK(contains(refusal(family("gpt_oss", kLocal + R"(, "swiglu_limit": -7)")), "swiglu_limit is -7"));
  CHECK(contains(refusal(family("gpt_oss", kLocal + R"(, "swiglu_limit": "7")")), "swiglu_limit"));
}

TEST_CASE("a layer file: every field") {
  const ModelConfig model = read(R"({"varmoe_layer": 1, "name": "x", "hidden_size": 512,
    "expert_widths": {"repeat": [64, 128], "times": 3}, "top_k": 4, "activation": "swiglu_oai",
    "activation_params": {"alpha": 1.5, "limit": 6}, "dtype": "fp16", "fc1_layout": "kn", "fc2_layout": "nk",
    "gate_order": "up_first", "batch_invariant": true, "bias": true, "weight_on_input": true, "num_layers": 3})");
  CHECK(model.family == "layer_file");
  REQUIRE(model.layers.size() == 1);
  CHECK(model.layers[0].label == "layers 0-2");
  const LayerSpec& spec = model.layers[0].spec;
  CHECK(spec.hidden_size == 512);
  CHECK(spec.expert_widths == std::vector<std::int64_t>{64, 128, 64, 128, 64, 128});
  CHECK(spec.top_k == 4);
  CHECK(spec.activation == Activation::swiglu_oai);
  CHECK(spec.activation_params == ActivationParams{1.5f, 6.0f});
  CHECK(spec.dtype == DType::fp16);
  CHECK(spec.fc1_layout == WeightLayout::kn);
  CHECK(spec.fc2_layout == WeightLayout::nk);
  CHECK(spec.gate_order == GateOrder::up_first);
  CHECK(spec.batch_invariant);
  CHECK(spec.bias);
  CHECK(spec.weight_on_input);
}

TEST_CASE("a layer file: layers that differ, and equal ones joined") {
  const ModelConfig model =
      read(R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [64, 32], "top_k": 2, "layers": [
    {}, {"expert_widths": [32, 64]}, {}, {"hidden_size": 512, "activation": "relu2"}, {"expert_widths": [32, 64]}]})");
  REQUIRE(model.layers.size() == 3);
  CHECK(model.layers[0].layer_indices == std::vector<int>{0, 2});
  CHECK(model.layers[1].layer_indices == std::vector<int>{1, 4});
  CHECK(model.layers[1].spec.expert_widths == std::vector<std::int64_t>{32, 64});
  CHECK(model.layers[2].spec.hidden_size == 512);
  CHECK(model.layers[2].spec.expert_widths == std::vector<std::int64_t>{64, 32});
  CHECK(kernel_signature(model.layers[0].spec) == kernel_signature(model.layers[1].spec));
}

TEST_CASE("fault 22: every number of a layer file out of range or of another type is refused by name") {
  const std::string full = plus(plus(kLayer, R"("num_layers": 2)"), R"("activation": "swiglu_oai")");
  for (const char* field : {"varmoe_layer", "hidden_size", "top_k", "num_layers"}) {
    for (const char* value :
         {"4294967296", "-1", "1.9", "true", "\"64\"", "0", "9223372036854775807", "null", "[]"}) {
      CAPTURE(field);
      CAPTURE(value);
      CHECK(contains(refusal(with(full, field, value)), field));
    }
  }
  for (const char* value :
       {"4294967296", "-1", "1.9", "true", "\"64\"", "0", "9223372036854775807", "null", "12"}) {
    CAPTURE(value);
    CHECK(contains(refusal(with(kLayer, "expert_widths", std::string("[128, ") + value + "]")),
                   "expert_widths[1]"));
    if (std::string(value) == "12") continue;
    const std::string params = std::string(R"("activation_params": {"limit": )") + value + "}";
    const bool sound = std::string(value) == "4294967296" || std::string(value) == "1.9" ||
                       std::string(value) == "9223372036854775807";
    if (!sound) CHECK(contains(refusal(plus(full, params)), "limit"));
  }
  CHECK(contains(refusal(with(kLayer, "expert_widths", "[]")), "expert_widths"));
  CHECK(contains(refusal(with(kLayer, "expert_widths", "128")), "expert_widths is 128"));
  CHECK(contains(
      refusal(
          R"({"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "expert_widths": {"repeat": [64], "times": 1025}})"),
      "times is 1025"));
  CHECK(contains(
      refusal(
          R"({"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "expert_widths": {"repeat": [64, 64], "times": 1024}})"),
      "2048 experts"));
  CHECK(contains(
      refusal(R"({"varmoe_layer": 1, "hidden_size": 256, "top_k": 2, "expert_widths": {"repeat": [64]}})"),
      "times is missing"));
}

TEST_CASE("a layer file: what is missing, unknown or contradictory is refused by name") {
  CHECK(contains(refusal(R"({"varmoe_layer": 1, "expert_widths": [64], "top_k": 1})"),
                 "hidden_size is missing"));
  CHECK(
      contains(refusal(R"({"varmoe_layer": 1, "hidden_size": 64, "top_k": 1})"), "expert_widths is missing"));
  CHECK(contains(refusal(R"({"varmoe_layer": 1, "hidden_size": 64, "expert_widths": [64]})"),
                 "top_k is missing"));
  CHECK(contains(refusal(with(kLayer, "varmoe_layer", "2")), "this library reads 1"));
  CHECK(contains(refusal(plus(kLayer, R"("topk": 2)")), "did you mean top_k"));
  CHECK(contains(refusal(plus(kLayer, R"("activation": "swish")")), "silu_mul"));
  CHECK(contains(refusal(plus(kLayer, R"("dtype": "float32")")), "bf16"));
  CHECK(contains(refusal(plus(kLayer, R"("gate_order": 1)")), "gate_order is 1"));
  CHECK(contains(refusal(plus(kLayer, R"("batch_invariant": 1)")), "batch_invariant is 1"));
  CHECK(contains(refusal(plus(kLayer, R"("bias": 1)")), "bias is 1"));
  CHECK(contains(refusal(plus(kLayer, R"("weight_on_input": 0)")), "weight_on_input is 0"));
  CHECK(contains(refusal(plus(kLayer, R"("activation_params": {"alpha": 1})")), "silu_mul has none"));
  CHECK(contains(refusal(plus(kLayer, R"("layers": [])")), "layers is a list of 0"));
  CHECK(contains(refusal(plus(kLayer, R"("layers": [{}], "num_layers": 1)")), "exclude each other"));
  CHECK(contains(refusal(plus(kLayer, R"("layers": [{}, {"name": "x"}])")),
                 "layers[1]: unknown field \"name\""));
  CHECK(contains(refusal(plus(kLayer, R"("layers": [{}, 5])")), "layers[1]: is 5"));
  CHECK(contains(refusal(plus(kLayer, R"("layers": [{}, {"expert_widths": [100]}])")),
                 "layer 1: expert_widths[0] is 100"));
}

TEST_CASE("fault 23: hostile strings change no spec and come back cut and escaped") {
  const std::string hostile =
      R"(*/ \n#include \"/etc/passwd\"\n static_assert(false); \u0000)" + std::string(1 << 20, 'A');
  const ModelConfig clean = read(kLayer);
  const ModelConfig named = read(plus(kLayer, "\"name\": \"" + hostile + "\""));
  REQUIRE(named.layers.size() == 1);
  CHECK(named.layers[0].spec == clean.layers[0].spec);
  CHECK(named.layers[0].label == clean.layers[0].label);
  CHECK(named.notes == clean.notes);
  CHECK(named.family == clean.family);
  const ModelConfig extra =
      read(plus(kQwen, "\"_name_or_path\": \"" + hostile + "\", \"" + hostile + "\": 1"));
  CHECK(extra.layers[0].spec == read(kQwen).layers[0].spec);
  CHECK(extra.notes == read(kQwen).notes);

  for (const char* field : {"model_type", "hidden_act", "torch_dtype"}) {
    const std::string message = refusal(with(kQwen, field, "\"" + hostile + "\""));
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.find('\0') == std::string::npos);
  }
  for (const char* field : {"activation", "dtype", "fc1_layout", "gate_order"}) {
    const std::string message = refusal(plus(kLayer, std::string("\"") + field + "\": \"" + hostile + "\""));
    CHECK(message.find('\n') == std::string::npos);
  }
  const std::string message = refusal(plus(kLayer, "\"" + hostile + "\": 1"));
  CHECK(contains(message, "unknown field"));
  CHECK(message.find('\n') == std::string::npos);
  ReadOptions bf16;
  bf16.dtype = DType::bf16;
  const ModelConfig quantised =
      read(plus(kQwen, "\"quantization_config\": {\"quant_method\": \"" + hostile + "\"}"), bf16);
  for (const std::string& note : quantised.notes) {
    CHECK(note.size() < 300);
    CHECK(note.find('\n') == std::string::npos);
  }
  const auto bad_origin = read_model_text("[", std::string("a\nb") + std::string(1 << 20, 'P'));
  CHECK(bad_origin.error().message().size() < 1000);
}

TEST_CASE("fault 21: a hostile file is refused as such") {
  CHECK(contains(refusal("\xEF\xBB\xBF" + kQwen), "byte order mark"));
  CHECK(contains(refusal(plus(kQwen, R"("hidden_size": 64)")), "duplicate key \"hidden_size\""));
  CHECK(contains(refusal(plus(kQwen, "\"x\": " + std::string(1000000, '['))), "deep"));
  CHECK(contains(refusal(kQwen + " "), "accepted"));
  CHECK(contains(refusal(kQwen + "x"), "not JSON"));
  CHECK(contains(refusal(std::string(kMaxModelFileBytes + 1, ' ')), "at most"));
}
