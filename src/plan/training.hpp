#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan/gradient_run.hpp"
#include "plan/plan.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"
#include "varmoe/weights.hpp"

/// Forward and backward of a TrainingLayer as launches. The products with weights are fc1 and fc2 of the
/// layer (forward, which keeps z) and of model::backward_layer (g = dout·W2, then dz·W1).
namespace varmoe::plan {

/// Everything that forward and backward of one bucket need; immutable once published.
struct TrainingKernels : WeightGradientKernels {
  KernelSet forward;       ///< its fc1 keeps z, unless backward makes z again
  LoadedKernel fc1_again;  ///< fc1 that keeps z; null where forward's does
  KernelSet backward;      ///< of model::backward_layer
  LoadedKernel topk_weight_gradient;
  LoadedKernel shared_gate_gradient;  ///< null where the layer has none
};

/// What does not change from call to call.
struct TrainingContext {
  RunContext forward, backward;  ///< with their expert tables' addresses
  std::uint64_t gradients = 0;   ///< device address of make_gradient_table's bytes; 0: not bound
  bool save_preactivation = true;
};

/// The device table of model::backward_layer, in the form of make_expert_table: W2 as fc1's up matrix, W1 as
/// fc2's. The entries of a gated layer whose gate and up lie apart have both: gate, and up as `down`.
Result<std::vector<std::byte>> make_backward_table(const LayerSpec& spec, const Weights& weights,
                                                   const cuda::Driver* tensor_maps = nullptr);

/// An abi::GradientEntry per expert, the shared ones after the routed ones, then the address of the shared
/// gate's gradient.
Result<std::vector<std::byte>> make_gradient_table(const LayerSpec& spec, const Weights& gradients);

std::size_t training_saved_bytes(const LayerSpec& spec, std::int64_t tokens,
                                 bool save_preactivation) noexcept;
/// Of forward and backward, whatever the configs.
std::size_t training_workspace_bytes(const LayerSpec& spec, std::int64_t tokens,
                                     bool save_preactivation) noexcept;

/// Arguments have been checked; tokens ≥ 1.
Status run_training_forward(const TrainingContext& context, const TrainingKernels& kernels,
                            const ForwardArgs& args, void* saved) noexcept;
Status run_backward(const TrainingContext& context, const TrainingKernels& kernels,
                    const BackwardArgs& args) noexcept;

/// Which gradients.
struct GradientParts {
  bool fc1 = true, fc2 = true, shared_gate = true;
};

/// Enqueues zeroes for gradients: a backward of no rows.
Status clear_gradients(const cuda::Driver& driver, const LayerSpec& spec, GradientType type,
                       const Weights& gradients, void* stream, const GradientParts& parts = {}) noexcept;

}  // namespace varmoe::plan
