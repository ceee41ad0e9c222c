#include "model/model_config.hpp"

#include <fmt/format.h>

#include "base/text.hpp"
#include "model/model_readers.hpp"

namespace varmoe::model {
namespace {

/// {0,1,2,5} → "0-2,5".
std::string ranges(const std::vector<int>& indices) {
  std::string text;
  for (std::size_t i = 0; i < indices.size();) {
    std::size_t last = i;
    while (last + 1 < indices.size() && indices[last + 1] == indices[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(indices[i]);
    if (last != i) text += fmt::format("-{}", indices[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace

void add_layer(ModelConfig& model, const LayerSpec& spec, int index, const std::string& where,
               const std::optional<RouterSpec>& router) {
  for (ModelLayer& layer : model.layers) {
    if (layer.spec == spec && layer.router == router) {
      layer.layer_indices.push_back(index);
      return;
    }
  }
  if (auto status = spec.validate(); !status) {
    throw FieldError(fmt::format("{}: layer {}: {}", where, index, status.error().message()));
  }
  model.layers.push_back({spec, router, {}, {index}});
}

void label_layers(ModelConfig& model) {
  for (ModelLayer& layer : model.layers) {
    layer.label = fmt::format("{} {}", layer.layer_indices.size() == 1 ? "layer" : "layers",
                              ranges(layer.layer_indices));
  }
}

Result<ModelConfig> read_model_text(std::string_view text, std::string_view origin,
                                    const ReadOptions& options) {
  const std::string where = printable(origin);
  JsonLimits limits;
  limits.max_bytes = kMaxModelFileBytes;
  limits.max_depth = kMaxModelFileDepth;
  auto root = parse_strict_json(text, limits);
  if (!root) return Error(ErrorCode::invalid_spec, fmt::format("{}: {}", where, root.error().message()));
  try {
    const JsonFields fields(*root, where, NullField::is_absent);
    const bool layer_file = fields.has("varmoe_layer");
    if (!layer_file && !fields.has("model_type")) {
      fields.fail("neither model_type (a Hugging Face config.json) nor varmoe_layer (a layer file) is there");
    }
    ModelConfig model =
        layer_file ? read_layer_file(*root, where, options) : read_hf_config(*root, where, options);
    label_layers(model);
    return model;
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_spec, error.what());
  }
}

Result<ModelConfig> read_model(const std::string& path, const ReadOptions& options) {
  auto text = read_input_file(path, kMaxModelFileBytes);
  if (!text) return text.error();
  return read_model_text(*text, path, options);
}

}  // namespace varmoe::model
