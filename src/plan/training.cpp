#include "plan/training.hpp"

#include <algorithm>

#include "model/gradient_config.hpp"
#include "plan/chunk_run.hpp"

namespace varmoe::plan {
namespace {

/// Of one product: of each slot, for both halves of a tile.
constexpr std::int64_t kArrivals = 2 * abi::kGradientSlots;

/// dz is made with its rows' weights and without: b1's gradient is the sum of the latter where a weight
/// multiplies the input.
bool keeps_both(const LayerSpec& spec) noexcept {
  return spec.bias && spec.weight_on_input;
}

/// Beside the layouts of the two layers, which share their place: forward's part of a backward pass is over
/// before the rest begins.
struct TrainingLayout {
  std::size_t total_bytes = 0;
  std::size_t dz = 0, unweighted_dz = 0, partials = 0, z = 0;
  std::size_t order = 0, fc1_prefix = 0, fc2_prefix = 0, fc1_splits = 0, fc2_splits = 0, tickets = 0;
  std::size_t arrivals = 0, part_sums = 0;
  std::size_t shared_weight = 0, shared_gradient = 0;

  TrainingLayout(const LayerSpec& spec, std::int64_t max_width, std::int64_t tokens, bool save) noexcept {
    const auto place = [&](std::int64_t count, std::size_t bytes) {
      const std::size_t begin = total_bytes;
      total_bytes += (static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
      return begin;
    };
    const std::int64_t rows = tokens * spec.slots_per_token(), experts = spec.all_experts();
    // The backward layer has the same experts, slots and hidden size: its layout is larger by its rows'
    // weights.
    total_bytes = workspace_layout(spec, max_width, nullptr, tokens).total_bytes;
    place(rows, sizeof(float));
    dz = place(rows * z_columns(spec, max_width), 2);
    unweighted_dz = place(keeps_both(spec) ? rows * z_columns(spec, max_width) : 0, 2);
    partials = place(rows * model::most_partials(max_width), sizeof(float));
    z = place(save ? 0 : rows * z_columns(spec, max_width), 2);
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
    shared_weight = place(spec.shared_gate ? tokens : 0, sizeof(float));
    shared_gradient = place(spec.shared_gate ? tokens * spec.num_shared() : 0, sizeof(float));
  }
};

ForwardArgs rows_of(const BackwardArgs& a) noexcept {
  ForwardArgs args;
  args.tokens = a.tokens;
  args.topk_ids = a.topk_ids;
  args.id_type = a.id_type;
  args.topk_weights = a.topk_weights;
  args.token_count = a.token_count;
  args.expert_map = a.expert_map;
  args.num_global_experts = a.num_global_experts;
  args.workspace = a.workspace;
  args.workspace_bytes = a.workspace_bytes;
  args.stream = a.stream;
  return args;
}

class BackwardRun {
 public:
  BackwardRun(const TrainingContext& context, const TrainingKernels& kernels,
              const BackwardArgs& args) noexcept
      : context_(context),
        kernels_(kernels),
        a_(args),
        spec_(*context.forward.spec),
        layout_(spec_, context.forward.max_width, args.tokens, context.save_preactivation),
        forward_args_(forward_args(args)),
        backward_args_(backward_args(args)),
        chain_(context.backward, kernels.backward, backward_args_, 0, args.tokens),
        workspace_(reinterpret_cast<std::uint64_t>(args.workspace)) {}

  Status run() noexcept {
    if (!a_.weight_gradients && a_.dx == nullptr && a_.dtopk_weights == nullptr) return {};
    chain_.read_h(at<const void>(workspace_, layout_.dz), z_stride());
    if (auto ok = again_forward(); !ok) return ok;
    if (auto ok = chain_.sort(); !ok) return ok;
    if (copies()) {
      if (auto ok = chain_.gather(); !ok) return ok;
    }
    if (auto ok = products(); !ok) return ok;
    if (a_.weight_gradients) {
      if (auto ok = weights(); !ok) return ok;
    }
    if (a_.dx != nullptr) {
      if (auto ok = chain_.fc2(); !ok) return ok;
      if (auto ok = chain_.combine(); !ok) return ok;
    }
    return spec_.shared_gate && (a_.weight_gradients || a_.dx != nullptr) ? shared_gate() : Status{};
  }

