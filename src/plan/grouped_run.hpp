#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "abi.cuh"
#include "cuda/tensor_map.hpp"
#include "model/config_space.hpp"
#include "plan/expert_table.hpp"
#include "plan/gradient_run.hpp"
#include "plan/launch.hpp"
#include "plan/plan.hpp"
#include "schedule/row_tiles.cuh"
#include "varmoe/blocks.hpp"

/// Products with weights on rows that lie by expert, where a caller says.
namespace varmoe::plan {

/// What tile lists take of a workspace.
struct GroupedLayout {
  std::size_t total_bytes = 0;
  std::size_t tile_counts = 0, expert_rows = 0, fc1_tile_prefix = 0, fc1_tiles = 0, fc2_tiles = 0;

  std::size_t place(std::int64_t count, std::size_t bytes) noexcept {
    const std::size_t begin = total_bytes;
    total_bytes += (static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
    return begin;
  }
};

inline GroupedLayout grouped_layout(const LayerSpec& spec, std::int64_t rows) noexcept {
  // The lowest block_m and the largest cluster of the config space: the longest tile list.
  constexpr std::int64_t kSmallestBlockM = 8, kLargestCluster = 2;
  const std::int64_t experts = spec.all_experts();
  // Each expert's last tile may be short, and may need another to complete its cluster.
  const std::int64_t tiles = rows / kSmallestBlockM + kLargestCluster * std::min(experts, rows);
  GroupedLayout l;
  l.tile_counts = l.place(1, sizeof(abi::TileCounts));
  l.expert_rows = l.place(2 * experts + 1, sizeof(i32));
  l.fc1_tile_prefix = l.place(experts + 1, sizeof(i32));
  l.fc1_tiles = l.place(tiles, sizeof(abi::RowTile));
  l.fc2_tiles = l.place(tiles, sizeof(abi::RowTile));
  return l;
}

/// Launches of one block.
class BlockRun {
 public:
  BlockRun(const RunContext& context, void* stream) noexcept
      : context_(context), spec_(*context.spec), stream_(stream) {}

  template <class Params>
  Status launch(const LoadedKernel& kernel, std::int64_t blocks, Params& params) const noexcept {
    return launch_kernel(context_, stream_, kernel, blocks, params);
  }

  /// Blocks of a kernel that walks chunks of rows: one pass of as many as there is work; a layer held to
  /// fewer SMs keeps to those resident.
  std::int64_t elementwise_blocks(const LoadedKernel& kernel, std::int64_t chunks,
                                  std::int64_t chunks_per_thread) const noexcept {
    const std::int64_t per_block = kernel.block_threads * chunks_per_thread;
    return most_blocks(kernel, (chunks + per_block - 1) / per_block);
  }
  std::int64_t most_blocks(const LoadedKernel& kernel, std::int64_t wanted) const noexcept {
    const std::int64_t most = context_.sm_limited ? std::int64_t{kernel.blocks_per_sm} * context_.sm_count
                                                  : std::numeric_limits<i32>::max();
    return std::min(wanted, most);
  }

 protected:
  const RunContext& context_;
  const LayerSpec& spec_;
  void* const stream_;
};

/// One product: out = a · weights, and what its epilogue does besides.
struct GroupedProduct {
  Rows a;
  void* out = nullptr;
  std::int64_t out_stride = 0;  ///< elements
  const float* row_weight = nullptr;
  /// fc1 that keeps z: where; of a backward pass: where z is.
  void* z = nullptr;
  std::int64_t z_stride = 0;
  void* dz = nullptr;
  float* partials = nullptr;
  std::int64_t partial_stride = 0;
};

/// The caller's segments → tile lists → products, by the layer or its model::backward_layer.
class GroupedRun : public BlockRun {
 public:
  GroupedRun(const RunContext& context, const KernelSet& kernels, const RowsByExpert& rows,
             const GroupedLayout& layout, void* workspace, void* stream) noexcept
      : BlockRun(context, stream),
        kernels_(kernels),
        rows_(rows),
        table_(spec_.all_experts()),
        layout_(layout),
        workspace_(reinterpret_cast<std::uint64_t>(workspace)) {}

  Status schedule(const LoadedKernel& kernel) const noexcept {
    const LayerConfig& config = kernels_.config;
    const std::uint64_t table = context_.expert_table;
    abi::BlockScheduleParams b{};
    abi::SortParams& p = b.sort;
    p.experts = experts();
    p.expert_order = at<const i32>(table, table_.order);
    p.class_begin = at<const i32>(table, kernels_.runtime_width ? table_.one_class : table_.class_begin);
    p.expert_offsets = at<i32>(workspace_, layout_.expert_rows);
    p.fc1_tiles = at<abi::RowTile>(workspace_, layout_.fc1_tiles);
    p.fc2_tiles = at<abi::RowTile>(workspace_, layout_.fc2_tiles);
    p.tile_counts = at<abi::TileCounts>(workspace_, layout_.tile_counts);
    if (kernels_.runtime_width) p.fc1_tile_prefix = at<i32>(workspace_, layout_.fc1_tile_prefix);
    p.fc1_block_m = config.fc1.block_m;
    p.fc2_block_m = config.fc2.block_m;
    p.fc1_row_step = row_step(config.fc1);
    p.fc2_row_step = row_step(config.fc2);
    p.fc1_cluster = config.fc1.cluster;
    p.fc2_cluster = config.fc2.cluster;
    p.fc1_tile_columns = model::tile_columns(spec_, model::GemmStage::fc1, config.fc1);
    p.classes = classes();
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
    return launch(kernel, 1, b);
  }

