#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/text.hpp"
#include "model/model_readers.hpp"

/// Hugging Face config.json: one row a family. Field names and rules are those of each family's modeling
/// code.
namespace varmoe::model {
namespace {

constexpr std::int64_t kMaxIndex = kMaxLayers - 1;

/// Which decoder layers have experts, ascending.
using LayerRule = std::vector<int> (*)(const JsonFields& text, int num_layers);

struct Family {
  const char* model_type;
  const char* experts;  ///< field names
  const char* width;
  LayerRule moe_layers;
  WeightLayout layout = WeightLayout::nk;
  /// What a varmoe layer leaves out, or assumes; null: nothing.
  const char* note = nullptr;
};

std::vector<int> all_layers(const JsonFields&, int num_layers) {
  std::vector<int> result(static_cast<std::size_t>(num_layers));
  for (int i = 0; i < num_layers; ++i) result[static_cast<std::size_t>(i)] = i;
  return result;
}

/// Qwen2-MoE, Qwen3-MoE: every decoder_sparse_step-th layer, but those of mlp_only_layers.
std::vector<int> sparse_step_layers(const JsonFields& text, int num_layers) {
  const std::int64_t step = text.integer_or("decoder_sparse_step", 1, kMaxLayers, 1);
  const std::vector<std::int64_t> dense = text.integers_or_empty("mlp_only_layers", 0, kMaxIndex);
  std::vector<int> result;
  for (int i = 0; i < num_layers; ++i) {
    if ((i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end()) result.push_back(i);
  }
  return result;
}

/// DeepSeek: the first ones are dense, then every moe_layer_freq-th.
std::vector<int> deepseek_layers(const JsonFields& text, int num_layers, std::int64_t default_dense) {
  const std::int64_t first = text.integer_or("first_k_dense_replace", 0, kMaxLayers, default_dense);
  const std::int64_t step = text.integer_or("moe_layer_freq", 1, kMaxLayers, 1);
  std::vector<int> result;
  for (int i = 0; i < num_layers; ++i) {
    if (i >= first && i % step == 0) result.push_back(i);
  }
  return result;
}
std::vector<int> deepseek_v2_layers(const JsonFields& text, int num_layers) {
  return deepseek_layers(text, num_layers, 0);
}
std::vector<int> deepseek_v3_layers(const JsonFields& text, int num_layers) {
  return deepseek_layers(text, num_layers, 3);
}

/// GLM-4-MoE: all but the first ones.
std::vector<int> glm4_layers(const JsonFields& text, int num_layers) {
  return deepseek_layers(text, num_layers, 1);
}

/// Llama-4: the list moe_layers, else every interleave_moe_layer_step-th.
std::vector<int> llama4_layers(const JsonFields& text, int num_layers) {
  std::vector<int> result;
  if (text.has("moe_layers")) {
    for (const std::int64_t i : text.integers_or_empty("moe_layers", 0, num_layers - 1)) {
      result.push_back(static_cast<int>(i));
    }
    std::sort(result.begin(), result.end());
    result.erase(std::unique(result.begin(), result.end()), result.end());
    return result;
  }
  const std::int64_t step = text.integer_or("interleave_moe_layer_step", 1, kMaxLayers, 1);
  for (std::int64_t i = step - 1; i < num_layers; i += step) result.push_back(static_cast<int>(i));
  return result;
}

constexpr char kSharedExperts[] = "shared experts are computed outside the layer";

/// Sorted by model_type.
constexpr std::array<Family, 10> kFamilies = {{
    {"deepseek_v2", "n_routed_experts", "moe_intermediate_size", deepseek_v2_layers},
    {"deepseek_v3", "n_routed_experts", "moe_intermediate_size", deepseek_v3_layers},
    {"glm4_moe", "n_routed_experts", "moe_intermediate_size", glm4_layers},
    {"gpt_oss", "num_local_experts", "intermediate_size", all_layers, WeightLayout::kn},
    {"kimi_k2", "n_routed_experts", "moe_intermediate_size", deepseek_v3_layers},
    {"llama4", "num_local_experts", "intermediate_size", llama4_layers, WeightLayout::kn,
     "the router's weight multiplies fc1's fp32 sums; Llama-4's module rounds weight times input to the "
     "model's dtype first"},
    {"mixtral", "num_local_experts", "intermediate_size", all_layers},
    {"olmoe", "num_experts", "intermediate_size", all_layers},
    {"qwen2_moe", "num_experts", "moe_intermediate_size", sparse_step_layers},
    {"qwen3_moe", "num_experts", "moe_intermediate_size", sparse_step_layers},
}};

const Family* find_family(std::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

Activation read_activation(const JsonFields& text) {
  const std::string name = text.has("hidden_act") ? text.string("hidden_act") : "silu";
  if (name == "silu" || name == "swish") return Activation::silu_mul;
  if (name == "gelu") return Activation::gelu_erf_mul;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh_mul;
  text.fail(fmt::format(
      "hidden_act \"{}\" is not known; must be one of silu, swish, gelu, gelu_pytorch_tanh, gelu_new",
      printable(name, 64)));
}

/// The field "dtype" (newer files) or "torch_dtype" of the text part, else of the whole; empty when there is
/// none.
std::string dtype_text(const JsonFields& text, const JsonFields& root) {
  for (const JsonFields* fields : {&text, &root}) {
    for (const char* name : {"dtype", "torch_dtype"}) {
      if (fields->has(name)) return fields->string(name);
    }
  }
  return {};
}

DType read_dtype(const JsonFields& text, const JsonFields& root, const ReadOptions& options,
                 std::vector<std::string>& notes) {
  const JsonFields* quantised = nullptr;
  for (const JsonFields* fields : {&text, &root}) {
    if (fields->has("quantization_config")) quantised = fields;
  }
  if (quantised != nullptr) {
    const JsonFields config(*quantised->find("quantization_config"),
                            quantised->where() + ": quantization_config", NullField::is_absent);
    const std::string method = printable(config.string_or_empty("quant_method"), 32);
    if (!options.dtype) {
      quantised->fail(fmt::format(
          "quantization_config: the checkpoint is quantised ({}) and this layer computes in bf16 or "
          "fp16; name a dtype to plan for dequantised weights",
          method.empty() ? "no quant_method" : method));
    }
    notes.push_back(fmt::format("the checkpoint is quantised ({}); weights are taken as dequantised to {}",
                                method.empty() ? "no quant_method" : method, to_string(*options.dtype)));
  }
  if (options.dtype) return *options.dtype;

  std::string name = dtype_text(text, root);
  if (name.substr(0, 6) == "torch.") name.erase(0, 6);
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::fp16;
  if (name.empty()) {
    notes.push_back("no torch_dtype in the file; bf16 is assumed");
    return DType::bf16;
  }
  text.fail(fmt::format("torch_dtype \"{}\" is not computed in; must be bfloat16 or float16, or name a dtype",
                        printable(name, 32)));
}

std::int64_t read_top_k(const JsonFields& text, const Family& family, std::int64_t experts) {
  const bool older_name = !text.has("num_experts_per_tok") && text.has("experts_per_token");
  const char* name = older_name ? "experts_per_token" : "num_experts_per_tok";
  const std::int64_t top_k = text.integer(name, 1, kMaxTopK);
  if (top_k > experts) {
    text.fail(fmt::format("{} is {}; the router picks distinct experts, and {} is {}", name, top_k,
                          family.experts, experts));
  }
  return top_k;
}

LayerSpec read_spec(const JsonFields& text, const Family& family, DType dtype) {
  const std::int64_t experts = text.integer(family.experts, 1, kMaxExperts);
  LayerSpec spec =
      uniform_spec(text.integer("hidden_size", kMinHidden, kMaxHidden), experts,
                   text.integer(family.width, kWidthMultiple, kMaxWidth), read_top_k(text, family, experts));
  spec.dtype = dtype;
  spec.fc1_layout = spec.fc2_layout = family.layout;
  if (std::string_view(family.model_type) == "gpt_oss") {
    spec.activation = Activation::swiglu_oai;
    spec.activation_params.alpha = 1.702f;
    spec.activation_params.limit = static_cast<float>(text.real_or("swiglu_limit", 1e-3, 1e6, 7.0));
    spec.gate_order = GateOrder::interleaved;
    spec.bias = true;  // of the experts; attention_bias is another matter
  } else {
    spec.activation = read_activation(text);
  }
  spec.weight_on_input = std::string_view(family.model_type) == "llama4";
  return spec;
}

bool has_shared_experts(const JsonFields& text, const Family& family) {
  const std::string_view type = family.model_type;
  if (type == "qwen2_moe" || type == "llama4") return true;
  return text.integer_or("n_shared_experts", 0, kMaxExperts, 0) > 0;
}

/// DeepSeek and its like store n shared experts as one MLP of n times the width; Qwen2-MoE and Llama-4 have
/// one.
void add_shared_experts(const JsonFields& text, const Family& family, LayerSpec& spec,
                        std::vector<std::string>& notes) {
  const std::string_view type = family.model_type;
  if (type == "qwen2_moe") {
    const std::int64_t width = text.integer("shared_expert_intermediate_size", 0, kMaxWidth);
    if (width == 0) return;
    spec.shared_widths = {width};
    spec.shared_gate = true;
  } else if (type == "llama4") {
    spec.shared_widths = {text.integer(family.width, kWidthMultiple, kMaxWidth)};
    notes.push_back(
        "the checkpoint's shared expert is stored nk and the routed ones kn: bind it transposed; it reads x "
        "as it is, not scaled by the router's weight");
  } else {
    spec.shared_widths = {text.integer("n_shared_experts", 1, kMaxSharedExperts) *
                          text.integer(family.width, kWidthMultiple, kMaxWidth)};
  }
  notes.push_back(fmt::format("the shared expert (width {}{}) is part of the layer", spec.shared_widths[0],
                              spec.shared_gate ? ", with a gate" : ""));
}

}  // namespace

const std::vector<std::string>& model_families() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const Family& family : kFamilies) result.emplace_back(family.model_type);
    return result;
  }();
  return names;
}

