#include "plan/blocks.hpp"

#include <algorithm>
#include <limits>

#include "abi.cuh"
#include "cuda/launch.hpp"
#include "cuda/tensor_map.hpp"
#include "model/config_space.hpp"
#include "plan/expert_table.hpp"
#include "schedule/row_tiles.cuh"

namespace varmoe::plan {
namespace {

using emit::Stage;

/// The lowest block_m and the largest cluster of the config space: the longest tile list.
constexpr std::int64_t kSmallestBlockM = 8, kLargestCluster = 2;

template <class T>
T* at(std::uint64_t base, std::size_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

struct BlocksLayout {
  std::size_t total_bytes = 0;
  std::size_t tile_counts, expert_rows, fc1_tile_prefix, fc1_tiles, fc2_tiles;

  BlocksLayout(std::int64_t experts, std::int64_t rows) noexcept {
    const auto place = [&](std::int64_t count, std::size_t bytes) {
      const std::size_t begin = total_bytes;
      total_bytes += (static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
      return begin;
    };
    // Each expert's last tile may be short, and may need another to complete its cluster.
    const std::int64_t tiles = rows / kSmallestBlockM + kLargestCluster * std::min(experts, rows);
    tile_counts = place(1, sizeof(abi::TileCounts));
    expert_rows = place(2 * experts + 1, sizeof(i32));
    fc1_tile_prefix = place(experts + 1, sizeof(i32));
    fc1_tiles = place(tiles, sizeof(abi::RowTile));
    fc2_tiles = place(tiles, sizeof(abi::RowTile));
  }
};

/// Launches of one block.
class BlockRun {
 public:
  BlockRun(const RunContext& context, const BlockKernels& kernels, void* stream) noexcept
      : context_(context), kernels_(kernels), spec_(*context.spec), stream_(stream) {}

  template <class Params>
  Status launch(const LoadedKernel& kernel, std::int64_t blocks, Params& params) const noexcept {
    void* arguments[] = {&params};
    return cuda::launch(*context_.driver, kernel.function,
                        {static_cast<std::uint32_t>(std::max<std::int64_t>(blocks, 1))},
                        {static_cast<std::uint32_t>(kernel.block_threads)},
                        static_cast<std::uint32_t>(kernel.dynamic_smem_bytes), stream_, arguments,
                        {.programmatic_dependent_launch = context_.dependent_launch});
  }

  /// Blocks of a kernel that walks chunks of rows: one pass of as many as there is work; a layer held to
  /// fewer SMs keeps to those resident.
  std::int64_t elementwise_blocks(const LoadedKernel& kernel, std::int64_t chunks,
                                  std::int64_t chunks_per_thread) const noexcept {
    const std::int64_t per_block = kernel.block_threads * chunks_per_thread;
    const std::int64_t blocks = (chunks + per_block - 1) / per_block;
    const std::int64_t most = context_.sm_limited ? std::int64_t{kernel.blocks_per_sm} * context_.sm_count
                                                  : std::numeric_limits<i32>::max();
    return std::min(blocks, most);
  }

  const RunContext& context_;
  const BlockKernels& kernels_;
  const LayerSpec& spec_;
  void* const stream_;
};

/// up or down: the caller's segments → tile lists → products.
class GroupedRun : BlockRun {
 public:
  GroupedRun(const RunContext& context, const BlockKernels& kernels, const RowsByExpert& rows,
             void* workspace, void* stream) noexcept
      : BlockRun(context, kernels, stream),
        rows_(rows),
        table_(spec_.all_experts()),
        layout_(spec_.all_experts(), rows.rows),
        workspace_(reinterpret_cast<std::uint64_t>(workspace)) {}

  Status schedule() const noexcept {
    const LayerConfig& config = kernels_.layer.config;
    const std::uint64_t table = context_.expert_table;
    const bool runtime_width = kernels_.layer.runtime_width;
    abi::BlockScheduleParams b{};
    abi::SortParams& p = b.sort;
    p.experts = at<const abi::ExpertEntry>(table, table_.entries);
    p.expert_order = at<const i32>(table, table_.order);
    p.class_begin = at<const i32>(table, runtime_width ? table_.one_class : table_.class_begin);
    p.expert_offsets = at<i32>(workspace_, layout_.expert_rows);
    p.fc1_tiles = at<abi::RowTile>(workspace_, layout_.fc1_tiles);
    p.fc2_tiles = at<abi::RowTile>(workspace_, layout_.fc2_tiles);
    p.tile_counts = at<abi::TileCounts>(workspace_, layout_.tile_counts);
    if (runtime_width) p.fc1_tile_prefix = at<i32>(workspace_, layout_.fc1_tile_prefix);
    p.fc1_block_m = config.fc1.block_m;
    p.fc2_block_m = config.fc2.block_m;
    p.fc1_row_step = row_step(config.fc1);
    p.fc2_row_step = row_step(config.fc2);
    p.fc1_cluster = config.fc1.cluster;
    p.fc2_cluster = config.fc2.cluster;
    p.fc1_tile_columns = model::tile_columns(spec_, model::GemmStage::fc1, config.fc1);
    p.classes = runtime_width ? 1 : context_.classes;
    b.offsets = rows_.expert_offsets;
    b.counts = rows_.expert_counts;
    b.sorted_ids = rows_.sorted_token_ids;
    b.expert_ids = rows_.expert_ids;
    b.padded_rows = rows_.num_tokens_post_pad;
    b.source = static_cast<abi::SegmentSource>(rows_.layout);
    b.are_64bit = rows_.index_type == IdType::int64;
    b.rows = static_cast<i32>(rows_.rows);
    b.multiple = static_cast<i32>(rows_.multiple);
    b.sentinel = static_cast<i32>(rows_.routed_rows);
    return launch(kernels_.schedule, 1, b);
  }

  Status up(const GroupedUpArgs& a) const noexcept {
    const GemmConfig& config = kernels_.layer.config.fc1;
    abi::GemmParams p = gemm_params(layout_.fc1_tiles);
    p.weight_maps = at<const abi::TensorMap>(context_.expert_table, table_.fc1_maps);
    p.tickets = at<i32>(workspace_, layout_.tile_counts + offsetof(abi::TileCounts, fc1_tickets));
    p.a = a.x;
    p.a_stride = a.x_stride != 0 ? a.x_stride : spec_.hidden_size;
    p.out = a.h;
    p.out_stride = a.h_stride != 0 ? a.h_stride : model::h_columns(context_.max_width);
    p.row_weight = a.row_weights;
    const std::int64_t columns = model::tile_columns(spec_, model::GemmStage::fc1, config);
    return product(Stage::fc1, config, p, spec_.hidden_size, columns, context_.max_width);
  }

  Status down(const GroupedDownArgs& a) const noexcept {
    const GemmConfig& config = kernels_.layer.config.fc2;
    abi::GemmParams p = gemm_params(layout_.fc2_tiles);
    p.weight_maps = at<const abi::TensorMap>(context_.expert_table, table_.fc2_maps);
    p.tickets = at<i32>(workspace_, layout_.tile_counts + offsetof(abi::TileCounts, fc2_tickets));
    p.a = a.h;
    p.a_stride = a.h_stride != 0 ? a.h_stride : model::h_columns(context_.max_width);
    p.out = a.y;
    p.out_stride = spec_.hidden_size;
    p.row_weight = a.row_weights;
    // No wider than the widest expert's whole stages: what lies behind is none of ours.
    const std::int64_t k = std::min<std::int64_t>(p.a_stride, model::h_columns(context_.max_width));
    return product(Stage::fc2, config, p, k, config.block_n, spec_.hidden_size);
  }

 private:
  abi::GemmParams gemm_params(std::size_t tiles) const noexcept {
    abi::GemmParams p{};
    p.experts = at<const abi::ExpertEntry>(context_.expert_table, table_.entries);
    p.tiles = at<const abi::RowTile>(workspace_, tiles);
    p.tile_counts = at<const abi::TileCounts>(workspace_, layout_.tile_counts);
    p.expert_offsets = at<const i32>(workspace_, layout_.expert_rows);
    p.expert_order = at<const i32>(context_.expert_table, table_.order);
    p.tile_prefix = at<const i32>(workspace_, layout_.fc1_tile_prefix);
    p.biases = spec_.bias ? at<const abi::ExpertBias>(context_.expert_table, table_.biases) : nullptr;
    return p;
  }

  /// `k`: columns of a that there are; `columns`: of the output per tile, `width`: in all, at most.
  Status product(Stage stage, const GemmConfig& config, abi::GemmParams& p, std::int64_t k,
                 std::int64_t columns, std::int64_t width) const noexcept {
    if (model::uses_wgmma(config)) {
      cuda::TensorBoxes boxes;
      boxes.base = reinterpret_cast<std::uint64_t>(p.a);
      boxes.rank = 2;
      boxes.size = {static_cast<std::uint64_t>(k), static_cast<std::uint64_t>(rows_.rows)};
      boxes.stride = {static_cast<std::uint64_t>(p.a_stride) * 2};
      boxes.box = {64, static_cast<std::uint32_t>(schedule::row_box(config.block_m))};
      boxes.bf16 = spec_.dtype == DType::bf16;
      if (auto ok = cuda::encode_tensor_map(*context_.driver, boxes, &p.row_map); !ok) return ok;
    }
    const LoadedKernel& kernel = kernels_.layer[stage];
    const std::int64_t row_tiles = rows_.rows / config.block_m +
                                   config.cluster * std::min<std::int64_t>(spec_.all_experts(), rows_.rows);
    const std::int64_t blocks =
        std::min<std::int64_t>(row_tiles * ((width + columns - 1) / columns),
                               std::int64_t{kernel.blocks_per_sm} * context_.sm_count);
    return launch(kernel, std::max<std::int64_t>(blocks / config.cluster, 1) * config.cluster, p);
  }

  /// mma_sync tiles are all full but an expert's last.
  static i32 row_step(const GemmConfig& config) noexcept {
    return model::uses_wgmma(config) ? config.row_step : config.block_m;
  }

  const RowsByExpert& rows_;
  const ExpertTableLayout table_;
  const BlocksLayout layout_;
  const std::uint64_t workspace_;
};

static_assert(static_cast<int>(RowLayout::offsets) == static_cast<int>(abi::SegmentSource::offsets) &&
              static_cast<int>(RowLayout::counts) == static_cast<int>(abi::SegmentSource::counts) &&
              static_cast<int>(RowLayout::batched) == static_cast<int>(abi::SegmentSource::batched) &&
              static_cast<int>(RowLayout::aligned_blocks) == static_cast<int>(abi::SegmentSource::aligned));

}  // namespace

std::size_t blocks_workspace_bytes(const LayerSpec& spec, std::int64_t rows) noexcept {
  return BlocksLayout(spec.all_experts(), rows).total_bytes;
}

Status run_block_gather(const RunContext& context, const BlockKernels& kernels,
                        const GatherArgs& a) noexcept {
  const BlockRun run(context, kernels, a.stream);
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
  const BlockRun run(context, kernels, a.stream);
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
  const GroupedRun run(context, kernels, a.by_expert, a.workspace, a.stream);
  if (auto ok = run.schedule(); !ok) return ok;
  return run.up(a);
}

Status run_block_down(const RunContext& context, const BlockKernels& kernels,
                      const GroupedDownArgs& a) noexcept {
  const GroupedRun run(context, kernels, a.by_expert, a.workspace, a.stream);
  if (auto ok = run.schedule(); !ok) return ok;
  return run.down(a);
}

Status run_block_combine(const RunContext& context, const BlockKernels& kernels,
                         const CombineArgs& a) noexcept {
  const BlockRun run(context, kernels, a.stream);
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
  const BlockRun run(context, kernels, a.stream);
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
