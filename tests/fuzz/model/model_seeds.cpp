#include "fuzz/model/model_seeds.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace varmoe::fuzz {
namespace {

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Repeated `times`.
std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

/// A config.json of `family` with more fields.
std::string hf_text(const std::string& family, const std::string& more) {
  return R"({"model_type": ")" + family + R"(", "hidden_size": 64, "num_hidden_layers": 4,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "intermediate_size": 16,
    "moe_intermediate_size": 8, "num_experts_per_tok": 2)" +
         more + "}";
}

/// The number of experts of a token under its older name.
std::string with_older_name(std::string text) {
  const std::string name = "num_experts_per_tok";
  return text.replace(text.find(name), name.size(), "experts_per_token");
}

}  // namespace

std::vector<std::string> text_seeds() {
  std::vector<std::string> seeds;
  for (const char* folder : {"/models", "/tuning_db/devices"}) {
    for (const auto& entry : std::filesystem::directory_iterator(std::string(VARMOE_SOURCE_DIR) + folder)) {
      if (entry.path().extension() == ".json" && entry.file_size() < 4096)
        seeds.push_back(slurp(entry.path()));
    }
  }
  std::sort(seeds.begin(), seeds.end());
  seeds.push_back(
      R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": [128, 64], "top_k": 2, "num_layers": 3})");
  seeds.push_back(
      R"({"varmoe_layer": 1, "hidden_size": 256, "expert_widths": {"repeat": [8, 16], "times": 2}, "top_k": 1,
    "activation": "swiglu_oai", "activation_params": {"alpha": 1.5, "limit": 6}, "dtype": "fp16", "fc1_layout": "kn",
    "fc2_layout": "kn", "gate_order": "interleaved", "batch_invariant": true, "bias": true,
    "weight_on_input": true, "layers": [{}, {"top_k": 2}]})");
  seeds.push_back(
      R"({"model_type": "qwen2_moe", "hidden_size": 64, "moe_intermediate_size": 8, "num_experts": 2,
    "num_experts_per_tok": 1, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]})");
  seeds.push_back(
      R"({"varmoe_layer": 1, "name": "a", "hidden_size": 64, "expert_widths": [8, 8, 8, 8], "top_k": 2,
    "shared_widths": [16], "shared_gate": true, "router": {"logit_type": "fp32", "scoring": "sigmoid",
    "order": "before_top_k", "renormalize": true, "epsilon": 1e-20, "scaling_factor": 2.5,
    "correction_bias": true, "num_groups": 2, "top_groups": 1, "group_score": "top2_sum",
    "outside_groups": "as_zero", "product": true, "weight_type": "bf16", "logit_bias": false}})");
  seeds.push_back(
      R"({"varmoe_layer": 1, "hidden_size": 64, "expert_widths": [8, 8], "top_k": 1, "dtype": "bf16",
    "router": {"scoring": "softmax", "order": "after_top_k", "group_score": "max", "outside_groups": "never"},
    "layers": [{"expert_widths": [16, 8]}, {"router": {}}]})");
  seeds.push_back(hf_text("qwen2_moe", R"(, "shared_expert_intermediate_size": 16, "norm_topk_prob": true,
    "hidden_act": "gelu", "decoder_sparse_step": 1)"));
  seeds.push_back(hf_text("qwen2_moe", R"(, "shared_expert_intermediate_size": 0, "hidden_act": "swish")"));
  seeds.push_back(hf_text("deepseek_v2", R"(, "n_shared_experts": 2, "topk_method": "group_limited_greedy",
    "n_group": 2, "topk_group": 1, "norm_topk_prob": true, "moe_layer_freq": 2, "hidden_act": "gelu_new",
    "scoring_func": "softmax")"));
  seeds.push_back(hf_text("kimi_k2", R"(, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 2, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "dtype": "float16")"));
  seeds.push_back(hf_text("glm4_moe", R"(, "n_shared_experts": 1, "dtype": "bfloat16")"));
  seeds.push_back(
      hf_text("olmoe", R"(, "torch_dtype": "torch.bfloat16", "hidden_act": "gelu_pytorch_tanh")"));
  seeds.push_back(hf_text("llama4_text", R"(, "dtype": "bfloat16")"));
  seeds.push_back(with_older_name(hf_text("olmoe", "")));
  seeds.push_back(hf_text("gpt_oss", R"(, "swiglu_limit": 5)"));
  seeds.push_back(hf_text("llama4", R"(, "moe_layers": [3, 1, 1])"));
  seeds.push_back(
      R"({"model_type": "llama4", "torch_dtype": "float16", "text_config": {"model_type": "llama4_text",
    "hidden_size": 64, "num_hidden_layers": 4, "num_local_experts": 8, "intermediate_size": 16,
    "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}})");
  seeds.push_back(hf_text("mixtral", R"(, "quantization_config": {"quant_method": "fp8"})"));
  seeds.push_back(hf_text("mixtral", R"(, "quantization_config": {})"));
  seeds.push_back("block_m=64,block_n=128,tokens=1-64;stages=4,gather=copy,schedule=mma_sync");
  return seeds;
}

std::vector<std::string> refused_text_seeds() {
  std::vector<std::string> seeds = {"\xEF\xBB\xBF{}",
                                    std::string("{\0}", 3),
                                    repeated("[", 70),
                                    R"({"a": 1, "a": 2})",
                                    R"({"varmoe_layer": 1e400})",
                                    R"({"a": [)" + repeated("0,", 120) + "0]}",
                                    R"({"a": )" + repeated(" ", 2100) + "0}",
                                    R"({"a": [)" + repeated("[],", 120) + "0]}",
                                    "[1,\n\n2",
                                    "true",
                                    "false",
                                    "18446744073709551615",
                                    "3",
                                    "null",
                                    "1.5",
                                    "[1, 2.5, true, false]",
                                    R"({"model_type": 3})",
                                    R"({"model_type": "other"})",
                                    R"({"varmoe_layer": 9})"};
  for (const char* more : {R"(, "torch_dtype": "float32")",
                           R"(, "hidden_act": "relu")",
                           R"(, "num_experts_per_tok": 9)",
                           R"(, "experts_per_token": 2)",
                           R"(, "text_config": 3)",
                           R"(, "scoring_func": "tanh")",
                           R"(, "n_group": 3)",
                           R"(, "n_group": 2, "topk_group": 4)",
                           R"(, "topk_method": "group_limited_greedy")",
                           R"(, "mlp_only_layers": [0, 1, 2, 3])",
                           R"(, "mlp_only_layers": 3)",
                           R"(, "mlp_only_layers": [-1])",
                           R"(, "mlp_only_layers": [1e9])",
                           R"(, "mlp_only_layers": [99999])",
                           R"(, "hidden_act": null)",
                           R"(, "routed_scaling_factor": -1e9)",
                           R"(, "routed_scaling_factor": 1e9)",
                           R"(, "norm_topk_prob": 3)",
                           R"(, "routed_scaling_factor": "x")",
                           R"(, "first_k_dense_replace": 4)"}) {
    for (const char* family : {"deepseek_v2", "deepseek_v3", "qwen3_moe"})
      seeds.push_back(hf_text(family, more));
  }
  for (const char* more :
       {"\"activation\": \"tanh\"", "\"activation_params\": {}",
        "\"activation\": \"swiglu_oai\", \"activation_params\": {\"beta\": 1}", "\"expert_widths\": 3",
        "\"expert_widths\": {\"repeat\": [], \"times\": 1}", "\"expert_widths\": []", "\"top_k\": 33",
        "\"layers\": []", "\"layers\": [3]", "\"layers\": [{}], \"num_layers\": 2", "\"name\": 3",
        "\"router\": {\"scoring\": \"tanh\"}", "\"router\": {\"weight_type\": \"bf16\"}",
        "\"router\": {\"logit_bias\": true}", "\"router\": {\"logit_type\": \"x\"}",
        "\"router\": {\"num_groups\": 3}", "\"router\": {\"weight_on_input\": true}", "\"bia\": true"}) {
    seeds.push_back(std::string("{\"varmoe_layer\": 1, ") + more + R"(, "hidden_size": 64})");
    seeds.push_back(std::string("{\"varmoe_layer\": 1, ") + more +
                    R"(, "hidden_size": 64, "expert_widths": [8, 8], "top_k": 1})");
    seeds.push_back(std::string("{\"varmoe_layer\": 1, ") + more +
                    R"(, "expert_widths": [8, 8], "top_k": 1})");
    seeds.push_back(std::string("{\"varmoe_layer\": 1, ") + more +
                    R"(, "hidden_size": 64, "expert_widths": [8]})");
  }
  return seeds;
}

}  // namespace varmoe::fuzz
