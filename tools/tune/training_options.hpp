#pragma once

#include <optional>

#include "varmoe/error.hpp"
#include "varmoe/training.hpp"

/// --training, --recompute and --fp32-gradients, which several verbs have.
namespace varmoe::tools {

class Command;

struct TrainingFlags {
  bool training = false, recompute = false, fp32_gradients = false;

  /// `what`: what --training makes of the verb, for --help.
  void add_options(Command& verb, const char* what);
  /// Of a TrainingLayer; none without --training.
  std::optional<TrainingOptions> options() const;
};

}  // namespace varmoe::tools