ModelConfig read_hf_config(const Json& root, const std::string& origin, const ReadOptions& options) {
  const JsonFields whole(root, origin, NullField::is_absent);
  // The text part of a multimodal model is described in text_config, under a model_type of its own.
  const Json* nested = whole.find("text_config");
  const JsonFields text(nested ? *nested : root, nested ? origin + ": text_config" : origin,
                        NullField::is_absent);

  std::string type = whole.string("model_type");
  if (type == "llama4_text") type = "llama4";
  const Family* family = find_family(type);
  if (family == nullptr) {
    const std::vector<std::string_view> known(model_families().begin(), model_families().end());
    whole.fail(
        fmt::format("model_type \"{}\" is not known; known: {}. Of another model a layer file says what is "
                    "needed: hidden_size, "
                    "expert_widths, top_k, activation, dtype, fc1_layout, fc2_layout, gate_order, router",
                    printable(type, 64), join(known)));
  }

  ModelConfig model;
  model.family = family->model_type;
  model.notes.push_back(
      "the router is an operation of its own: the layer takes its topk_ids and topk_weights");
  const bool shared = has_shared_experts(text, *family);
  if (shared && !options.shared_experts) model.notes.push_back(kSharedExperts);
  if (family->note != nullptr) model.notes.push_back(family->note);

  const DType dtype = read_dtype(text, whole, options, model.notes);
  LayerSpec spec = read_spec(text, *family, dtype);
  if (shared && options.shared_experts) add_shared_experts(text, *family, spec, model.notes);
  const RouterSpec router = read_hf_router(text, family->model_type, spec, model.notes);
  const int num_layers = static_cast<int>(text.integer("num_hidden_layers", 1, kMaxLayers));
  for (const int index : family->moe_layers(text, num_layers)) add_layer(model, spec, index, origin, router);
  if (model.layers.empty()) text.fail(fmt::format("none of the {} layers has experts", num_layers));
  return model;
}

}  // namespace varmoe::model
