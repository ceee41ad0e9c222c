#pragma once

#include <cstddef>
#include <cstdint>

#include <algorithm>
#include "abi.cuh"
#include "cuda/tensor_map.hpp"
#include "model/gradient_config.hpp"
#include "plan/launch.hpp"
#include "plan/plan.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// The launches that sum the weights' gradients over rows that lie by expert: of a backward pass, whose sort
/// has put them in order, and of the building blocks, whose caller has.
namespace varmoe::plan {

struct WeightGradientKernels {
  LoadedKernel gradient_schedule, fc1_gradient, fc2_gradient;
  LoadedKernel fc1_bias_gradient, fc2_bias_gradient;  ///< null where the layer has no biases
  model::GradientConfig fc1_gradient_config, fc2_gradient_config;
  std::int64_t fc1_gradient_tiles = 0, fc2_gradient_tiles = 0;  ///< of all experts

  void use(const LayerSpec& spec, const model::GradientConfig& fc1, const model::GradientConfig& fc2) {
    fc1_gradient_config = fc1;
    fc2_gradient_config = fc2;
    fc1_gradient_tiles = fc2_gradient_tiles = 0;
    for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
      const std::int64_t width = spec.width_of(e);
      fc1_gradient_tiles += model::gradient_tiles(spec, model::GemmStage::fc1, fc1, width);
      fc2_gradient_tiles += model::gradient_tiles(spec, model::GemmStage::fc2, fc2, width);
    }
  }
};

/// What they need of a workspace.
struct GradientLayout {
  std::size_t order = 0, fc1_prefix = 0, fc2_prefix = 0, fc1_splits = 0, fc2_splits = 0, tickets = 0;
  std::size_t arrivals = 0, part_sums = 0;
  /// Of one product: of each slot, for both halves of a tile.
  static constexpr std::int64_t kArrivals = 2 * abi::kGradientSlots;

  GradientLayout() = default;
  /// `place(count, bytes)` → offset.
  template <class Place>
  GradientLayout(std::int64_t experts, std::int64_t rows, const Place& place) noexcept {
    order = place(experts, sizeof(i32));
    fc1_prefix = place(experts + 1, sizeof(i32));
    fc2_prefix = place(experts + 1, sizeof(i32));
    fc1_splits = place(experts, sizeof(abi::GradientSplit));
    fc2_splits = place(experts, sizeof(abi::GradientSplit));
    tickets = place(2, sizeof(i32));
    arrivals = place(2 * kArrivals, sizeof(i32));
    // Fewer rows are never split.
    part_sums = place(2 * rows < 3 * abi::kLeastPartRows ? 0 : abi::kGradientSlots * model::kMostGradientTile,
                      sizeof(float));
  }
};

/// Row length of z and dz in elements: each of gate and up in whole stages of 64 of the widest expert.
inline std::int64_t z_columns(const LayerSpec& spec, std::int64_t max_width) noexcept {
  return model::h_columns(max_width) * (spec.gated() ? 2 : 1);
}

/// A matrix of two-byte elements.
struct Rows {
  const void* at = nullptr;
  std::int64_t stride = 0;   ///< elements
  std::int64_t columns = 0;  ///< that there are of each row
};

/// What gradients are summed over.
struct GradientRows {
  const i32* expert_offsets = nullptr;
  /// Row → slot, where x and dout lie by token; null: they lie by row, as do weights of rows.
  const i32* row_source = nullptr;
  std::int64_t rows = 0;    ///< of dz and w·h
  std::int64_t tokens = 0;  ///< of x and dout
};

class GradientRun {
 public:
  GradientRun(const RunContext& context, const WeightGradientKernels& kernels, std::uint64_t gradients,
              const GradientRows& over, std::uint64_t workspace, const GradientLayout& layout,
              bool accumulate, void* stream) noexcept
      : context_(context),
        spec_(*context.spec),
        kernels_(kernels),
        gradients_(gradients),
        over_(over),
        workspace_(workspace),
        layout_(layout),
        accumulate_(accumulate),
        stream_(stream) {}

  /// Before the products.
  Status schedule() const noexcept {
    abi::GradientScheduleParams p{};
    p.experts = entries();
    p.expert_offsets = over_.expert_offsets;
    p.expert_order = at<i32>(workspace_, layout_.order);
    p.fc1_prefix = at<i32>(workspace_, layout_.fc1_prefix);
    p.fc2_prefix = at<i32>(workspace_, layout_.fc2_prefix);
    p.fc1_splits = at<abi::GradientSplit>(workspace_, layout_.fc1_splits);
    p.fc2_splits = at<abi::GradientSplit>(workspace_, layout_.fc2_splits);
    p.tickets = at<i32>(workspace_, layout_.tickets);
    p.arrivals = at<i32>(workspace_, layout_.arrivals);
    p.experts_count = static_cast<i32>(spec_.all_experts());
    const auto shape = [&](model::GemmStage stage, const model::GradientConfig& c, i32& block, i32& tiles) {
      const bool hidden_rows = model::gradient_rows_are_hidden(spec_, stage);
      const std::int64_t of_hidden = hidden_rows ? c.block_m : c.block_n;
      block = hidden_rows ? c.block_n : c.block_m;
      tiles = static_cast<i32>((spec_.hidden_size + of_hidden - 1) / of_hidden);
    };
    shape(model::GemmStage::fc1, kernels_.fc1_gradient_config, p.fc1_width_block, p.fc1_tiles_per_width);
    shape(model::GemmStage::fc2, kernels_.fc2_gradient_config, p.fc2_width_block, p.fc2_tiles_per_width);
    const bool alternate = model::gate_and_up_alternate(spec_);
    p.fc1_width_scale = alternate ? 2 : 1;
    if (spec_.gated() && !alternate) p.fc1_tiles_per_width *= 2;
    return launch_kernel(context_, stream_, kernels_.gradient_schedule, 1, p);
  }

