#include "cpu/layer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#include "base/thread_pool.hpp"
#include "cpu/kernels.hpp"
#include "cpu/run.hpp"
#include "cpu/team.hpp"
#include "cpu/workspace.hpp"

namespace varmoe::cpu {

namespace {

/// A workspace that `forward` allocates for itself is no larger than this, unless one token needs more.
constexpr std::size_t kOwnWorkspace = std::size_t{256} << 20;
constexpr std::size_t kWorkspaceAlignment = 256;

struct Free {
  void operator()(void* p) const noexcept { std::free(p); }
};

bool aligned(const void* p, std::size_t to) {
  return reinterpret_cast<std::uintptr_t>(p) % to == 0;
}

Error bad(std::string message) {
  return Error(ErrorCode::invalid_argument, "forward: " + std::move(message));
}

Status check_matrix(const char* name, const void* p, std::int64_t stride, std::int64_t hidden_size) {
  if (p == nullptr) return bad(fmt::format("{} is null", name));
  if (!aligned(p, 16)) return bad(fmt::format("{} is not 16-byte aligned", name));
  if (stride != 0 && (stride < hidden_size || stride % kWidthMultiple != 0)) {
    return bad(
        fmt::format("{}_stride is {}; it must be 0 or a multiple of {} that is at least the hidden size {}",
                    name, stride, kWidthMultiple, hidden_size));
  }
  return {};
}

Status check(const ForwardArgs& args, const LayerSpec& spec) {
  if (auto s = check_matrix("x", args.x, args.x_stride, spec.hidden_size); !s) return s;
  if (auto s = check_matrix("out", args.out, args.out_stride, spec.hidden_size); !s) return s;
  if (args.topk_ids == nullptr) return bad("topk_ids is null");
  const std::size_t id_bytes = args.id_type == IdType::int64 ? 8 : 4;
  if (!aligned(args.topk_ids, id_bytes)) return bad(fmt::format("topk_ids is not {}-byte aligned", id_bytes));
  if (args.topk_weights == nullptr) return bad("topk_weights is null");
  if (!aligned(args.topk_weights, 4)) return bad("topk_weights is not 4-byte aligned");
  if (!aligned(args.token_count, 4)) return bad("token_count is not 4-byte aligned");
  if (!aligned(args.expert_map, 4)) return bad("expert_map is not 4-byte aligned");
  if (args.expert_map != nullptr && (args.num_global_experts < 1 || args.num_global_experts > INT32_MAX)) {
    return bad(fmt::format("num_global_experts is {}; it must be 1 … {} with an expert_map",
                           args.num_global_experts, INT32_MAX));
  }
  if (!aligned(args.workspace, kWorkspaceAlignment)) {
    return bad(fmt::format("workspace is not {}-byte aligned", kWorkspaceAlignment));
  }
  return {};
}

}  // namespace

struct CpuLayer::Impl {
  Impl(LayerSpec s, const Kernels& k, int threads) : spec(std::move(s)), kernels(k), team(threads) {}
  LayerSpec spec;
  const Kernels& kernels;
  std::vector<ExpertWeights> experts;  // routed, then shared; empty: not bound
  const void* shared_gate = nullptr;
  Team team;
};

CpuLayer::CpuLayer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuLayer::~CpuLayer() = default;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : available_kernels()) names.emplace_back(k->name);
  return names;
}

Result<std::unique_ptr<CpuLayer>> CpuLayer::create(const LayerSpec& spec, int threads,
                                                   std::string_view instruction_set) try {
  if (auto s = spec.validate(); !s) return s.error();
  const int count = threads > 0 ? std::min(threads, 1024) : available_cores();
  const auto kernels = kernels_named(instruction_set);
  if (!kernels) return kernels.error();
  return std::unique_ptr<CpuLayer>(new CpuLayer(std::make_unique<Impl>(spec, **kernels, count)));
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "no host memory for a CPU layer");
}

const LayerSpec& CpuLayer::spec() const noexcept {
  return impl_->spec;
}
int CpuLayer::threads() const noexcept {
  return impl_->team.size();
}

Status CpuLayer::bind(const Weights& weights) {
  if (auto s = weights.validate(impl_->spec); !s) return s;
  impl_->experts = weights.experts;
  impl_->experts.insert(impl_->experts.end(), weights.shared.begin(), weights.shared.end());
  impl_->shared_gate = weights.shared_gate;
  return {};
}

