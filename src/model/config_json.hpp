#pragma once

#include <cstdint>
#include <string>

#include "model/json_fields.hpp"
#include "varmoe/backward_config.hpp"
#include "varmoe/kernel_config.hpp"

/// A layer's config as JSON: in tuning records and on the lines to the tuner's workers.
namespace varmoe::model {

/// `{"schedule": "wgmma", "block_m": 160, …, "gather": "fused"}`: every key.
std::string gemm_config_json(const GemmConfig& config);
/// `"sort": {…}, "gather": {…}, "combine": {…}, "one_launch": {…}`: the fields beside "fc1" and "fc2".
std::string block_config_fields(const LayerConfig& config);

/// `{"schedule": "wgmma", "block_m": 128, …, "gather": "fused"}`: every key.
std::string gradient_config_json(const GradientConfig& config);
/// `{"dh": {…}, "dx": {…}, "fc1_gradient": {…}, "fc2_gradient": {…}}`.
std::string backward_config_json(const BackwardConfig& config);

/// All of it as an object: "fc1", "fc2" and those.
std::string layer_config_json(const LayerConfig& config);

/// Whether every key must be there. A config of an older config space may lack those that are newer, which
/// then have their defaults.
enum class ConfigKeys : std::uint8_t { all, of_older_space };

/// Reads the fields "fc1", "fc2" and those of block_config_fields; others of the object are the caller's.
/// Each number within the bounds of its own field; whether they go together, check_layer_config says. Throws
/// FieldError.
LayerConfig read_layer_config(const JsonFields& fields, ConfigKeys keys);

/// The same of the fields "dh", "dx", "fc1_gradient" and "fc2_gradient"; check_backward_config says whether
/// they go together.
BackwardConfig read_backward_config(const JsonFields& fields, ConfigKeys keys);

}  // namespace varmoe::model
