#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "tools/gpu/routing.hpp"
#include "tools/gpu/trial_weights.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::tools {

/// NaN in all formats; small integers, which pass for indices and counts.
inline constexpr std::uint8_t kPoisonNan = 0xFF, kPoisonSmall = 0x01;
inline constexpr RoutingKind kRoutingKinds[] = {RoutingKind::uniform, RoutingKind::zipf, RoutingKind::hot};

/// ‖error‖ / ‖reference‖ of the sums of their squares. What is zero must be met exactly.
inline double relative_error(double error, double reference) {
  return reference > 0 ? std::sqrt(error / reference) : error == 0 ? 0 : INFINITY;
}
/// `count` of `all`; what is no number counts as all.
inline double share_of(double count, double all) {
  return count >= 0 && count <= all ? count / (all > 1 ? all : 1) : 1.0;
}

/// What TrialLayer and TrialTraining have in common: a layer on a device, rows of x and out and a workspace
/// for one token bucket, and the tokens that are compared. Used by one thread; everything runs on one stream.
class Trial {
 public:
  const LayerSpec& spec() const noexcept { return spec_; }
  std::int64_t bucket() const noexcept { return bucket_; }

 protected:
  struct RoutedIds {
    cuda::DeviceBuffer ids, weights;
  };

  /// `fills` and `stream` outlive it.
  Trial(std::shared_ptr<cuda::Device> device, const ReferenceKernels& fills, void* stream,
        const LayerSpec& spec);
  ~Trial() = default;

  /// Which tokens of a bucket are compared.
  void choose_samples(std::int64_t bucket);
  Status upload_ids(const Routing& routing, RoutedIds& to) const;
  /// The expert of a token's slot, shared ones after the routed; −1: none.
  std::int64_t expert_of(const Routing& routing, std::int64_t token, std::int64_t slot) const;
  /// Random numbers of unit variance in all of `rows`.
  Status fill_rows(const cuda::DeviceBuffer& rows, std::uint64_t seed) const;
  /// Enqueues a byte all over; nothing of a buffer that is none.
  Status poison(const cuda::DeviceBuffer& buffer, std::uint8_t value) const;
  /// The driver where weights need tensor maps, else null.
  const cuda::Driver* tensor_maps() const noexcept;
  std::int32_t fp16() const noexcept { return spec_.dtype == DType::fp16 ? 1 : 0; }
  std::int64_t samples() const noexcept { return static_cast<std::int64_t>(sample_.size()); }
  std::int64_t slots() const noexcept { return spec_.slots_per_token(); }

  /// What a call of the bucket has, forward or backward.
  template <class Args>
  Args call_of(const RoutedIds& routed) const {
    Args args;
    args.tokens = bucket_;
    args.x = x_.data();
    args.topk_ids = routed.ids.data();
    args.topk_weights = static_cast<const float*>(routed.weights.data());
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    args.stream = stream_;
    return args;
  }

  std::shared_ptr<cuda::Device> device_;
  const ReferenceKernels& fills_;
  void* stream_;
  const LayerSpec spec_;
  std::int64_t bucket_ = 0;  ///< 0: none is there
  std::vector<std::int32_t> sample_;
  cuda::DeviceBuffer experts_, x_, out_, workspace_, samples_, results_;
};

}  // namespace varmoe::tools