 private:
  static ForwardArgs forward_args(const BackwardArgs& a) noexcept {
    ForwardArgs args = rows_of(a);
    args.x = a.x;
    args.x_stride = a.x_stride;
    return args;
  }
  static ForwardArgs backward_args(const BackwardArgs& a) noexcept {
    ForwardArgs args = rows_of(a);
    args.x = a.dout;
    args.x_stride = a.dout_stride;
    args.out = a.dx;
    args.out_stride = a.dx_stride;
    args.accumulate = a.accumulate_dx;
    return args;
  }

  /// z once more where forward did not keep it, and weights of shared experts, which it never does.
  Status again_forward() noexcept {
    if (context_.save_preactivation && !spec_.shared_gate) return {};
    KernelSet kernels = kernels_.forward;
    if (!context_.save_preactivation) kernels[Stage::fc1] = kernels_.fc1_again;
    ChunkRun chain(context_.forward, kernels, forward_args_, 0, a_.tokens);
    chain.write_shared_weight(at<float>(workspace_, layout_.shared_weight));
    if (auto ok = chain.sort(); !ok || context_.save_preactivation) return ok;
    if (kernels_.forward[Stage::gather].function != nullptr) {
      if (auto ok = chain.gather(); !ok) return ok;
    }
    chain.save_z(at<void>(workspace_, layout_.z), z_stride());
    return chain.fc1();
  }

  /// dz, w·h, and the gradients of topk_weights.
  Status products() noexcept {
    const bool wanted = a_.dtopk_weights != nullptr || spec_.shared_gate;
    const model::PartialSums sums =
        model::partial_sums(kernels_.backward.config.fc1, context_.forward.max_width);
    // dh leaves them there whether anybody asks or not.
    auto* const partials = at<float>(workspace_, layout_.partials);
    const ExpertTableLayout table(spec_.all_experts());
    const auto* const biases = at<const abi::ExpertBias>(context_.forward.expert_table, table.biases);
    ChunkRun::TurnedBack back;
    back.z = context_.save_preactivation ? a_.saved : at<const void>(workspace_, layout_.z);
    back.dz = at<void>(workspace_, layout_.dz);
    back.stride = z_stride();
    back.partials = partials;
    back.partial_stride = sums.of_row;
    if (spec_.shared_gate) back.shared_weight = at<const float>(workspace_, layout_.shared_weight);
    if (keeps_both(spec_)) {
      back.unweighted_dz = at<void>(workspace_, layout_.unweighted_dz);
      back.biases = biases;
    }
    chain_.turn_back(back);
    if (auto ok = chain_.fc1(); !ok || !wanted) return ok;
    const bool of_bias = spec_.bias && !spec_.weight_on_input;
    abi::TopkWeightGradientParams p{};
    p.partials = partials;
    p.experts = at<const abi::ExpertEntry>(context_.backward.expert_table, table.entries);
    p.biases = of_bias ? biases : nullptr;
    p.expert_offsets = expert_offsets();
    p.slot_row = at<const i32>(workspace_, chain_.layout().slot_row);
    p.topk_gradient = a_.dtopk_weights;
    p.shared_gradient = spec_.shared_gate ? at<float>(workspace_, layout_.shared_gradient) : nullptr;
    p.dout = a_.dout;
    p.token_count = a_.token_count;
    p.dout_stride = dout_stride();
    p.tokens = static_cast<i32>(a_.tokens);
    p.span = static_cast<i32>(sums.span);
    p.partial_stride = static_cast<i32>(sums.of_row);
    const LoadedKernel& kernel = kernels_.topk_weight_gradient;
    // A thread a slot, or with biases a warp.
    const std::int64_t slots_of_block = kernel.block_threads / (of_bias ? 32 : 1);
    return launch(kernel, std::min<std::int64_t>((rows() + slots_of_block - 1) / slots_of_block, sms() * 32),
                  p);
  }

  Status weights() noexcept {
    if (auto ok = schedule(); !ok) return ok;
    const std::uint64_t copied = workspace_ + chain_.layout().y;
    if (auto ok =
            weight_gradient(kernels_.fc2_gradient, kernels_.fc2_gradient_config, kernels_.fc2_gradient_tiles,
                            1, chain_.layout().h, h_stride(), a_.dout, dout_stride(), copied);
        !ok)
      return ok;
    if (model::reads_copies(kernels_.fc1_gradient_config)) {
      if (auto ok = chain_.gather(a_.x, x_stride()); !ok) return ok;
    }
    if (auto ok =
            weight_gradient(kernels_.fc1_gradient, kernels_.fc1_gradient_config, kernels_.fc1_gradient_tiles,
                            0, layout_.dz, z_stride(), a_.x, x_stride(), copied);
        !ok)
      return ok;
    return spec_.bias ? biases() : Status{};
  }

