#include "plan/training.hpp"

#include <algorithm>

#include "model/gradient_config.hpp"
#include "plan/chunk_run.hpp"
#include "plan/gradient_run.hpp"

namespace varmoe::plan {
namespace {

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
  GradientLayout gradients;
  std::size_t shared_weight = 0, shared_gradient = 0;

  TrainingLayout(const LayerSpec& spec, std::int64_t max_width, std::int64_t tokens, bool save) noexcept {
    const auto place = [&](std::int64_t count, std::size_t bytes) {
      const std::size_t begin = total_bytes;
      total_bytes += (static_cast<std::size_t>(count) * bytes + 255) / 256 * 256;
      return begin;
    };
    const std::int64_t rows = tokens * spec.slots_per_token();
    // The backward layer has the same experts, slots and hidden size: its layout is larger by its rows'
    // weights.
    total_bytes = workspace_layout(spec, max_width, nullptr, tokens).total_bytes;
    place(rows, sizeof(float));
    dz = place(rows * z_columns(spec, max_width), 2);
    unweighted_dz = place(keeps_both(spec) ? rows * z_columns(spec, max_width) : 0, 2);
    partials = place(rows * model::most_partials(max_width), sizeof(float));
    z = place(save ? 0 : rows * z_columns(spec, max_width), 2);
    gradients = GradientLayout(spec.all_experts(), rows, place);
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
    const GradientRun run(context_.forward, kernels_, context_.gradients,
                          {expert_offsets(), row_source(), rows(), a_.tokens}, workspace_, layout_.gradients,
                          a_.accumulate_weight_gradients, a_.stream);
    const std::int64_t hidden = spec_.hidden_size;
    const Rows wh{at<const void>(workspace_, chain_.layout().h), h_stride(), h_stride()};
    const Rows dz{at<const void>(workspace_, layout_.dz), z_stride(), z_stride()};
    const Rows x{a_.x, x_stride(), hidden}, dout{a_.dout, dout_stride(), hidden};
    const Rows copied{at<const void>(workspace_, chain_.layout().y), hidden, hidden};
    if (auto ok = run.schedule(); !ok) return ok;
    if (auto ok = run.product(model::GemmStage::fc2, wh, dout, copied); !ok) return ok;
    if (model::reads_copies(kernels_.fc1_gradient_config)) {
      if (auto ok = chain_.gather(a_.x, x_stride()); !ok) return ok;
    }
    if (auto ok = run.product(model::GemmStage::fc1, dz, x, copied); !ok) return ok;
    if (!spec_.bias) return {};
    const Rows unweighted{at<const void>(workspace_, layout_.unweighted_dz), z_stride(), z_stride()};
    if (auto ok = run.fc1_bias(keeps_both(spec_) ? unweighted : dz); !ok) return ok;
    return run.fc2_bias(dout, a_.topk_weights);
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
