#include "tools/gpu/trial.hpp"

#include <algorithm>

namespace varmoe::tools {
namespace {

/// Tokens that are compared, and pairs of them and their slots at most.
constexpr std::int64_t kMostSamples = 32, kMostPairs = 512;

}  // namespace

Trial::Trial(std::shared_ptr<cuda::Device> device, const ReferenceKernels& fills, void* stream,
             const LayerSpec& spec)
    : device_(std::move(device)), fills_(fills), stream_(stream), spec_(spec) {}

void Trial::choose_samples(std::int64_t bucket) {
  sample_ = sampled_tokens(bucket, std::clamp<std::int64_t>(kMostPairs / slots(), 1, kMostSamples));
}

Status Trial::upload_ids(const Routing& routing, RoutedIds& to) const {
  if (auto status = upload(device_, to.ids, routing.ids); !status) return status;
  return upload(device_, to.weights, routing.weights);
}

std::int64_t Trial::expert_of(const Routing& routing, std::int64_t token, std::int64_t slot) const {
  return slot < spec_.top_k ? routing.ids[static_cast<std::size_t>(token * spec_.top_k + slot)]
                            : spec_.num_experts() + slot - spec_.top_k;
}

Status Trial::fill_rows(const cuda::DeviceBuffer& rows, std::uint64_t seed) const {
  const FillParams fill{rows.address(), rows.size() / 2, seed, static_cast<float>(std::sqrt(3.0)), fp16()};
  return fills_.fill(fill, stream_);
}

Status Trial::poison(const cuda::DeviceBuffer& buffer, std::uint8_t value) const {
  if (buffer.size() == 0) return {};
  return cuda::fill_async(*device_, buffer.address(), value, buffer.size(), stream_);
}

const cuda::Driver* Trial::tensor_maps() const noexcept {
  return device_->attributes().compute_major == 9 ? &device_->driver() : nullptr;
}

}  // namespace varmoe::tools
