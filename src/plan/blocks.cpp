#include "plan/blocks.hpp"

#include "abi.cuh"
#include "plan/grouped_run.hpp"

namespace varmoe::plan {
namespace {

using emit::Stage;

/// `up` or `down`: the caller's segments → tile lists → products.
Status run_product(const RunContext& context, const BlockKernels& kernels, Stage stage,
                   const RowsByExpert& rows, const LoadedKernel& kernel, const GroupedProduct& product,
                   void* workspace, void* stream) noexcept {
  const GroupedRun run(context, kernels.layer, rows, grouped_layout(*context.spec, rows.rows), workspace,
                       stream);
  if (auto ok = run.schedule(kernels.schedule); !ok) return ok;
  return run.product(stage, kernel, product);
}

static_assert(static_cast<int>(RowLayout::offsets) == static_cast<int>(abi::SegmentSource::offsets) &&
              static_cast<int>(RowLayout::counts) == static_cast<int>(abi::SegmentSource::counts) &&
              static_cast<int>(RowLayout::batched) == static_cast<int>(abi::SegmentSource::batched) &&
              static_cast<int>(RowLayout::aligned_blocks) == static_cast<int>(abi::SegmentSource::aligned));

}  // namespace

std::size_t blocks_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept {
  return grouped_layout(spec, rows).total_bytes;
}

Status run_block_gather(const RunContext& context, const BlockKernels& kernels,
                        const GatherArgs& a) noexcept {
  const BlockRun run(context, a.stream);
  const LayerSpec& spec = *context.spec;
  abi::RowMapParams p{};
  p.row_map = a.row_map;
  p.row_count = a.row_count;
  p.x = a.x;
  p.out = a.out;
  p.x_stride = a.x_stride != 0 ? a.x_stride : spec.hidden_size;
  p.rows = static_cast<i32>(a.rows);
  p.names_tokens = a.map_to == RowMap::tokens;
  p.limit = static_cast<i32>(p.names_tokens ? a.tokens : a.tokens * spec.slots_per_token());
  return run.launch(kernels.gather,
                    run.elementwise_blocks(kernels.gather, a.rows * (spec.hidden_size / 8), 4), p);
}

Status run_slot_rows(const RunContext& context, const BlockKernels& kernels, const SlotRowsArgs& a) noexcept {
  const BlockRun run(context, a.stream);
  abi::RowMapParams p{};
  p.slot_row = a.slot_row;
  p.limit = static_cast<i32>(a.tokens * context.spec->slots_per_token());
  if (auto ok = run.launch(kernels.slot_rows, run.elementwise_blocks(kernels.slot_rows, p.limit, 1), p);
      !ok || a.rows == 0)
    return ok;
  p.row_map = a.row_map;
  p.row_count = a.row_count;
  p.rows = static_cast<i32>(a.rows);
  return run.launch(kernels.slot_rows, run.elementwise_blocks(kernels.slot_rows, a.rows, 1), p);
}

Status run_block_up(const RunContext& context, const BlockKernels& kernels, const GroupedUpArgs& a) noexcept {
  const LayerSpec& spec = *context.spec;
  GroupedProduct p;
  p.a = {a.x, a.x_stride != 0 ? a.x_stride : spec.hidden_size, spec.hidden_size};
  p.out = a.h;
  p.out_stride = a.h_stride != 0 ? a.h_stride : model::h_columns(context.max_width);
  p.row_weight = a.row_weights;
  p.z = a.z;
  p.z_stride = a.z_stride != 0 ? a.z_stride : z_columns(spec, context.max_width);
  return run_product(context, kernels, Stage::fc1, a.by_expert,
                     a.z != nullptr ? kernels.up_saving : kernels.layer[Stage::fc1], p, a.workspace,
                     a.stream);
}

Status run_block_down(const RunContext& context, const BlockKernels& kernels,
                      const GroupedDownArgs& a) noexcept {
  const LayerSpec& spec = *context.spec;
  GroupedProduct p;
  const std::int64_t columns = model::h_columns(context.max_width);
  const std::int64_t stride = a.h_stride != 0 ? a.h_stride : columns;
  // No wider than the widest expert's whole stages: what lies behind is none of ours.
  p.a = {a.h, stride, std::min(stride, columns)};
  p.out = a.y;
  p.out_stride = spec.hidden_size;
  p.row_weight = a.row_weights;
  return run_product(context, kernels, Stage::fc2, a.by_expert, kernels.layer[Stage::fc2], p, a.workspace,
                     a.stream);
}

Status run_block_combine(const RunContext& context, const BlockKernels& kernels,
                         const CombineArgs& a) noexcept {
  const BlockRun run(context, a.stream);
  const LayerSpec& spec = *context.spec;
  abi::CombineParams p{};
  p.y = a.y;
  p.out = a.out;
  p.slot_row = a.slot_row;
  p.topk_weights = a.topk_weights;
  p.shared_weight = a.shared_weights;
  p.token_count = a.token_count;
  p.out_stride = a.out_stride != 0 ? a.out_stride : spec.hidden_size;
  p.tokens = static_cast<i32>(a.tokens);
  p.accumulate = a.accumulate;
  p.keep_absent = a.absent_tokens == AbsentTokens::untouched;
  const bool weighs = a.topk_weights != nullptr || a.shared_weights != nullptr;
  const LoadedKernel& kernel = weighs ? kernels.layer[Stage::combine] : kernels.combine_sum;
  return run.launch(kernel, run.elementwise_blocks(kernel, a.tokens * (spec.hidden_size / 8), 1), p);
}

Status run_combine_backward(const RunContext& context, const BlockKernels& kernels,
                            const CombineBackwardArgs& a) noexcept {
  const BlockRun run(context, a.stream);
  const LayerSpec& spec = *context.spec;
  abi::CombineGradientParams p{};
  p.dout = a.dout;
  p.y = a.y;
  p.dy = a.dy;
  p.slot_row = a.slot_row;
  p.topk_weights = a.topk_weights;
  p.shared_weight = a.shared_weights;
  p.topk_gradient = a.dtopk_weights;
  p.shared_gradient = a.dshared_weights;
  p.token_count = a.token_count;
  p.dout_stride = a.dout_stride != 0 ? a.dout_stride : spec.hidden_size;
  p.tokens = static_cast<i32>(a.tokens);
  // A warp a slot.
  const std::int64_t threads = a.tokens * spec.slots_per_token() * 32;
  return run.launch(kernels.combine_gradient, run.elementwise_blocks(kernels.combine_gradient, threads, 1),
                    p);
}

}  // namespace varmoe::plan
