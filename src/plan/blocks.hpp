#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/gradient_run.hpp"
#include "plan/plan.hpp"
#include "varmoe/blocks.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// The building blocks as launches: fc1, fc2 and combine of a layer, on rows that the caller has put in
/// order.
namespace varmoe::plan {

/// Everything that the blocks of one bucket need; immutable once published.
struct BlockKernels : WeightGradientKernels {
  /// fc1 (which reads rows as they lie), fc2 (which weights them, of blocks made so) and combine alone.
  KernelSet layer;
  LoadedKernel combine_sum;  ///< combine without any weights
  LoadedKernel schedule, gather, slot_rows, combine_gradient;
  // Of blocks that learn; null in others.
  LoadedKernel up_saving;  ///< fc1 that keeps z, of the same config
  /// Of model::backward_layer: fc1 makes dh, and of weighted rows what follows from h; fc2 makes dx.
  KernelSet backward;
  LoadedKernel dz;  ///< as backward's fc1, from z instead of h
  LoadedKernel activation_gradient;
  LoadedKernel row_weight_gradient;  ///< of blocks with weighted_down
  LoadedKernel weigh_rows;           ///< of layers with weight_on_input
};

/// What does not change from call to call.
struct BlocksContext {
  RunContext forward, backward;  ///< with their expert tables' addresses
  std::uint64_t gradients = 0;   ///< device address of make_gradient_table's bytes; 0: not bound
};

/// Of up and down, whatever the configs.
std::size_t blocks_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept;
/// Of down_backward and up_backward, likewise.
std::size_t blocks_backward_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept;

// Arguments have been checked; rows or tokens ≥ 1. No allocation, lock or synchronisation on success.
Status run_block_gather(const RunContext& context, const BlockKernels& kernels,
                        const GatherArgs& args) noexcept;
Status run_slot_rows(const RunContext& context, const BlockKernels& kernels,
                     const SlotRowsArgs& args) noexcept;
Status run_block_up(const RunContext& context, const BlockKernels& kernels,
                    const GroupedUpArgs& args) noexcept;
Status run_block_down(const RunContext& context, const BlockKernels& kernels,
                      const GroupedDownArgs& args) noexcept;
Status run_block_combine(const RunContext& context, const BlockKernels& kernels,
                         const CombineArgs& args) noexcept;

Status run_block_down_backward(const BlocksContext& context, const BlockKernels& kernels,
                               const GroupedDownBackwardArgs& args) noexcept;
Status run_block_up_backward(const BlocksContext& context, const BlockKernels& kernels,
                             const GroupedUpBackwardArgs& args) noexcept;
Status run_combine_backward(const RunContext& context, const BlockKernels& kernels,
                            const CombineBackwardArgs& args) noexcept;

}  // namespace varmoe::plan
