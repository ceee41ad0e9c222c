#include "plan/routing.hpp"

#include <algorithm>

#include "abi.cuh"
#include "emit/routing.hpp"
#include "moe/router_chunks.cuh"
#include "plan/routing_launch.hpp"
#include "plan/sort_grid.hpp"

namespace varmoe::plan {
namespace {

/// Up to so many tokens a warp computes a tile of its own.
constexpr std::int64_t kGemvMost = 2 * moe::kRouterGemvTokens;
/// From so many tiles on, they fill a GPU without cutting K, and partial sums would cost more than they
/// bring.
constexpr std::int64_t kTilesThatFill = 96;

std::int64_t expert_tiles(const RouterSpec& spec) {
  return divide_up(spec.num_experts, moe::kRouterGemmExperts);
}

/// Most tokens whose product is cut along K.
std::int64_t most_split_tokens(const RouterSpec& spec) {
  return (divide_up(kTilesThatFill, expert_tiles(spec)) - 1) * moe::kRouterGemmTokens;
}

/// Arrays of partial sums for `tokens` tokens.
i32 partials_of(const RouterSpec& spec, std::int64_t tokens) {
  return tokens <= std::max(kGemvMost, most_split_tokens(spec))
             ? moe::router_chunks(static_cast<i32>(spec.hidden_size))
             : 1;
}

Status run_product(const RoutingContext& context, const RouterKernels& kernels, const RouterSpec& spec,
                   const RouteArgs& args) noexcept {
  abi::RouterProductParams p{};
  p.x = args.x;
  p.weight = args.weight;
  p.partials = static_cast<float*>(args.workspace);
  p.token_count = args.token_count;
  p.x_stride = args.x_stride != 0 ? args.x_stride : spec.hidden_size;
  p.weight_stride = args.weight_stride != 0 ? args.weight_stride : spec.hidden_size;
  p.tokens = static_cast<i32>(args.tokens);
  const i32 partials = partials_of(spec, args.tokens);
  p.split = partials > 1 ? 1 : 0;
  const auto chunks = static_cast<std::uint32_t>(partials);
  if (args.tokens <= kGemvMost) {
    const cuda::Dim3 grid{static_cast<std::uint32_t>(divide_up(args.tokens, moe::kRouterGemvTokens)),
                          static_cast<std::uint32_t>(divide_up(spec.num_experts, moe::kRouterGemvExperts)),
                          chunks};
    return launch(context, kernels.gemv, grid, p, args.stream);
  }
  const cuda::Dim3 grid{static_cast<std::uint32_t>(divide_up(args.tokens, moe::kRouterGemmTokens)),
                        static_cast<std::uint32_t>(expert_tiles(spec)), chunks};
  return launch(context, kernels.gemm, grid, p, args.stream);
}

}  // namespace

std::size_t route_workspace_bytes(const RouterSpec& spec, std::int64_t tokens) noexcept {
  if (spec.hidden_size == 0 || tokens <= 0) return 0;
  // Fewer tokens may need more; what serves `tokens` serves all below it.
  const std::int64_t split = std::min(tokens, std::max(kGemvMost, most_split_tokens(spec)));
  const std::int64_t rows = std::max(tokens, split * partials_of(spec, split));
  return static_cast<std::size_t>(rows * spec.num_experts) * sizeof(float);
}

Status run_route(const RoutingContext& context, const RouterKernels& kernels, const RouterSpec& spec,
                 const RouteArgs& args) noexcept {
  abi::RouteParams p{};
  const bool product = spec.hidden_size != 0;
  if (product) {
    if (auto ok = run_product(context, kernels, spec, args); !ok) return ok;
    p.partials = partials_of(spec, args.tokens);
    p.logit_bias = spec.logit_bias ? args.logit_bias : nullptr;
    p.logits_out = args.logits_out;
  }
  p.logits = product ? args.workspace : args.logits;
  p.correction_bias = args.correction_bias;
  p.topk_ids = args.topk_ids;
  p.topk_weights = args.topk_weights;
  p.scores = args.scores;
  p.token_count = args.token_count;
  p.logit_stride = !product && args.logit_stride != 0 ? args.logit_stride : spec.num_experts;
  p.tokens = static_cast<i32>(args.tokens);
  p.wide_loads =
      loads_wide(p.logits, p.logit_stride, spec.logit_type == LogitType::fp32 ? 4 : 2, spec.num_experts);
  const std::int64_t warps = kernels.route.block_threads / 32;
  return launch(context, kernels.route, divide_up(args.tokens, warps), p, args.stream);
}

namespace {

/// Tokens of a block at least, and blocks at most: one block adds them up.
constexpr std::int64_t kStatisticsTokens = 64, kStatisticsBlocks = 128;

std::int64_t statistics_blocks(std::int64_t tokens) {
  return std::clamp<std::int64_t>(divide_up(tokens, kStatisticsTokens), 1, kStatisticsBlocks);
}

}  // namespace

std::size_t statistics_workspace_bytes(const RouterStatisticsSpec& spec, std::int64_t tokens) noexcept {
  return static_cast<std::size_t>(statistics_blocks(tokens) * (2 * spec.num_experts + 1)) * sizeof(float);
}

Status run_statistics(const RoutingContext& context, const StatisticsKernels& kernels,
                      const RouterStatisticsSpec& spec, const RouterStatisticsArgs& args) noexcept {
  const std::int64_t blocks = statistics_blocks(args.tokens);
  abi::RouterStatisticsParams p{};
  p.logits = args.logits;
  p.topk_ids = args.topk_ids;
  p.expert_widths = args.expert_widths;
  p.token_count = args.token_count;
  p.tokens_per_expert = args.tokens_per_expert;
  p.mean_scores = args.mean_scores;
  p.losses = args.losses;
  p.block_scores = static_cast<float*>(args.workspace);
  p.block_counts = static_cast<i32*>(args.workspace) + blocks * spec.num_experts;
  p.block_z = p.block_scores + 2 * blocks * spec.num_experts;
  p.logit_stride = args.logit_stride != 0 ? args.logit_stride : spec.num_experts;
  p.tokens = static_cast<i32>(args.tokens);
  p.tokens_per_block = static_cast<i32>(divide_up(args.tokens, blocks));
  p.blocks = static_cast<i32>(blocks);
  p.ids_are_64bit = args.id_type == IdType::int64;
  p.wide_loads =
      loads_wide(p.logits, p.logit_stride, spec.logit_type == LogitType::fp32 ? 4 : 2, spec.num_experts);
  if (auto ok = launch(context, kernels.blocks, blocks, p, args.stream); !ok) return ok;
  return launch(context, kernels.total, 1, p, args.stream);
}

std::size_t align_workspace_bytes(const AlignSpec& spec, std::int64_t rows) noexcept {
  if (rows <= emit::kAlignSingleRows) return 0;
  return static_cast<std::size_t>(SortGrid(rows).blocks * spec.num_experts) * sizeof(i32);
}

namespace {

/// Blocks that write what is not a row: sentinels are most of the output where rows are few.
std::int64_t align_writers(std::int64_t sorted_size) noexcept {
  constexpr std::int64_t kPlaces = 2048, kMost = 16;
  return std::clamp<std::int64_t>(divide_up(sorted_size, kPlaces), 1, kMost);
}

}  // namespace

Status run_align(const RoutingContext& context, const AlignKernels& kernels, const AlignSpec& spec,
                 const AlignArgs& args) noexcept {
  const SortGrid grid(args.rows);
  abi::AlignParams p{};
  p.topk_ids = args.topk_ids;
  p.sorted_token_ids = args.sorted_token_ids;
  p.expert_ids = args.expert_ids;
  p.num_tokens_post_pad = args.num_tokens_post_pad;
  p.block_histogram = static_cast<i32*>(args.workspace);
  p.rows = static_cast<i32>(args.rows);
  p.ids_are_64bit = args.id_type == IdType::int64;
  p.block_size = static_cast<i32>(spec.block_size);
  p.sorted_size = static_cast<i32>(args.sorted_size);
  p.blocks = static_cast<i32>(aligned_blocks(spec, args.sorted_size));
  p.slots_per_block = static_cast<i32>(grid.slots_per_block);
  const std::int64_t writers = align_writers(args.sorted_size);
  if (args.rows <= emit::kAlignSingleRows)
    return launch(context, kernels.single, 1 + writers, p, args.stream);
  if (auto ok = launch(context, kernels.count, grid.blocks, p, args.stream); !ok) return ok;
  return launch(context, kernels.scatter, grid.blocks + writers, p, args.stream);
}

}  // namespace varmoe::plan
