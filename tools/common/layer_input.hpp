#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/router_spec.hpp"

/// Which layers a command is about: a model's config.json or a layer file, a named set, or flags.
namespace varmoe::tools {

class Command;

struct InputLayer {
  LayerSpec spec;
  std::optional<RouterSpec> router;  ///< of a model that describes one
  std::string label;                 ///< "layers 0-47", "64_variable", "layer"
  std::vector<int> layer_indices;    ///< of a model; else {0}
};

struct LayerInput {
  std::string model;  ///< path
  std::string set;
  int layer = -1;  ///< of a model: this one alone

  std::int64_t hidden_size = 0, experts = 0, width = 0, top_k = 0;
  std::string widths;  ///< "512x4,256x4" or "768,512"
  std::string activation, dtype, fc1_layout, fc2_layout, gate_order;
  std::optional<double> alpha, limit;
  bool batch_invariant = false, bias = false, weight_on_input = false;
  bool shared = false;        ///< of a model's config.json: with its shared experts
  std::string shared_widths;  ///< as `widths`
  bool shared_gate = false;

  void add_options(Command& app);
  /// Nothing names a layer.
  bool empty() const noexcept;
  /// Reads and validates. `notes` receives what the reader of a model file remarks.
  Result<std::vector<InputLayer>> read(std::vector<std::string>* notes) const;

 private:
  Result<LayerSpec> from_flags() const;
  Status apply_overrides(LayerSpec& spec) const;
};

/// "1,64,4096" → {1, 64, 4096}, ascending and distinct; each at least `least`. The error names `option`.
Result<std::vector<std::int64_t>> parse_counts(const std::string& text, const char* option,
                                               std::int64_t least = 1);

}  // namespace varmoe::tools
