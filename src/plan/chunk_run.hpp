#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "abi.cuh"
#include "cuda/device.hpp"
#include "cuda/tensor_map.hpp"
#include "model/config_space.hpp"
#include "model/one_launch.hpp"
#include "plan/expert_table.hpp"
#include "plan/launch.hpp"
#include "plan/plan.hpp"
#include "plan/sort_grid.hpp"
#include "schedule/row_tiles.cuh"

/// The launches of a forward, one after another; of a backward pass too, whose products are fc1 and fc2 of
/// another layer.
namespace varmoe::plan {

using emit::Stage;

static_assert(model::kMaxOneLaunchBlocks == abi::kMaxLayerBlocks);

/// One chunk of tokens on its way through the kernels.
class ChunkRun {
 public:
  ChunkRun(const RunContext& context, const KernelSet& kernels, const ForwardArgs& args, std::int64_t begin,
           std::int64_t tokens)
      : context_(context),
        kernels_(kernels),
        args_(args),
        spec_(*context.spec),
        begin_(begin),
        tokens_(tokens),
        rows_(tokens * spec_.slots_per_token()),
        layout_(workspace_layout(spec_, context.max_width, &kernels.config, tokens)),
        table_(spec_.all_experts()),
        workspace_(reinterpret_cast<std::uint64_t>(args.workspace)) {}

  /// fc1 keeps z there, rows of `stride` elements (KernelRequest::saves_z).
  void save_z(void* z, std::int64_t stride) noexcept {
    z_ = z;
    z_stride_ = stride;
  }
  /// fc2 reads rows of `stride` elements there instead of fc1's; its K is not the layer's width then.
  void read_h(const void* h, std::int64_t stride) noexcept {
    h_ = h;
    h_stride_ = stride;
  }
  /// fc1 is dout·W2 of a backward pass and goes on from there: reads z, and writes dz, parts of ⟨g, h⟩ and,
  /// in the place of h, w·h (emit::ActivationBackward). z and dz have rows of `stride` elements.
  struct TurnedBack {
    const void* z = nullptr;
    void *dz = nullptr, *unweighted_dz = nullptr;
    std::int64_t stride = 0;
    float* partials = nullptr;
    std::int64_t partial_stride = 0;
    const float* shared_weight = nullptr;
    const abi::ExpertBias* biases = nullptr;  ///< the forward's, where z is kept without them
  };
  void turn_back(const TurnedBack& back) noexcept { back_ = back; }
  /// Where weights of shared experts go instead of the layout's place.
  void write_shared_weight(float* to) noexcept { shared_weight_ = to; }
  const WorkspaceLayout& layout() const noexcept { return layout_; }
  std::uint64_t workspace() const noexcept { return workspace_; }
  std::int64_t rows() const noexcept { return rows_; }

  /// Sort and fc1 alone, into the caller's memory.
  Status run_up(const UpArgs& up) noexcept {
    up_ = &up;
    if (auto ok = sort(); !ok) return ok;
    if (kernels_[Stage::gather].function != nullptr) {
      if (auto ok = gather(); !ok) return ok;
    }
    return fc1();
  }

  Status run() noexcept {
    // The whole-layer kernel writes every token's row.
    if (kernels_[Stage::whole_layer].function != nullptr &&
        tokens_ <= kernels_.config.one_launch.max_tokens && !keeps_absent())
      return whole_layer();
    if (auto ok = sort(); !ok) return ok;
    if (kernels_[Stage::gather].function != nullptr) {
      if (auto ok = gather(); !ok) return ok;
    }
    if (auto ok = fc1(); !ok) return ok;
    if (auto ok = fc2(); !ok) return ok;
    return combine();
  }

  /// Kernels of the chain alone, and others' that follow them.
  template <class Params>
  Status launch_kernel(const LoadedKernel& kernel, std::int64_t blocks, Params& params) noexcept {
    return plan::launch_kernel(context_, args_.stream, kernel, blocks, params);
  }
  template <class Params>
  Status launch(Stage stage, std::int64_t blocks, Params& params) noexcept {
    return launch_kernel(kernels_[stage], blocks, params);
  }

