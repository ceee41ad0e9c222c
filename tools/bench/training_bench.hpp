#pragma once

#include "tools/bench/options.hpp"
#include "tools/common/output.hpp"

namespace varmoe::tools {

/// `varmoe-bench --mode backward|both`: times a TrainingLayer on a GPU: forward that keeps what backward
/// needs, backward, and both in one graph. Gradients are checked by the GPU suite, not here. Returns the exit
/// status.
int bench_training(const BenchOptions& options, const Output& out);

}  // namespace varmoe::tools
