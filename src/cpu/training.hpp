#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cpu {

/// TrainingLayer on the CPU: host pointers, the rounding points of varmoe/training.hpp, deterministic
/// whatever the number of threads. Thread-safe as CpuLayer is. Arguments have been checked by the engine.
class CpuTrainingLayer {
 public:
  /// As CpuLayer::create.
  static Result<std::unique_ptr<CpuTrainingLayer>> create(const LayerSpec& spec,
                                                          const TrainingOptions& options, int threads = 0,
                                                          std::string_view instruction_set = {});
  ~CpuTrainingLayer();
  CpuTrainingLayer(const CpuTrainingLayer&) = delete;
  CpuTrainingLayer& operator=(const CpuTrainingLayer&) = delete;

  Status bind(const Weights& weights);
  Status bind_gradients(const Weights& gradients);

  /// `tokens` from 1 on, here and below.
  std::size_t saved_bytes(std::int64_t tokens) const noexcept;
  std::size_t workspace_bytes(std::int64_t tokens) const noexcept;

  Status forward(const ForwardArgs& args, void* saved) noexcept;
  /// `tokens` may be 0.
  Status backward(const BackwardArgs& args) noexcept;

 private:
  struct Impl;
  explicit CpuTrainingLayer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace varmoe::cpu
