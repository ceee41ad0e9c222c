#pragma once

#include "emit/emitter.hpp"
#include "model/gradient_config.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"

/// The backward pass's own kernels. Its products with weights are fc1 and fc2 of layers derived from the
/// layer (KernelRequest::down_k).
namespace varmoe::emit {

struct GradientRequest {
  Stage stage = Stage::fc1_gradient;
  model::GradientConfig config;  ///< fc1_gradient, fc2_gradient
  GradientType type = GradientType::layer_dtype;
  /// Rows lie in a caller's segments, and x, dout and weights by row (Blocks).
  bool segments = false;
};

/// K of the product dz·W1 (fc2 of model::backward_layer).
DownK backward_down_k(const LayerSpec& spec);
/// What the product dout·W2 (fc1 of model::backward_layer) is followed by.
ActivationBackward activation_backward(const LayerSpec& spec);
/// The same of rows of a caller's, with weights or without.
ActivationBackward block_activation_backward(const LayerSpec& spec, bool weighs_rows);
/// Of rows whose h is there instead of z: dh = w·g in the place of dz, w·h, and parts of ⟨g, h⟩.
ActivationBackward block_row_weights();

/// Emits one of the stages topk_weight_gradient … shared_gate_gradient of a layer.
Result<EmittedKernel> emit_gradient(const LayerSpec& spec, const GradientRequest& request);

}  // namespace varmoe::emit
