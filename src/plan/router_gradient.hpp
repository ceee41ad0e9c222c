#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/routing.hpp"
#include "varmoe/router_gradient.hpp"

/// Launches of a router's backward pass. Arguments are valid (the engine checks them).
namespace varmoe::plan {

/// In the order of emit_router_gradient; those that the spec has.
struct GradientKernels {
  LoadedKernel dlogits, loss_terms, dx, dweight;
};

/// A term for each expert, where a loss of mean scores may take part.
std::size_t gradient_workspace_bytes(const RouterGradientSpec& spec) noexcept;

/// A loss of mean scores has a coefficient.
bool has_share_losses(const RouterGradientArgs& args) noexcept;

/// Enqueues one kernel or two; args.tokens ≥ 1.
Status run_gradient(const RoutingContext& context, const GradientKernels& kernels,
                    const RouterGradientSpec& spec, const RouterGradientArgs& args) noexcept;

/// Enqueues a kernel for dx and one for dweight and dlogit_bias, of those that are asked for.
Status run_product_gradient(const RoutingContext& context, const GradientKernels& kernels,
                            const RouterGradientSpec& spec, const RouterProductGradientArgs& args) noexcept;

}  // namespace varmoe::plan
