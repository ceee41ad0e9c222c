#include "cpu/training.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "cpu/backward.hpp"
#include "cpu/gradients.hpp"
#include "cpu/kernels.hpp"
#include "cpu/run.hpp"
#include "cpu/team.hpp"
#include "cpu/workspace.hpp"

namespace varmoe::cpu {

namespace {

template <class Args>
std::int64_t live_tokens(const Args& args) {
  return args.token_count != nullptr ? std::clamp<std::int64_t>(*args.token_count, 0, args.tokens)
                                     : args.tokens;
}

/// z of all rows.
std::size_t z_bytes(const LayerSpec& spec, std::int64_t tokens) {
  return static_cast<std::size_t>(tokens * spec.slots_per_token() * z_rows(spec).stride) * 2;
}
std::size_t aligned(std::size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

struct CpuTrainingLayer::Impl {
  Impl(LayerSpec s, const TrainingOptions& o, const Kernels& k, int threads)
      : spec(std::move(s)), options(o), kernels(k), team(threads) {}

  /// Members for `tokens` tokens, of which each element of fc1's and fc2's matrices takes part in `products`.
  int active(std::int64_t tokens, double products) const noexcept {
    return team.worth(static_cast<double>(tokens * spec.slots_per_token()) * products *
                      static_cast<double>(spec.hidden_size) * static_cast<double>(spec.widest_of_all()));
  }
  /// Forward, or z alone. `args` have a workspace for all tokens.
  void run(const ForwardArgs& args, std::int64_t tokens, std::uint16_t* z, bool only_z) noexcept {
    const int members = active(tokens, 3.0);
    Run forward(spec, experts, shared_gate, kernels, args, tokens, args.tokens, args.workspace, team.size(),
                members);
    forward.keep_z(z, only_z);
    team.run(members, Run::member, &forward);
  }

  const LayerSpec spec;
  const TrainingOptions options;
  const Kernels& kernels;
  std::vector<ExpertWeights> experts;  // routed, then shared
  const void* shared_gate = nullptr;
  Gradients gradients;
  Team team;
};

CpuTrainingLayer::CpuTrainingLayer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuTrainingLayer::~CpuTrainingLayer() = default;

Result<std::unique_ptr<CpuTrainingLayer>> CpuTrainingLayer::create(const LayerSpec& spec,
                                                                   const TrainingOptions& options,
                                                                   int threads,
                                                                   std::string_view instruction_set) try {
  const auto kernels = kernels_named(instruction_set);
  if (!kernels) return kernels.error();
  const int count = threads > 0 ? std::min(threads, 1024) : available_cores();
  return std::unique_ptr<CpuTrainingLayer>(
      new CpuTrainingLayer(std::make_unique<Impl>(spec, options, **kernels, count)));
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "no host memory for a CPU layer");
}

Status CpuTrainingLayer::bind(const Weights& weights) {
  impl_->experts = weights.experts;
  impl_->experts.insert(impl_->experts.end(), weights.shared.begin(), weights.shared.end());
  impl_->shared_gate = weights.shared_gate;
  return {};
}

Status CpuTrainingLayer::bind_gradients(const Weights& gradients) {
  impl_->gradients = Gradients(impl_->spec, impl_->options.gradient_type, gradients);
  return {};
}

std::size_t CpuTrainingLayer::saved_bytes(std::int64_t tokens) const noexcept {
  return impl_->options.save_preactivation ? z_bytes(impl_->spec, tokens) : 0;
}

std::size_t CpuTrainingLayer::workspace_bytes(std::int64_t tokens) const noexcept {
  const LayerSpec& spec = impl_->spec;
  const int threads = impl_->team.size();
  const std::size_t forward = workspace_layout(spec, tokens, threads).total_bytes,
                    backward = Backward::workspace_bytes(spec, tokens, threads);
  // z made again lies first, what makes it and backward share the rest.
  return (impl_->options.save_preactivation ? 0 : aligned(z_bytes(spec, tokens))) +
         std::max(forward, backward);
}

Status CpuTrainingLayer::forward(const ForwardArgs& args, void* saved) noexcept {
  const std::int64_t tokens = live_tokens(args);
  if (tokens == 0) return {};
  impl_->run(args, tokens, impl_->options.save_preactivation ? static_cast<std::uint16_t*>(saved) : nullptr,
             false);
  return {};
}

Status CpuTrainingLayer::backward(const BackwardArgs& args) noexcept {
  const LayerSpec& spec = impl_->spec;
  const std::int64_t tokens = live_tokens(args);
  if (tokens == 0) {
    if (args.weight_gradients && !args.accumulate_weight_gradients) impl_->gradients.clear(spec);
    return {};
  }
  const auto* z = static_cast<const std::uint16_t*>(args.saved);
  auto* workspace = static_cast<std::byte*>(args.workspace);
  if (!impl_->options.save_preactivation) {
    auto* again = static_cast<std::uint16_t*>(args.workspace);
    workspace += aligned(z_bytes(spec, args.tokens));
    ForwardArgs forward;
    forward.tokens = args.tokens;
    forward.x = args.x;
    forward.x_stride = args.x_stride;
    forward.topk_ids = args.topk_ids;
    forward.id_type = args.id_type;
    forward.topk_weights = args.topk_weights;
    forward.expert_map = args.expert_map;
    forward.num_global_experts = args.num_global_experts;
    forward.workspace = workspace;
    impl_->run(forward, tokens, again, true);
    z = again;
  }
  const int members = impl_->active(tokens, 6.0);
  Backward backward(spec, impl_->experts, impl_->shared_gate, impl_->gradients, impl_->kernels, args, tokens,
                    z, workspace, impl_->team.size(), members);
  impl_->team.run(members, Backward::member, &backward);
  return {};
}

}  // namespace varmoe::cpu
