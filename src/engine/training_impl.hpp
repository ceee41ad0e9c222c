#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/training.hpp"
#include "engine/device_table.hpp"
#include "engine/engine_impl.hpp"
#include "engine/prepared_sets.hpp"
#include "plan/training.hpp"
#include "varmoe/training.hpp"

namespace varmoe {

namespace engine {

/// A BackwardArgs that is out of range: the sentence for people. Empty when it is sound but, perhaps, for the
/// sizes of saved and workspace.
std::string backward_argument_problem(const LayerSpec& spec, const BackwardArgs& args,
                                      std::size_t saved_needed, std::size_t workspace_needed);

/// Whether weights' gradients of this type may go there.
Status check_gradients(const LayerSpec& spec, GradientType type, const Weights& gradients);

}  // namespace engine

struct VARMOE_HIDDEN TrainingLayer::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec,
                                              const TrainingOptions& options);
  Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const TrainingOptions& options);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Status bind(const Weights& weights);
  Status bind_gradients(const Weights& gradients);
  Result<std::size_t> saved_bytes(std::int64_t tokens) const;
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  Status forward(const ForwardArgs& args, void* saved, std::size_t saved_bytes) noexcept;
  Status backward(const BackwardArgs& args) noexcept;

  const LayerSpec& spec() const noexcept { return spec_; }
  const TrainingOptions& options() const noexcept { return options_; }

 private:
  /// Kernels for a call, prepared at the first use of a bucket unless a capture forbids it.
  Result<const plan::TrainingKernels*> kernels_for(std::int64_t tokens, void* stream);
  Result<std::vector<KernelReport>> prepare_buckets(std::span<const std::int64_t> buckets,
                                                    const PrepareOptions& options, bool by_prepare);
  plan::TrainingContext context() const noexcept;
  std::string name() const;

  std::size_t needed_saved(std::int64_t tokens) const noexcept;
  std::size_t needed_workspace(std::int64_t tokens) const noexcept;

  const std::shared_ptr<Engine::Impl> engine_;
  const LayerSpec spec_;
  const TrainingOptions options_;
  std::unique_ptr<cpu::CpuTrainingLayer> cpu_;
  std::atomic<bool> bound_{false}, gradients_bound_{false};

  // On a GPU.
  const LayerSpec backward_spec_;  ///< model::backward_layer
  plan::TrainingContext context_;  ///< without the tables' addresses
  engine::DeviceTable forward_table_, backward_table_, gradient_table_;
  engine::PreparedSets<plan::TrainingKernels> kernels_;

  std::mutex bind_mutex_;
  Weights gradients_;  ///< as bound
};

}  // namespace varmoe
