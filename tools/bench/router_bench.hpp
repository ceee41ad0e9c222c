#pragma once

#include "tools/bench/options.hpp"
#include "tools/common/output.hpp"

namespace varmoe::tools {

/// `varmoe-bench --router`: times the model's router alone, and with the layer's sort behind it, and checks
/// it against the fp64 oracle. Returns the exit status.
int bench_router(const BenchOptions& options, const Output& out);

}  // namespace varmoe::tools
