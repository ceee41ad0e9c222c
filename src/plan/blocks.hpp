#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/plan.hpp"
#include "varmoe/blocks.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// The building blocks as launches: fc1, fc2 and combine of a layer, on rows that the caller has put in
/// order.
namespace varmoe::plan {

/// Everything that the blocks of one bucket need; immutable once published.
struct BlockKernels {
  /// fc1 (which reads rows as they lie), fc2 (which weights them, of blocks made so) and combine alone.
  KernelSet layer;
  LoadedKernel combine_sum;  ///< combine without any weights
  LoadedKernel schedule, gather, slot_rows, combine_gradient;
};

/// Of up and down, whatever the configs.
std::size_t blocks_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept;

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

Status run_combine_backward(const RunContext& context, const BlockKernels& kernels,
                            const CombineBackwardArgs& args) noexcept;

}  // namespace varmoe::plan