  /// Blocks of a grid-stride or persistent kernel: what is resident at once, or fewer where there is less to
  /// do.
  std::int64_t resident(Stage stage, std::int64_t work) const noexcept {
    return std::min<std::int64_t>(work, std::int64_t{kernels_[stage].blocks_per_sm} * context_.sm_count);
  }

  Status sort() noexcept {
    const bool two_launches =
        rows_ > kernels_.config.sort.single_block_rows && kernels_[Stage::sort_count].function != nullptr;
    const std::uint64_t experts = context_.expert_table;
    const auto classes = width_class_count();
    const SortGrid grid(rows_);
    abi::SortParams p{};
    p.topk_ids = topk_ids();
    p.token_count = args_.token_count;
    p.experts = at<const abi::ExpertEntry>(experts, table_.entries);
    p.expert_order = at<const i32>(experts, table_.order);
    p.class_begin = at<const i32>(experts, kernels_.runtime_width ? table_.one_class : table_.class_begin);
    p.expert_offsets = expert_offsets();
    p.row_source = at<i32>(workspace_, layout_.row_source);
    p.slot_row = up_ != nullptr ? up_->slot_row : at<i32>(workspace_, layout_.slot_row);
    p.block_histogram = at<i32>(workspace_, layout_.block_histogram);
    p.fc1_tiles = at<abi::RowTile>(workspace_, layout_.fc1_tiles);
    p.fc2_tiles = at<abi::RowTile>(workspace_, layout_.fc2_tiles);
    p.tile_counts = at<abi::TileCounts>(workspace_, layout_.tile_counts);
    if (kernels_.runtime_width) p.fc1_tile_prefix = at<i32>(workspace_, layout_.fc1_tile_prefix);
    p.h_pending = h_pending();
    p.tokens = static_cast<i32>(tokens_);
    p.token_begin = static_cast<i32>(begin_);
    p.ids_are_64bit = args_.id_type == IdType::int64;
    p.slots_per_block = static_cast<i32>(grid.slots_per_block);
    p.fc1_block_m = kernels_.config.fc1.block_m;
    p.fc2_block_m = kernels_.config.fc2.block_m;
    p.fc1_row_step = row_step(kernels_.config.fc1);
    p.fc2_row_step = row_step(kernels_.config.fc2);
    p.fc1_cluster = kernels_.config.fc1.cluster;
    p.fc2_cluster = kernels_.config.fc2.cluster;
    p.fc1_tile_columns = model::tile_columns(spec_, model::GemmStage::fc1, kernels_.config.fc1);
    p.classes = classes;
    p.expert_map = args_.expert_map;
    p.global_experts = global_experts();
    p.topk_weights = topk_weights();
    p.row_weight = row_weight();
    p.sort_blocks = static_cast<i32>(two_launches ? grid.blocks : 1);
    if (spec_.shared_gate && up_ == nullptr) {
      p.x = x();
      p.x_stride = x_stride();
      p.shared_gate = at<const u64>(experts, table_.shared_gate);
      p.shared_weight =
          shared_weight_ != nullptr ? shared_weight_ : at<float>(workspace_, layout_.shared_weight);
    }
    const std::int64_t blocks = p.sort_blocks + shared_weight_blocks();
    if (!two_launches) return launch(Stage::sort_single, blocks, p);
    if (auto ok = launch(Stage::sort_count, blocks, p); !ok) return ok;
    return launch(Stage::sort_scatter, grid.blocks + 1, p);  // one writes the schedule
  }

  /// Blocks of the first sort kernel that work out weights of the shared experts: a token reads few bytes, so
  /// that a block on each SM has the most of memory.
  std::int64_t shared_weight_blocks() const noexcept {
    const bool weighs = spec_.shared_gate && up_ == nullptr;
    return weighs ? std::min<std::int64_t>(tokens_, context_.sm_count) : 0;
  }

