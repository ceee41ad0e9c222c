#pragma once

#include "varmoe/router_gradient.hpp"

namespace varmoe::cpu {

/// A router's backward pass on host pointers, on the calling thread; computed in fp64. The arguments are
/// valid.
void router_gradient(const RouterGradientSpec& spec, const RouterGradientArgs& args) noexcept;
void router_product_gradient(const RouterGradientSpec& spec, const RouterProductGradientArgs& args) noexcept;

}  // namespace varmoe::cpu
