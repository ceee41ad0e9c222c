#include "tools/tune/training_options.hpp"

#include "tools/common/command_line.hpp"
namespace varmoe::tools {

void TrainingFlags::add_options(Command& verb, const char* what) {
  auto* on = verb.add_flag("--training", training, what);
  verb.add_flag("--recompute", recompute, "with --training: forward keeps nothing, backward computes z again")
      ->needs(on);
  verb.add_flag("--fp32-gradients", fp32_gradients, "with --training: gradients of weights in fp32")
      ->needs(on);
}

std::optional<TrainingOptions> TrainingFlags::options() const {
  if (!training) return std::nullopt;
  TrainingOptions options;
  options.save_preactivation = !recompute;
  if (fp32_gradients) options.gradient_type = GradientType::fp32;
  return options;
}

}  // namespace varmoe::tools
