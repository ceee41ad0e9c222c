#include "plan/router_gradient.hpp"

#include <algorithm>

#include "plan/routing_launch.hpp"

namespace varmoe::plan {
namespace {

/// Rows and columns of router_dx's and router_dweight's tiles.
constexpr std::int64_t kProductTile = 64;

}  // namespace

std::size_t gradient_workspace_bytes(const RouterGradientSpec& spec) noexcept {
  if ((spec.losses & ~loss_bit(RouterLoss::z)) == 0) return 0;
  return static_cast<std::size_t>(spec.router.num_experts) * sizeof(float);
}

bool has_share_losses(const RouterGradientArgs& args) noexcept {
  return std::any_of(args.coefficients + 1, args.coefficients + kRouterLosses,
                     [](float c) { return c != 0.0f; });
}

Status run_gradient(const RoutingContext& context, const GradientKernels& kernels,
                    const RouterGradientSpec& spec, const RouterGradientArgs& args) noexcept {
  const std::int64_t experts = spec.router.num_experts;
  abi::RouterGradientParams p{};
  p.logits = args.logits;
  p.topk_ids = args.topk_ids;
  p.dtopk_weights = args.dtopk_weights;
  p.dlogits = args.dlogits;
  p.token_count = args.token_count;
  p.tokens_per_expert = args.tokens_per_expert;
  p.mean_scores = args.mean_scores;
  p.expert_widths = args.expert_widths;
  p.logit_stride = args.logit_stride != 0 ? args.logit_stride : experts;
  p.dlogit_stride = args.dlogit_stride != 0 ? args.dlogit_stride : experts;
  p.loss_tokens = args.loss_tokens;
  std::copy_n(args.coefficients, kRouterLosses, p.coefficients);
  p.tokens = static_cast<i32>(args.tokens);
  p.ids_are_64bit = args.id_type == IdType::int64;
  p.wide_loads =
      loads_wide(p.logits, p.logit_stride, spec.router.logit_type == LogitType::fp32 ? 4 : 2, experts);
  if (has_share_losses(args)) {
    p.terms = static_cast<float*>(args.workspace);
    if (auto ok = launch(context, kernels.loss_terms, 1, p, args.stream); !ok) return ok;
  }
  const std::int64_t warps = kernels.dlogits.block_threads / 32;
  return launch(context, kernels.dlogits, divide_up(args.tokens, warps), p, args.stream);
}

Status run_product_gradient(const RoutingContext& context, const GradientKernels& kernels,
                            const RouterGradientSpec& spec, const RouterProductGradientArgs& args) noexcept {
  const std::int64_t experts = spec.router.num_experts, hidden = spec.router.hidden_size;
  const auto stride = [](std::int64_t given, std::int64_t least) { return given != 0 ? given : least; };
  abi::RouterProductGradientParams p{};
  p.dlogits = args.dlogits;
  p.x = args.x;
  p.weight = args.weight;
  p.dx = args.dx;
  p.dweight = args.dweight;
  p.dlogit_bias = args.dlogit_bias;
  p.token_count = args.token_count;
  p.dlogit_stride = stride(args.dlogit_stride, experts);
  p.x_stride = stride(args.x_stride, hidden);
  p.weight_stride = stride(args.weight_stride, hidden);
  p.dx_stride = stride(args.dx_stride, hidden);
  p.dweight_stride = stride(args.dweight_stride, hidden);
  p.tokens = static_cast<i32>(args.tokens);
  const auto of_hidden = static_cast<std::uint32_t>(divide_up(hidden, kProductTile));
  if (args.dx && args.tokens > 0) {
    p.accumulate = args.accumulate_dx ? 1 : 0;
    const cuda::Dim3 grid{static_cast<std::uint32_t>(divide_up(args.tokens, kProductTile)), of_hidden};
    if (auto ok = launch(context, kernels.dx, grid, p, args.stream); !ok) return ok;
  }
  if (!args.dweight && !args.dlogit_bias) return {};
  p.accumulate = args.accumulate_weight ? 1 : 0;
  // The bias alone is the first column of blocks' work.
  const cuda::Dim3 grid{args.dweight ? of_hidden : 1,
                        static_cast<std::uint32_t>(divide_up(experts, kProductTile))};
  return launch(context, kernels.dweight, grid, p, args.stream);
}

}  // namespace varmoe::plan