  Status gather() noexcept { return gather(x(), x_stride()); }
  /// Rows of `from` in expert order, to where y will be.
  Status gather(const void* from, std::int64_t stride) noexcept {
    abi::GatherParams p{};
    p.x = from;
    p.out = at<void>(workspace_, layout_.y);
    p.row_source = at<const i32>(workspace_, layout_.row_source);
    p.tile_counts = at<const abi::TileCounts>(workspace_, layout_.tile_counts);
    p.x_stride = stride;
    return launch(Stage::gather, elementwise_blocks(Stage::gather, rows_, 4), p);
  }

  Status fc1() noexcept {
    const GemmConfig& config = kernels_.config.fc1;
    const bool copied = kernels_[Stage::gather].function != nullptr;
    abi::GemmParams p = gemm_params(layout_.fc1_tiles);
    p.weight_maps = at<const abi::TensorMap>(context_.expert_table, table_.fc1_maps);
    p.tickets = at<i32>(workspace_, layout_.tile_counts + offsetof(abi::TileCounts, fc1_tickets));
    p.a = copied ? at<const void>(workspace_, layout_.y) : x();
    p.a_stride = copied ? spec_.hidden_size : x_stride();
    p.out = up_ != nullptr ? up_->h : at<void>(workspace_, layout_.h);
    p.out_stride = up_ != nullptr && up_->h_stride != 0 ? up_->h_stride : h_columns();
    p.z = z_;
    p.z_stride = z_stride_;
    if (back_.z != nullptr) turned_back(p);
    if (copied && model::uses_wgmma(config)) {
      if (auto ok = encode_rows(p, spec_.hidden_size, config.block_m); !ok) return ok;
    }
    // The gather counts in units of 16 bytes, 32 bits of them.
    if (!copied && model::uses_wgmma(config) && tokens_ * (p.a_stride / 8) > std::int64_t{UINT32_MAX}) {
      return Error(
          ErrorCode::unsupported,
          "x spans more than 64 GiB; set LayerOptions::max_workspace_bytes, so that tokens go in chunks");
    }
    const std::int64_t columns = model::tile_columns(spec_, model::GemmStage::fc1, config);
    return launch(Stage::fc1, gemm_blocks(Stage::fc1, config, columns, context_.max_width), p);
  }

  Status fc2() noexcept {
    const GemmConfig& config = kernels_.config.fc2;
    abi::GemmParams p = gemm_params(layout_.fc2_tiles);
    p.weight_maps = at<const abi::TensorMap>(context_.expert_table, table_.fc2_maps);
    p.tickets = at<i32>(workspace_, layout_.tile_counts + offsetof(abi::TileCounts, fc2_tickets));
    p.a = h_ != nullptr ? h_ : at<const void>(workspace_, layout_.h);
    p.a_stride = h_ != nullptr ? h_stride_ : h_columns();
    p.out = at<void>(workspace_, layout_.y);
    p.out_stride = spec_.hidden_size;
    if (model::uses_wgmma(config)) {
      if (auto ok = encode_rows(p, p.a_stride, config.block_m); !ok) return ok;
    }
    return launch(Stage::fc2, gemm_blocks(Stage::fc2, config, config.block_n, spec_.hidden_size), p);
  }

  Status combine() noexcept {
    abi::CombineParams p{};
    p.y = at<const void>(workspace_, layout_.y);
    p.out = static_cast<char*>(args_.out) + begin_ * out_stride() * 2;
    p.slot_row = at<const i32>(workspace_, layout_.slot_row);
    p.topk_weights = topk_weights();
    p.token_count = args_.token_count;
    p.out_stride = out_stride();
    p.tokens = static_cast<i32>(tokens_);
    p.token_begin = static_cast<i32>(begin_);
    p.accumulate = args_.accumulate;
    if (spec_.shared_gate) p.shared_weight = at<const float>(workspace_, layout_.shared_weight);
    p.keep_absent = keeps_absent();
    return launch(Stage::combine, elementwise_blocks(Stage::combine, tokens_, 1), p);
  }

