#pragma once

#include <string>

#include "emit/emitter.hpp"

namespace varmoe::emit {

/// The emitted `struct Layer` of a stage: what that stage's kernel asks of the layer and nothing else, so
/// that layers which agree on it share the kernel.
std::string layer_traits(const LayerSpec& spec, const KernelRequest& request);

/// `  static constexpr varmoe::Element kElement = …;`
std::string element_trait(DType dtype);
/// The struct of epilogue/activation.cuh that a layer applies, with its parameters.
std::string activation_type(const LayerSpec& spec);
std::string activation_type(Activation activation, const ActivationParams& params);

/// static_asserts that the kernel text sees the structures of abi.cuh as this library was built with them.
std::string abi_assertions(Stage stage);

}  // namespace varmoe::emit
