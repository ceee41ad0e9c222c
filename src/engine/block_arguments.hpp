#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "varmoe/blocks.hpp"
#include "varmoe/layer_spec.hpp"

/// Checks of the building blocks' arguments. Each gives the sentence for people; empty when they are sound
/// but, perhaps, for the size of the workspace.
namespace varmoe::engine {

/// Rows are counted in 32 bits on the device; some room is left for what is rounded up.
inline constexpr std::int64_t kMaxBlockRows = INT32_MAX - (1 << 20);
inline constexpr std::int64_t kMaxRowMultiple = 65536;

std::string gather_problem(const LayerSpec& spec, const GatherArgs& args);
std::string slot_rows_problem(const LayerSpec& spec, const SlotRowsArgs& args);
std::string up_problem(const LayerSpec& spec, const BlocksOptions& options, const GroupedUpArgs& args,
                       std::size_t workspace_needed);
std::string down_problem(const LayerSpec& spec, const BlocksOptions& options, const GroupedDownArgs& args,
                         std::size_t workspace_needed);
std::string combine_problem(const LayerSpec& spec, const CombineArgs& args);
std::string down_backward_problem(const LayerSpec& spec, const BlocksOptions& options,
                                  const GroupedDownBackwardArgs& args, std::size_t workspace_needed);
std::string up_backward_problem(const LayerSpec& spec, const BlocksOptions& options,
                                const GroupedUpBackwardArgs& args, std::size_t workspace_needed);
std::string combine_backward_problem(const LayerSpec& spec, const CombineBackwardArgs& args);

}  // namespace varmoe::engine