  Status schedule() noexcept {
    abi::GradientScheduleParams p{};
    p.experts = at<const abi::GradientEntry>(context_.gradients, 0);
    p.expert_offsets = expert_offsets();
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
    return launch(kernels_.gradient_schedule, 1, p);
  }

  /// `product`: 0 of fc1's weights, 1 of fc2's.
  Status weight_gradient(const LoadedKernel& kernel, const model::GradientConfig& config, std::int64_t tiles,
                         int product, std::size_t rows_at, std::int64_t rows_stride, const void* tokens,
                         std::int64_t tokens_stride, std::uint64_t copied) noexcept {
    abi::WeightGradientParams p{};
    p.gradients = at<const abi::GradientEntry>(context_.gradients, 0);
    p.expert_offsets = expert_offsets();
    p.expert_order = at<const i32>(workspace_, layout_.order);
    p.tile_prefix = at<const i32>(workspace_, product == 0 ? layout_.fc1_prefix : layout_.fc2_prefix);
    p.splits =
        at<const abi::GradientSplit>(workspace_, product == 0 ? layout_.fc1_splits : layout_.fc2_splits);
    p.partials = at<float>(workspace_, layout_.part_sums);
    p.arrivals = at<i32>(workspace_, layout_.arrivals) + product * kArrivals;
    p.row_source = row_source();
    p.rows = at<const void>(workspace_, rows_at);
    p.tokens = tokens;
    p.rows_stride = rows_stride;
    p.tokens_stride = tokens_stride;
    p.ticket = at<i32>(workspace_, layout_.tickets) + product;
    p.experts = static_cast<i32>(spec_.all_experts());
    p.accumulate = a_.accumulate_weight_gradients;
    if (uses_boxes(config)) {
      if (auto ok = encode(workspace_ + rows_at, rows_stride, &p.rows_map); !ok) return ok;
      if (model::reads_copies(config)) {
        if (auto ok = encode(copied, spec_.hidden_size, &p.tokens_map); !ok) return ok;
      }
    }
    // The gather counts in units of 16 bytes, 32 bits of them.
    if (uses_boxes(config) && a_.tokens * (tokens_stride / 8) > std::int64_t{UINT32_MAX})
      return Error(ErrorCode::unsupported, "x or dout spans more than 64 GiB");
    // Hot experts' tiles may be summed in parts.
    return launch(kernel, std::min<std::int64_t>(tiles + abi::kGradientSlots, sms() * kernel.blocks_per_sm),
                  p);
  }

  /// [rows, columns] in boxes of 64 by 64.
  Status encode(std::uint64_t base, std::int64_t columns, abi::TensorMap* map) const noexcept {
    cuda::TensorBoxes boxes;
    boxes.base = base;
    boxes.rank = 2;
    boxes.size = {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows())};
    boxes.stride = {static_cast<std::uint64_t>(columns) * 2};
    boxes.box = {64, 64};
    boxes.bf16 = spec_.dtype == DType::bf16;
    return cuda::encode_tensor_map(*context_.forward.driver, boxes, map);
  }

  Status biases() noexcept {
    abi::BiasGradientParams p{};
    p.gradients = at<const abi::GradientEntry>(context_.gradients, 0);
    p.expert_offsets = expert_offsets();
    p.row_source = row_source();
    p.rows = at<const void>(workspace_, keeps_both(spec_) ? layout_.unweighted_dz : layout_.dz);
    p.dout = a_.dout;
    p.topk_weights = a_.topk_weights;
    p.rows_stride = z_stride();
    p.dout_stride = dout_stride();
    p.experts = static_cast<i32>(spec_.all_experts());
    p.accumulate = a_.accumulate_weight_gradients;
    const auto blocks = [&](std::int64_t columns) { return p.experts * ((columns + 255) / 256); };
    if (auto ok = launch(kernels_.fc1_bias_gradient, blocks(z_stride()), p); !ok) return ok;
    return launch(kernels_.fc2_bias_gradient, blocks(spec_.hidden_size), p);
  }

