#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emit/emitter.hpp"
#include "engine/config_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"

/// The kernels that a layer's training adds to its forward, by name.
namespace varmoe::tools {

/// Of every layer: fc1_saving (the forward's fc1, which keeps z), dh (dout·W2 and what
/// follows from it), dx (dz·W1), topk_weight_gradient, gradient_schedule, fc1_gradient, …
const std::vector<std::string>& training_stages();

/// Emits one of training_stages() with the config that a TrainingLayer takes at `bucket` tokens; compiles
/// nothing. invalid_argument says what the layer lacks, unsupported why it does not learn.
Result<emit::EmittedKernel> training_kernel(const LayerSpec& spec, const std::string& stage,
                                            std::int64_t bucket, GradientType type,
                                            const engine::ConfigChooser& chooser,
                                            engine::KernelBuilder& builder);

}  // namespace varmoe::tools
