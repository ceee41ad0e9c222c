#pragma once

#include "varmoe/router_statistics.hpp"

namespace varmoe::cpu {

/// Counts and losses of a router on host pointers, on the calling thread; sums in fp64. The arguments are
/// valid.
void router_statistics(const RouterStatisticsSpec& spec, const RouterStatisticsArgs& args) noexcept;

}  // namespace varmoe::cpu