  Status shared_gate() noexcept {
    const ExpertTableLayout table(spec_.all_experts());
    abi::SharedGateGradientParams p{};
    p.shared_weight = at<const float>(workspace_, layout_.shared_weight);
    p.shared_gradient = at<const float>(workspace_, layout_.shared_gradient);
    p.x = a_.x;
    p.shared_gate = at<const u64>(context_.forward.expert_table, table.shared_gate);
    if (a_.weight_gradients)
      p.gradient = at<const u64>(context_.gradients,
                                 static_cast<std::size_t>(spec_.all_experts()) * sizeof(abi::GradientEntry));
    p.dx = a_.dx;
    p.token_count = a_.token_count;
    p.x_stride = x_stride();
    p.dx_stride = a_.dx_stride != 0 ? a_.dx_stride : spec_.hidden_size;
    p.tokens = static_cast<i32>(a_.tokens);
    p.accumulate = a_.accumulate_weight_gradients;
    const std::int64_t columns = (spec_.hidden_size + 63) / 64;
    return launch(kernels_.shared_gate_gradient, columns + sms() * 4, p);
  }

  template <class Params>
  Status launch(const LoadedKernel& kernel, std::int64_t blocks, Params& p) noexcept {
    return chain_.launch_kernel(kernel, blocks, p);
  }
  static bool uses_boxes(const model::GradientConfig& c) noexcept { return c.schedule == Schedule::wgmma; }
  /// Rows of dout lie in expert order, for the products that take boxes.
  bool copies() const noexcept { return kernels_.backward[Stage::gather].function != nullptr; }
  const i32* expert_offsets() const noexcept {
    return at<const i32>(workspace_, chain_.layout().expert_offsets);
  }
  const i32* row_source() const noexcept { return at<const i32>(workspace_, chain_.layout().row_source); }
  std::int64_t rows() const noexcept { return a_.tokens * spec_.slots_per_token(); }
  std::int64_t sms() const noexcept { return context_.forward.sm_count; }
  std::int64_t z_stride() const noexcept { return z_columns(spec_, context_.forward.max_width); }
  std::int64_t h_stride() const noexcept { return model::h_columns(context_.forward.max_width); }
  std::int64_t x_stride() const noexcept { return a_.x_stride != 0 ? a_.x_stride : spec_.hidden_size; }
  std::int64_t dout_stride() const noexcept {
    return a_.dout_stride != 0 ? a_.dout_stride : spec_.hidden_size;
  }

  const TrainingContext& context_;
  const TrainingKernels& kernels_;
  const BackwardArgs& a_;
  const LayerSpec& spec_;
  TrainingLayout layout_;
  ForwardArgs forward_args_, backward_args_;
  ChunkRun chain_;
  std::uint64_t workspace_;
};

}  // namespace

std::int64_t z_columns(const LayerSpec& spec, std::int64_t max_width) noexcept {
  return model::h_columns(max_width) * (spec.gated() ? 2 : 1);
}

std::size_t training_saved_bytes(const LayerSpec& spec, std::int64_t tokens,
                                 bool save_preactivation) noexcept {
  if (!save_preactivation) return 0;
  const std::int64_t elements = tokens * spec.slots_per_token() * z_columns(spec, spec.widest_of_all());
  return (static_cast<std::size_t>(elements) * 2 + 255) / 256 * 256;
}

std::size_t training_workspace_bytes(const LayerSpec& spec, std::int64_t tokens,
                                     bool save_preactivation) noexcept {
  return TrainingLayout(spec, spec.widest_of_all(), tokens, save_preactivation).total_bytes;
}

Status run_training_forward(const TrainingContext& context, const TrainingKernels& kernels,
                            const ForwardArgs& args, void* saved) noexcept {
  ChunkRun chain(context.forward, kernels.forward, args, 0, args.tokens);
  if (context.save_preactivation)
    chain.save_z(saved, z_columns(*context.forward.spec, context.forward.max_width));
  return chain.run();
}

Status run_backward(const TrainingContext& context, const TrainingKernels& kernels,
                    const BackwardArgs& args) noexcept {
  return BackwardRun(context, kernels, args).run();
}

}  // namespace varmoe::plan
