#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>

#include "plan/chunk_run.hpp"
#include "plan/plan.hpp"

namespace varmoe::plan {
namespace {

/// abi::LayerParams::nonce: random, even, not 0.
std::uint64_t launch_nonce() {
  std::random_device random;
  return ((std::uint64_t{random()} << 32 | random()) & ~std::uint64_t{1}) | 2;
}

}  // namespace

RunContext run_context(const cuda::Device& device, const LayerSpec& spec, int max_sms) {
  const cuda::DeviceAttributes& a = device.attributes();
  RunContext context;
  context.driver = &device.driver();
  context.spec = &spec;
  // Drivers before CUDA 12.3 cannot capture such launches.
  context.dependent_launch = a.compute_major >= 9 && device.driver().version() >= 12030;
  context.classes = static_cast<std::int32_t>(width_classes(spec).size());
  context.max_width = spec.widest_of_all();
  context.nonce = launch_nonce();
  context.sm_limited = max_sms > 0 && max_sms < a.sm_count;
  context.sm_count = max_sms > 0 ? std::min(max_sms, a.sm_count) : a.sm_count;
  return context;
}

Status run(const RunContext& context, const KernelSet& kernels, const ForwardArgs& args,
           std::int64_t chunk) noexcept {
  if (chunk * context.spec->slots_per_token() > std::numeric_limits<i32>::max()) {
    return Error(ErrorCode::unsupported,
                 "more than 2^31 - 1 routed rows at a time; set LayerOptions::max_workspace_bytes");
  }
  for (std::int64_t begin = 0; begin < args.tokens; begin += chunk) {
    ChunkRun part(context, kernels, args, begin, std::min(chunk, args.tokens - begin));
    if (auto ok = part.run(); !ok) return ok;
  }
  return {};
}

Status run_up(const RunContext& context, const KernelSet& kernels, const UpArgs& up) noexcept {
  if (up.tokens * context.spec->slots_per_token() > std::numeric_limits<i32>::max())
    return Error(ErrorCode::unsupported, "more than 2^31 - 1 routed rows at a time");
  ForwardArgs args;
  args.tokens = up.tokens;
  args.x = up.x;
  args.x_stride = up.x_stride;
  args.topk_ids = up.topk_ids;
  args.id_type = up.id_type;
  args.token_count = up.token_count;
  args.workspace = up.workspace;
  args.workspace_bytes = up.workspace_bytes;
  args.stream = up.stream;
  return ChunkRun(context, kernels, args, 0, up.tokens).run_up(up);
}

}  // namespace varmoe::plan