std::size_t CpuLayer::workspace_bytes(std::int64_t tokens) const noexcept {
  return workspace_layout(impl_->spec, std::clamp<std::int64_t>(tokens, 1, INT32_MAX), impl_->team.size())
      .total_bytes;
}

Status CpuLayer::forward(const ForwardArgs& args) noexcept try {
  const LayerSpec& spec = impl_->spec;
  const int team_size = impl_->team.size();
  if (impl_->experts.empty()) return Error(ErrorCode::not_bound, "forward before bind");
  if (args.tokens < 0 || args.tokens > INT32_MAX) {
    return bad(fmt::format("tokens is {}; it must be 0 … {}", args.tokens, INT32_MAX));
  }
  if (args.tokens == 0) return {};
  if (auto s = check(args, spec); !s) return s;

  std::unique_ptr<void, Free> own;
  void* workspace = args.workspace;
  std::size_t bytes = args.workspace_bytes;
  if (workspace == nullptr) {
    bytes = std::min(workspace_bytes(args.tokens), std::max(kOwnWorkspace, workspace_bytes(1)));
    own.reset(std::aligned_alloc(kWorkspaceAlignment, bytes / kWorkspaceAlignment * kWorkspaceAlignment));
    workspace = own.get();
    if (workspace == nullptr) {
      return Error(ErrorCode::out_of_memory,
                   fmt::format("forward: no host memory for {} bytes of workspace", bytes));
    }
  }
  const std::int64_t chunk = tokens_that_fit(spec, args.tokens, team_size, bytes);
  if (chunk == 0) {
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("forward: workspace_bytes is {}; {} tokens want {}, one token needs {}", bytes,
                             args.tokens, workspace_bytes(args.tokens), workspace_bytes(1)));
  }
  const std::int64_t tokens =
      args.token_count != nullptr ? std::clamp<std::int64_t>(*args.token_count, 0, args.tokens) : args.tokens;
  if (tokens == 0) return {};

  const int active = impl_->team.worth(
      static_cast<double>(std::min(chunk, tokens)) * static_cast<double>(spec.slots_per_token()) * 3.0 *
      static_cast<double>(spec.hidden_size) * static_cast<double>(spec.widest_of_all()));
  Run run(spec, impl_->experts, impl_->shared_gate, impl_->kernels, args, tokens, chunk, workspace, team_size,
          active);
  impl_->team.run(active, Run::member, &run);
  return {};
} catch (const std::bad_alloc&) {
  return Error(ErrorCode::out_of_memory, "forward: no host memory");
} catch (...) {
  return Error(ErrorCode::internal, "forward: unexpected exception");
}

Status CpuLayer::up(const UpArgs& up) noexcept {
  const LayerSpec& spec = impl_->spec;
  if (impl_->experts.empty()) return Error(ErrorCode::not_bound, "up before bind");
  if (spec.weight_on_input)
    return Error(ErrorCode::unsupported,
                 "up: the layer has weight_on_input, and UpArgs has no weights: use forward");
  if (up.tokens == 0) return {};
  if (up.workspace_bytes < workspace_bytes(up.tokens)) {
    return Error(ErrorCode::workspace_too_small,
                 fmt::format("up: workspace_bytes is {}; {} tokens need {}", up.workspace_bytes, up.tokens,
                             workspace_bytes(up.tokens)));
  }
  const std::int64_t tokens =
      up.token_count != nullptr ? std::clamp<std::int64_t>(*up.token_count, 0, up.tokens) : up.tokens;
  if (tokens == 0) {
    std::fill_n(up.expert_offsets, spec.all_experts() + 1, 0);
    return {};
  }
  ForwardArgs args;
  args.tokens = up.tokens;
  args.x = up.x;
  args.x_stride = up.x_stride;
  args.topk_ids = up.topk_ids;
  args.id_type = up.id_type;
  const int team_size = impl_->team.size();
  Run run(spec, impl_->experts, nullptr, impl_->kernels, args, tokens, tokens, up.workspace, team_size,
          team_size);
  run.only_up(up);
  impl_->team.run(team_size, Run::member, &run);
  return {};
}

}  // namespace varmoe::cpu
