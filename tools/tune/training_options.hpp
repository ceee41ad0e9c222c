#pragma once

#include <optional>

#include "varmoe/error.hpp"
#include "varmoe/training.hpp"

namespace CLI {
class App;
}

/// --training, --recompute and --fp32-gradients, which several verbs have.
namespace varmoe::tools {

struct TrainingFlags {
  bool training = false, recompute = false, fp32_gradients = false;

  /// `what`: what --training makes of the verb, for --help.
  void add_options(CLI::App& verb, const char* what);
  /// Of a TrainingLayer; none without --training.
  std::optional<TrainingOptions> options() const;
};

}  // namespace varmoe::tools
