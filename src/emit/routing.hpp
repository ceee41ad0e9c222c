#pragma once

#include <vector>

#include "emit/emitter.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router_gradient.hpp"
#include "varmoe/router_spec.hpp"
#include "varmoe/router_statistics.hpp"

/// The kernels of routing as operations of their own. As in emitter.hpp, numbers and enumerators alone reach
/// the text.
namespace varmoe::emit {

/// Most routed rows that moe_align_block_size does in one launch.
inline constexpr std::int64_t kAlignSingleRows = 1024;

/// The router: one kernel for every token count, a warp a token.
Result<EmittedKernel> emit_router(const RouterSpec& spec);

/// Everything a router launches: its own kernel first; with hidden_size its product for few and for many
/// tokens (router_gemv, router_gemm) after it.
Result<std::vector<EmittedKernel>> emit_router_kernels(const RouterSpec& spec);

/// Sums over blocks of tokens, and what follows from them (statistics_blocks, statistics_total).
Result<std::vector<EmittedKernel>> emit_router_statistics(const RouterStatisticsSpec& spec);

/// A router's backward pass: router_dlogits; with a loss of mean scores router_loss_terms after it; with
/// hidden_size router_dx and router_dweight at the end.
Result<std::vector<EmittedKernel>> emit_router_gradient(const RouterGradientSpec& spec);

/// One of the three align stages. The block size is bound at run time, so that aligners of equal E share
/// kernels.
Result<EmittedKernel> emit_align(const AlignSpec& spec, Stage stage);

}  // namespace varmoe::emit
