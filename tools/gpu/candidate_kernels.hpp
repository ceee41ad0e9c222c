#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "engine/training_build.hpp"
#include "model/device_profile.hpp"
#include "plan/plan.hpp"
#include "plan/training.hpp"
#include "tools/gpu/kernel_stream.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::tools {

/// The kernels of many configs of one layer's forward at a token bucket (KernelStream).
class CandidateKernels {
 public:
  /// Begins. The references outlive it.
  CandidateKernels(engine::KernelBuilder& builder, engine::KernelTable& table, const LayerSpec& spec,
                   std::int64_t bucket, const std::vector<LayerConfig>& configs);

  Status wait(std::size_t index) { return stream_->wait(index); }
  /// After wait(): loads them.
  Result<plan::KernelSet> load(std::size_t index);

 private:
  const std::vector<LayerConfig>& configs_;
  const bool runtime_width_;
  std::vector<emit::KernelRequest> requests_;        ///< distinct
  std::vector<std::vector<std::size_t>> of_config_;  ///< indices into requests_
  std::unique_ptr<KernelStream> stream_;
};

/// The same of a backward pass, each with the forward that the cost model predicts for `device`, which keeps
/// z.
class CandidateTraining {
 public:
  CandidateTraining(engine::KernelBuilder& builder, engine::KernelTable& table, const LayerSpec& spec,
                    std::int64_t bucket, GradientType gradient_type,
                    const std::vector<BackwardConfig>& configs, const model::DeviceProfile& device);

  Status wait(std::size_t index) { return stream_->wait(index); }
  /// After wait(): loads them.
  Result<plan::TrainingKernels> load(std::size_t index);

 private:
  std::vector<engine::TrainingBucket> buckets_;  ///< one a config
  std::unique_ptr<KernelStream> stream_;
};

}  // namespace varmoe::tools
