#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// Layers that benchmarks know by name.
namespace varmoe::model {

struct NamedSet {
  std::string name;     ///< "64_variable"
  std::string summary;  ///< "16x512 + 32x256 + 16x128, top-8, relu2"
  LayerSpec spec;       ///< at the default hidden size
};

/// 8_uniform, 8_variable, … 128_variable (ungated ReLU², hidden 2048), gated_4_widths (64 experts of 128…512,
/// hidden 2048) and gated_16_widths (64 experts of 128…2048, hidden 4096), in this order.
const std::vector<NamedSet>& named_sets();

/// The set at a given hidden size; 0 takes the default. The error lists the names.
Result<LayerSpec> named_set(std::string_view name, std::int64_t hidden_size = 0);

}  // namespace varmoe::model
