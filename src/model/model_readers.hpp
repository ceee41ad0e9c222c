#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/json_fields.hpp"
#include "model/model_config.hpp"

/// The two kinds of file that read_model takes. These throw FieldError; read_model_text turns it into an
/// Error.
namespace varmoe::model {

inline constexpr std::int64_t kMaxLayers = 1024;

/// Our own format (the field varmoe_layer is there).
ModelConfig read_layer_file(const Json& root, const std::string& origin, const ReadOptions& options);

/// A Hugging Face config.json (the field model_type is there).
ModelConfig read_hf_config(const Json& root, const std::string& origin, const ReadOptions& options);

/// The router of a family's layers, for their number of experts and top-k.
RouterSpec read_hf_router(const JsonFields& text, std::string_view family, const LayerSpec& layer,
                          std::vector<std::string>& notes);

/// Adds one layer, to the ModelLayer of the same spec and router when there is one. Indices come in ascending
/// order. Throws when the spec is not valid.
void add_layer(ModelConfig& model, const LayerSpec& spec, int index, const std::string& where,
               const std::optional<RouterSpec>& router = {});

/// Fills every label from its indices.
void label_layers(ModelConfig& model);

}  // namespace varmoe::model
