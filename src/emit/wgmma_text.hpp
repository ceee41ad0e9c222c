#pragma once

#include <cstdint>
#include <string>

#include "varmoe/layer_spec.hpp"

namespace varmoe::emit {

/// The specialisations of ptx::Wgmma (kernels_src/ptx/wgmma.cuh) for N = step, 2·step … max_n: an
/// instruction's operand list grows with its N, which only emitted text can spell. `transpose_weights`: kn
/// weights.
std::string wgmma_instructions(DType dtype, bool transpose_weights, std::int32_t max_n, std::int32_t step);

/// The one for N = n whose operands both lie with the summed dimension outermost.
std::string wgmma_outer_instruction(DType dtype, std::int32_t n);

}  // namespace varmoe::emit
