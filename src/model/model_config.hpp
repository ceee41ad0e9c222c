#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/router_spec.hpp"

/// Reads what a model's MoE layers are: a Hugging Face config.json, or a layer file of our own.
namespace varmoe::model {

/// MoE layers of a model that have one and the same spec (experts in the same order) and router.
struct ModelLayer {
  LayerSpec spec;
  /// Of every family; of a layer file that describes one.
  std::optional<RouterSpec> router;
  std::string label;  ///< "layers 0-47", "layers 1,3,5": made from layer_indices, never from the file's text
  std::vector<int> layer_indices;  ///< ascending, never empty
};

struct ModelConfig {
  std::string family;              ///< one of model_families(), or "layer_file"
  std::vector<ModelLayer> layers;  ///< in order of their first index; never empty
  /// What the model does around or inside these layers that a varmoe layer leaves out (router, shared
  /// experts, biases) and what was assumed (dtype): a sentence each, for people.
  std::vector<std::string> notes;
};

struct ReadOptions {
  /// Computes in this dtype whatever the file says. Needed for quantised and float32 checkpoints.
  std::optional<DType> dtype;
  /// Of a config.json: its shared experts become part of the layers (LayerSpec::shared_widths, shared_gate).
  /// Without, they are left out and a note says so: inference servers compute them apart, and weights bound
  /// to the layer, tuning records and measurements are then those of the routed experts. A layer file says
  /// itself what its layer has.
  bool shared_experts = false;
};

/// model_type values that read_model knows, sorted.
const std::vector<std::string>& model_families();

/// Largest file that is read, and deepest nesting of its JSON.
inline constexpr std::size_t kMaxModelFileBytes = std::size_t{4} << 20;
inline constexpr int kMaxModelFileDepth = 64;

/// Reads a regular file (through symlinks, as a Hugging Face cache has them). Strict: size and depth are
/// capped, duplicate keys and numbers of another type refused. invalid_spec names file, field, value and what
/// is allowed; io_error names the file.
///
/// A layer file of our own:
///   {"varmoe_layer": 1, "hidden_size": 2048, "expert_widths": [768, 512, …], "top_k": 8}
/// and optionally "name" (text for people, not kept), "activation" (silu_mul), "activation_params" ({"alpha",
/// "limit"}, swiglu_oai alone), "dtype" (bf16), "fc1_layout" and "fc2_layout" (nk), "gate_order"
/// (gate_first), "batch_invariant", "bias" and "weight_on_input" (false), "shared_widths" (a list; none), "shared_gate" (false),
/// "num_layers" (1), "router" (an object: "logit_type", "scoring", "order", "renormalize", "epsilon",
/// "scaling_factor", "correction_bias", "num_groups", "top_groups", "group_score", "outside_groups",
/// "weight_on_input"; absent fields are RouterSpec's defaults). "expert_widths" is a list or {"repeat": [128,
/// 256], "times": 32}. Layers that differ: "layers":
/// [{"expert_widths": […]}, …] instead of num_layers, where each object replaces fields of the file (all but
/// varmoe_layer and name) for one layer. Unknown fields are refused.
Result<ModelConfig> read_model(const std::string& path, const ReadOptions& options = {});

/// The same from text; `origin` stands for the file in messages.
Result<ModelConfig> read_model_text(std::string_view text, std::string_view origin,
                                    const ReadOptions& options = {});

}  // namespace varmoe::model
