#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/plan.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_statistics.hpp"

/// Launches of the routing operations. Arguments are valid (the engine checks them).
namespace varmoe::plan {

/// What does not change from call to call.
struct RoutingContext {
  const cuda::Driver* driver = nullptr;
  bool dependent_launch = false;  ///< sm_90 and newer: a kernel may start while its predecessor ends
};

/// A router's kernels, in the order of emit_router_kernels; the last two with hidden_size alone.
struct RouterKernels {
  LoadedKernel route, gemv, gemm;
};

/// Partial sums of the router's product for up to so many tokens; 0 for a router that is given logits.
std::size_t route_workspace_bytes(const RouterSpec& spec, std::int64_t tokens) noexcept;

/// Enqueues the router for args.tokens ≥ 1 tokens: its product, where it has one, then its kernel.
Status run_route(const RoutingContext& context, const RouterKernels& kernels, const RouterSpec& spec,
                 const RouteArgs& args) noexcept;

struct StatisticsKernels {
  LoadedKernel blocks, total;
};

/// Each block's sums.
std::size_t statistics_workspace_bytes(const RouterStatisticsSpec& spec, std::int64_t tokens) noexcept;

/// Enqueues two kernels.
Status run_statistics(const RoutingContext& context, const StatisticsKernels& kernels,
                      const RouterStatisticsSpec& spec, const RouterStatisticsArgs& args) noexcept;

struct AlignKernels {
  LoadedKernel single, count, scatter;
};

/// Histograms of the two-launch form; 0 where one launch does.
std::size_t align_workspace_bytes(const AlignSpec& spec, std::int64_t rows) noexcept;

/// Enqueues one or two kernels; args.sorted_size is set.
Status run_align(const RoutingContext& context, const AlignKernels& kernels, const AlignSpec& spec,
                 const AlignArgs& args) noexcept;

}  // namespace varmoe::plan