  Status whole_layer() noexcept {
    abi::LayerParams p{};
    p.x = x();
    p.out = static_cast<char*>(args_.out) + begin_ * out_stride() * 2;
    p.topk_ids = topk_ids();
    p.topk_weights = topk_weights();
    p.token_count = args_.token_count;
    p.expert_map = args_.expert_map;
    p.global_experts = global_experts();
    p.experts = at<const abi::ExpertEntry>(context_.expert_table, table_.entries);
    p.h = at<void>(workspace_, layout_.h);
    p.control = at<abi::LayerControl>(workspace_, layout_.layer_control);
    p.nonce = context_.nonce;
    p.x_stride = x_stride();
    p.out_stride = out_stride();
    p.h_stride = h_columns();
    p.tokens = static_cast<i32>(tokens_);
    p.token_begin = static_cast<i32>(begin_);
    p.ids_are_64bit = args_.id_type == IdType::int64;
    p.accumulate = args_.accumulate;
    return launch(Stage::whole_layer, std::min<std::int64_t>(context_.sm_count, abi::kMaxLayerBlocks), p);
  }

 private:
  void turned_back(abi::GemmParams& p) const noexcept {
    p.z = const_cast<void*>(back_.z);
    p.z_stride = back_.stride;
    p.dz = back_.dz;
    p.unweighted_dz = back_.unweighted_dz;
    p.partials = back_.partials;
    p.partial_stride = static_cast<i32>(back_.partial_stride);
    p.shared_weight = back_.shared_weight;
    p.biases = back_.biases;
  }

  abi::GemmParams gemm_params(std::size_t tile_list) const noexcept {
    abi::GemmParams p{};
    p.experts = at<const abi::ExpertEntry>(context_.expert_table, table_.entries);
    p.tiles = at<const abi::RowTile>(workspace_, tile_list);
    p.tile_counts = at<const abi::TileCounts>(workspace_, layout_.tile_counts);
    p.row_source = at<const i32>(workspace_, layout_.row_source);
    p.expert_offsets = expert_offsets();
    p.expert_order = at<const i32>(context_.expert_table, table_.order);
    p.tile_prefix = at<const i32>(workspace_, layout_.fc1_tile_prefix);
    p.h_pending = h_pending();
    p.biases = spec_.bias ? at<const abi::ExpertBias>(context_.expert_table, table_.biases) : nullptr;
    p.row_weight = row_weight();
    return p;
  }

  /// The tensor map of `a` as this chunk's rows of `columns` elements: it holds the address, which each
  /// forward may change.
  Status encode_rows(abi::GemmParams& p, std::int64_t columns, std::int32_t block_m) const noexcept {
    cuda::TensorBoxes rows;
    rows.base = reinterpret_cast<std::uint64_t>(p.a);
    rows.rank = 2;
    rows.size = {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows_)};
    rows.stride = {static_cast<std::uint64_t>(p.a_stride) * 2};
    rows.box = {64, static_cast<std::uint32_t>(schedule::row_box(block_m))};
    rows.bf16 = spec_.dtype == DType::bf16;
    return cuda::encode_tensor_map(*context_.driver, rows, &p.row_map);
  }

  /// mma_sync tiles are all full but an expert's last.
  static i32 row_step(const GemmConfig& config) noexcept {
    return model::uses_wgmma(config) ? config.row_step : config.block_m;
  }
  i32* expert_offsets() const noexcept {
    return up_ != nullptr ? up_->expert_offsets : at<i32>(workspace_, layout_.expert_offsets);
  }
  std::int64_t h_columns() const noexcept { return model::h_columns(context_.max_width); }