  /// dW1 from dz and x, or dW2 from w·h and dout. `copied`: tokens once more, by row, for kernels that read
  /// copies; the same where they lie by row.
  Status product(model::GemmStage stage, const Rows& rows, const Rows& tokens,
                 const Rows& copied) const noexcept {
    const bool first = stage == model::GemmStage::fc1;
    const model::GradientConfig& config = first ? kernels_.fc1_gradient_config : kernels_.fc2_gradient_config;
    const bool boxes = config.schedule == Schedule::wgmma;
    abi::WeightGradientParams p{};
    p.gradients = entries();
    p.expert_offsets = over_.expert_offsets;
    p.expert_order = at<const i32>(workspace_, layout_.order);
    p.tile_prefix = at<const i32>(workspace_, first ? layout_.fc1_prefix : layout_.fc2_prefix);
    p.splits = at<const abi::GradientSplit>(workspace_, first ? layout_.fc1_splits : layout_.fc2_splits);
    p.partials = at<float>(workspace_, layout_.part_sums);
    p.arrivals = at<i32>(workspace_, layout_.arrivals) + (first ? 0 : GradientLayout::kArrivals);
    p.row_source = over_.row_source;
    p.rows = rows.at;
    p.tokens = tokens.at;
    p.rows_stride = rows.stride;
    p.tokens_stride = tokens.stride;
    p.ticket = at<i32>(workspace_, layout_.tickets) + (first ? 0 : 1);
    p.experts = static_cast<i32>(spec_.all_experts());
    p.accumulate = accumulate_;
    if (boxes) {
      if (auto ok = encode(rows, &p.rows_map); !ok) return ok;
      if (model::reads_copies(config)) {
        if (auto ok = encode(copied, &p.tokens_map); !ok) return ok;
      }
    }
    // The gather counts in units of 16 bytes, 32 bits of them.
    if (boxes && over_.row_source != nullptr && over_.tokens * (tokens.stride / 8) > std::int64_t{UINT32_MAX})
      return Error(ErrorCode::unsupported, "x or dout spans more than 64 GiB");
    const LoadedKernel& kernel = first ? kernels_.fc1_gradient : kernels_.fc2_gradient;
    const std::int64_t tiles = first ? kernels_.fc1_gradient_tiles : kernels_.fc2_gradient_tiles;
    // Hot experts' tiles may be summed in parts.
    return launch_kernel(context_, stream_, kernel,
                         std::min<std::int64_t>(tiles + abi::kGradientSlots,
                                                std::int64_t{context_.sm_count} * kernel.blocks_per_sm),
                         p);
  }

  /// db1 from dz.
  Status fc1_bias(const Rows& dz) const noexcept {
    abi::BiasGradientParams p = bias_params();
    p.rows = dz.at;
    p.rows_stride = dz.stride;
    return launch_kernel(context_, stream_, kernels_.fc1_bias_gradient, bias_blocks(dz.columns), p);
  }
  /// db2 from dout; `weights`: [tokens, k], or of each row.
  Status fc2_bias(const Rows& dout, const float* weights) const noexcept {
    abi::BiasGradientParams p = bias_params();
    p.dout = dout.at;
    p.dout_stride = dout.stride;
    p.topk_weights = weights;
    return launch_kernel(context_, stream_, kernels_.fc2_bias_gradient, bias_blocks(dout.columns), p);
  }

 private:
  const abi::GradientEntry* entries() const noexcept { return at<const abi::GradientEntry>(gradients_, 0); }

  abi::BiasGradientParams bias_params() const noexcept {
    abi::BiasGradientParams p{};
    p.gradients = entries();
    p.expert_offsets = over_.expert_offsets;
    p.row_source = over_.row_source;
    p.experts = static_cast<i32>(spec_.all_experts());
    p.accumulate = accumulate_;
    return p;
  }
  std::int64_t bias_blocks(std::int64_t columns) const noexcept {
    return spec_.all_experts() * ((columns + 255) / 256);
  }

  /// By row, in boxes of 64 by 64.
  Status encode(const Rows& rows, abi::TensorMap* map) const noexcept {
    cuda::TensorBoxes boxes;
    boxes.base = reinterpret_cast<std::uint64_t>(rows.at);
    boxes.rank = 2;
    boxes.size = {static_cast<std::uint64_t>(rows.columns), static_cast<std::uint64_t>(over_.rows)};
    boxes.stride = {static_cast<std::uint64_t>(rows.stride) * 2};
    boxes.box = {64, 64};
    boxes.bf16 = spec_.dtype == DType::bf16;
    return cuda::encode_tensor_map(*context_.driver, boxes, map);
  }

  const RunContext& context_;
  const LayerSpec& spec_;
  const WeightGradientKernels& kernels_;
  const std::uint64_t gradients_;
  const GradientRows over_;
  const std::uint64_t workspace_;
  const GradientLayout layout_;
  const bool accumulate_;
  void* const stream_;
};

}  // namespace varmoe::plan
