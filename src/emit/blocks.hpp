#pragma once

#include <cstdint>

#include "emit/emitter.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// What the public building blocks (varmoe/blocks.hpp) have beside a layer's kernels.
namespace varmoe::emit {

/// Emits one of the stages block_schedule … weigh_rows for a layer. `block_threads`: of the gather; the
/// others' are their own.
Result<EmittedKernel> emit_block(const LayerSpec& spec, Stage stage, std::int32_t block_threads);

}  // namespace varmoe::emit
