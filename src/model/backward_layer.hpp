#pragma once

#include "varmoe/layer_spec.hpp"

/// The products of a backward pass with weights, as fc1 and fc2 of layers that have the same rows.
namespace varmoe::model {

/// Its fc1 is g = dout·W2 (W2 as an up-projection: ungated, no activation, the other layout), which goes on
/// to dz (emit::ActivationBackward); its sort writes rows' weights for that; its combine sums rows as they
/// are.
LayerSpec backward_layer(const LayerSpec& spec);

/// Its fc2 is dz·W1: both of a gated layer's matrices one after the other, in whole stages of 64, or
/// alternating. For the choice of configs; kernels have backward_layer's widths and KernelRequest::down_k.
LayerSpec backward_down_layer(const LayerSpec& spec);

}  // namespace varmoe::model
