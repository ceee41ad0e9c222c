#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/plan.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router.hpp"

/// Launches of the routing operations. Arguments are valid (the engine checks them).
namespace varmoe::plan {

/// What does not change from call to call.
struct RoutingContext {
  const cuda::Driver* driver = nullptr;
  bool dependent_launch = false;  ///< sm_90 and newer: a kernel may start while its predecessor ends
};

/// Enqueues the router kernel for args.tokens ≥ 1 tokens.
Status run_route(const RoutingContext& context, const LoadedKernel& kernel, const RouterSpec& spec,
                 const RouteArgs& args) noexcept;

struct AlignKernels {
  LoadedKernel single, count, scatter;
};

/// Histograms of the two-launch form; 0 where one launch does.
std::size_t align_workspace_bytes(const AlignSpec& spec, std::int64_t rows) noexcept;

/// Enqueues one or two kernels; args.sorted_size is set.
Status run_align(const RoutingContext& context, const AlignKernels& kernels, const AlignSpec& spec,
                 const AlignArgs& args) noexcept;

}  // namespace varmoe::plan
