#pragma once

#include <memory>
#include <string>

#include "tools/common/session.hpp"
#include "tuner/measurer.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// The Measurer on a GPU of this process: what a tuning worker runs. It works with the engine's own pieces
/// (kernel builder, kernel table, plan), which is why it lies above the engine and not in the tuner's room.
///
/// Configs are compiled side by side while those before them are measured. Each is checked first, on uniform,
/// Zipf and hot routing, in poisoned memory, against a plain computation on the same device; then timed by
/// graph replays that use copies of the weights in turn, so that L2 holds nothing of what a forward reads,
/// with uniform and Zipf routing. fc1_us and fc2_us are what the step adds to the chain up to it; a driver
/// that cannot switch kernels of a graph off (before CUDA 12.3) gives the whole forward's time for both.
/// Requests of Effort::final_ are measured in turn, round by round.
///
/// Weights, inputs and references are kept from request to request while the layer (and bucket) stays the
/// same.
///
/// A config fails for what it cannot do (compile, load, compute); where even one copy of the weights does not
/// fit, all do. Errors of measure(): what the device does not recover from.
Result<std::unique_ptr<tuner::Measurer>> open_gpu_measurer(const SessionOptions& options, int ordinal);

}  // namespace varmoe::tools
