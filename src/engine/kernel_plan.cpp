#include "engine/kernel_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "model/token_bucket.hpp"

namespace varmoe::engine {
namespace {

/// Above this no layer is run in one piece; a prepare for more is a mistake in the argument.
constexpr std::int64_t kMaxPreparedTokens = std::int64_t{1} << 30;

}  // namespace

bool needs_runtime_width(const LayerSpec& spec) {
  return width_classes(spec).size() > kMaxWidthClasses;
}

Result<std::vector<std::int64_t>> buckets_to_prepare(const PrepareOptions& options) {
  const auto check = [](const char* field, std::int64_t value) -> Status {
    if (value >= 1 && value <= kMaxPreparedTokens) return {};
    return Error(ErrorCode::invalid_argument, fmt::format("PrepareOptions::{} = {}: must lie in 1 … {}",
                                                          field, value, kMaxPreparedTokens));
  };
  std::vector<std::int64_t> buckets;
  if (options.tokens.empty()) {
    if (Status status = check("min_tokens", options.min_tokens); !status) return std::move(status).error();
    if (Status status = check("max_tokens", options.max_tokens); !status) return std::move(status).error();
    if (options.min_tokens > options.max_tokens)
      return Error(ErrorCode::invalid_argument,
                   fmt::format("PrepareOptions: min_tokens = {} is greater than max_tokens = {}",
                               options.min_tokens, options.max_tokens));
    buckets = model::buckets_between(options.min_tokens, options.max_tokens);
  } else {
    for (const std::int64_t tokens : options.tokens) {
      if (Status status = check("tokens", tokens); !status) return std::move(status).error();
      buckets.push_back(model::bucket_of(tokens));
    }
  }
  std::sort(buckets.begin(), buckets.end());
  buckets.erase(std::unique(buckets.begin(), buckets.end()), buckets.end());
  return buckets;
}

Result<KernelPlan> plan_kernels(const LayerSpec& spec, std::span<const std::int64_t> buckets,
                                const ConfigChooser& chooser, bool runtime_width) {
  KernelPlan plan;
  for (const std::int64_t bucket : buckets) {
    auto choice = chooser.choose(spec, bucket);
    if (!choice) return std::move(choice).error();
    BucketPlan entry{bucket, *choice, runtime_width, {}};
    for (const emit::KernelRequest& request :
         emit::required_kernels(spec, choice->config, bucket, runtime_width)) {
      const auto found = std::find(plan.requests.begin(), plan.requests.end(), request);
      entry.kernels.push_back(static_cast<std::size_t>(found - plan.requests.begin()));
      if (found == plan.requests.end()) plan.requests.push_back(request);
    }
    plan.buckets.push_back(std::move(entry));
  }
  return plan;
}

std::string config_text(const emit::KernelRequest& request) {
  if (request.stage == emit::Stage::fc1 || request.stage == emit::Stage::fc2) return to_string(request.gemm);
  if (request.stage == emit::Stage::whole_layer)
    return fmt::format("max_tokens={},teams={}", request.one_launch.max_tokens, request.one_launch.teams);
  return fmt::format("block_threads={}", request.block_threads);
}

}  // namespace varmoe::engine