  /// By a kernel of fc1's or fc2's tiles.
  Status product(emit::Stage stage, const LoadedKernel& kernel, const GroupedProduct& g) const noexcept {
    const bool first = stage == emit::Stage::fc1;
    const GemmConfig& config = first ? kernels_.config.fc1 : kernels_.config.fc2;
    const std::uint64_t table = context_.expert_table;
    abi::GemmParams p{};
    p.experts = experts();
    p.tiles = tiles(stage);
    p.tile_counts = tile_counts();
    p.expert_offsets = expert_rows();
    p.expert_order = at<const i32>(table, table_.order);
    p.tile_prefix = at<const i32>(workspace_, layout_.fc1_tile_prefix);
    p.biases = biases();
    p.weight_maps = at<const abi::TensorMap>(table, first ? table_.fc1_maps : table_.fc2_maps);
    p.tickets = at<i32>(workspace_, layout_.tile_counts + (first ? offsetof(abi::TileCounts, fc1_tickets)
                                                                 : offsetof(abi::TileCounts, fc2_tickets)));
    p.a = g.a.at;
    p.a_stride = g.a.stride;
    p.out = g.out;
    p.out_stride = g.out_stride;
    p.row_weight = g.row_weight;
    p.z = g.z;
    p.z_stride = g.z_stride;
    p.dz = g.dz;
    p.partials = g.partials;
    p.partial_stride = static_cast<i32>(g.partial_stride);
    if (model::uses_wgmma(config)) {
      cuda::TensorBoxes boxes;
      boxes.base = reinterpret_cast<std::uint64_t>(p.a);
      boxes.rank = 2;
      boxes.size = {static_cast<std::uint64_t>(g.a.columns), static_cast<std::uint64_t>(rows_.rows)};
      boxes.stride = {static_cast<std::uint64_t>(p.a_stride) * 2};
      boxes.box = {64, static_cast<std::uint32_t>(schedule::row_box(config.block_m))};
      boxes.bf16 = spec_.dtype == DType::bf16;
      if (auto ok = cuda::encode_tensor_map(*context_.driver, boxes, &p.row_map); !ok) return ok;
    }
    const std::int64_t columns =
        first ? model::tile_columns(spec_, model::GemmStage::fc1, config) : config.block_n;
    const std::int64_t width = first ? context_.max_width : spec_.hidden_size;
    const std::int64_t blocks =
        std::min<std::int64_t>(most_tiles(config) * ((width + columns - 1) / columns),
                               std::int64_t{kernel.blocks_per_sm} * context_.sm_count);
    return launch(kernel, std::max<std::int64_t>(blocks / config.cluster, 1) * config.cluster, p);
  }

  const abi::ExpertEntry* experts() const noexcept {
    return at<const abi::ExpertEntry>(context_.expert_table, table_.entries);
  }
  const abi::ExpertBias* biases() const noexcept {
    return spec_.bias ? at<const abi::ExpertBias>(context_.expert_table, table_.biases) : nullptr;
  }
  const abi::TileCounts* tile_counts() const noexcept {
    return at<const abi::TileCounts>(workspace_, layout_.tile_counts);
  }
  const abi::RowTile* tiles(emit::Stage stage) const noexcept {
    return at<const abi::RowTile>(workspace_,
                                  stage == emit::Stage::fc1 ? layout_.fc1_tiles : layout_.fc2_tiles);
  }
  /// [2E + 1]: first rows, all rows, rows of each.
  const i32* expert_rows() const noexcept { return at<const i32>(workspace_, layout_.expert_rows); }
  i32 classes() const noexcept { return kernels_.runtime_width ? 1 : context_.classes; }
  /// Row tiles that there can be.
  std::int64_t most_tiles(const GemmConfig& config) const noexcept {
    return rows_.rows / config.block_m +
           config.cluster * std::min<std::int64_t>(spec_.all_experts(), rows_.rows);
  }

 private:
  /// mma_sync tiles are all full but an expert's last.
  static i32 row_step(const GemmConfig& config) noexcept {
    return model::uses_wgmma(config) ? config.row_step : config.block_m;
  }

 protected:
  const KernelSet& kernels_;
  const RowsByExpert& rows_;
  const ExpertTableLayout table_;
  const GroupedLayout layout_;
  const std::uint64_t workspace_;
};

}  // namespace varmoe::plan
