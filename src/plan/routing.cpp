#include "plan/routing.hpp"

#include <bit>

#include "abi.cuh"
#include "cuda/launch.hpp"
#include "emit/routing.hpp"
#include "moe/rank_key.cuh"
#include "plan/sort_grid.hpp"

namespace varmoe::plan {
namespace {

template <class Params>
Status launch(const RoutingContext& context, const LoadedKernel& kernel, std::int64_t blocks, Params& params,
              void* stream) noexcept {
  void* arguments[] = {&params};
  return cuda::launch(*context.driver, kernel.function, {static_cast<std::uint32_t>(blocks)},
                      {static_cast<std::uint32_t>(kernel.block_threads)},
                      static_cast<std::uint32_t>(kernel.dynamic_smem_bytes), stream, arguments,
                      {.programmatic_dependent_launch = context.dependent_launch});
}

}  // namespace

Status run_route(const RoutingContext& context, const LoadedKernel& kernel, const RouterSpec& spec,
                 const RouteArgs& args) noexcept {
  abi::RouteParams p{};
  p.logits = args.logits;
  p.correction_bias = args.correction_bias;
  p.topk_ids = args.topk_ids;
  p.topk_weights = args.topk_weights;
  p.scores = args.scores;
  p.token_count = args.token_count;
  p.logit_stride = args.logit_stride != 0 ? args.logit_stride : spec.num_experts;
  p.tokens = static_cast<i32>(args.tokens);
  const i32 element = spec.logit_type == LogitType::fp32 ? 4 : 2;
  const auto wide = static_cast<std::uint64_t>(
      element * moe::experts_per_load(static_cast<i32>(spec.num_experts), element));
  const auto address = std::bit_cast<std::uintptr_t>(args.logits);
  p.wide_loads =
      address % wide == 0 &&
              static_cast<std::uint64_t>(p.logit_stride) * static_cast<std::uint64_t>(element) % wide == 0
          ? 1
          : 0;
  const std::int64_t warps = kernel.block_threads / 32;
  return launch(context, kernel, (args.tokens + warps - 1) / warps, p, args.stream);
}

std::size_t align_workspace_bytes(const AlignSpec& spec, std::int64_t rows) noexcept {
  if (rows <= emit::kAlignSingleRows) return 0;
  return static_cast<std::size_t>(SortGrid(rows).blocks * spec.num_experts) * sizeof(i32);
}

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
  if (args.rows <= emit::kAlignSingleRows) return launch(context, kernels.single, 1, p, args.stream);
  if (auto ok = launch(context, kernels.count, grid.blocks, p, args.stream); !ok) return ok;
  return launch(context, kernels.scatter, grid.blocks + 1, p, args.stream);  // one writes what is not a row
}

}  // namespace varmoe::plan
