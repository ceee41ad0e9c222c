#pragma once

#include "prelude.cuh"

// How the router's product cuts K. Host code as well: it sizes the workspace.
namespace varmoe::moe {

/// K of one stage of the tiled kernel.
inline constexpr i32 kRouterStageK = 64;
inline constexpr i32 kRouterMostChunks = 16;

/// Elements of K that one accumulator sums: whole stages. Of H alone, so that a logit is the same sum whatever the number of tokens.
VARMOE_SHARED_CODE constexpr i32 router_chunk(i32 hidden) {
  const i32 wanted = min_of(kRouterMostChunks, ceil_div(hidden, 256));
  return ceil_div(ceil_div(hidden, wanted), kRouterStageK) * kRouterStageK;
}

VARMOE_SHARED_CODE constexpr i32 router_chunks(i32 hidden) { return ceil_div(hidden, router_chunk(hidden)); }

/// Output tiles: tokens and experts of a block.
inline constexpr i32 kRouterGemvTokens = 8, kRouterGemvExperts = 16;
inline constexpr i32 kRouterGemmTokens = 64, kRouterGemmExperts = 64;

}  // namespace varmoe::moe