  /// Where fc1 counts down and fc2 waits, so that fc2's first blocks run beside fc1's last; null where fc2
  /// has to follow fc1: other kernels than Hopper's do not count, a copy of x lies where fc2 writes, and a
  /// layer held to few SMs would take more.
  i32* h_pending() const noexcept {
    if (up_ != nullptr || h_ != nullptr) return nullptr;
    const LayerConfig& config = kernels_.config;
    const bool counted = context_.dependent_launch && !context_.sm_limited && model::uses_wgmma(config.fc1) &&
                         model::uses_wgmma(config.fc2) && kernels_[Stage::gather].function == nullptr;
    return counted ? at<i32>(workspace_, layout_.h_pending) : nullptr;
  }

  /// Blocks of a persistent GEMM: as many as are resident, or as there can be tiles; whole clusters.
  std::int64_t gemm_blocks(Stage stage, const GemmConfig& config, std::int64_t columns,
                           std::int64_t width) const noexcept {
    const std::int64_t row_tiles =
        rows_ / config.block_m + config.cluster * std::min<std::int64_t>(spec_.all_experts(), rows_);
    const std::int64_t blocks = resident(stage, row_tiles * ((width + columns - 1) / columns));
    return std::max<std::int64_t>(blocks / config.cluster, 1) * config.cluster;
  }

  /// Gather and combine read each byte once: one pass of as many blocks as there is work beats a resident
  /// grid by 5 % (the hardware's own block scheduler evens out the ends). A layer held to fewer SMs keeps to
  /// its resident blocks.
  std::int64_t elementwise_blocks(Stage stage, std::int64_t rows,
                                  std::int64_t chunks_per_thread) const noexcept {
    const std::int64_t per_block = kernels_[stage].block_threads * chunks_per_thread;
    const std::int64_t blocks = (rows * (spec_.hidden_size / 8) + per_block - 1) / per_block;
    return context_.sm_limited ? resident(stage, blocks)
                               : std::min<std::int64_t>(blocks, std::numeric_limits<i32>::max());
  }

  i32 width_class_count() const noexcept { return kernels_.runtime_width ? 1 : context_.classes; }
  std::int64_t x_stride() const noexcept { return args_.x_stride != 0 ? args_.x_stride : spec_.hidden_size; }
  std::int64_t out_stride() const noexcept {
    return args_.out_stride != 0 ? args_.out_stride : spec_.hidden_size;
  }
  const void* topk_ids() const noexcept {
    const std::int64_t id_bytes = args_.id_type == IdType::int64 ? 8 : 4;
    return static_cast<const char*>(args_.topk_ids) + begin_ * spec_.top_k * id_bytes;
  }
  const float* topk_weights() const noexcept { return args_.topk_weights + begin_ * spec_.top_k; }
  float* row_weight() const noexcept {
    return spec_.weight_on_input ? at<float>(workspace_, layout_.row_weight) : nullptr;
  }
  i32 global_experts() const noexcept {
    return args_.expert_map != nullptr ? static_cast<i32>(args_.num_global_experts) : 0;
  }
  bool keeps_absent() const noexcept { return args_.absent_tokens == AbsentTokens::untouched; }
  const void* x() const noexcept { return static_cast<const char*>(args_.x) + begin_ * x_stride() * 2; }

  const RunContext& context_;
  const KernelSet& kernels_;
  const ForwardArgs& args_;
  const LayerSpec& spec_;
  const UpArgs* up_ = nullptr;
  void* z_ = nullptr;
  std::int64_t z_stride_ = 0;
  TurnedBack back_;
  const void* h_ = nullptr;
  std::int64_t h_stride_ = 0;
  float* shared_weight_ = nullptr;
  std::int64_t begin_, tokens_, rows_;
  WorkspaceLayout layout_;
  ExpertTableLayout table_;
  std::uint64_t workspace_;
};

}  // namespace varmoe::plan
