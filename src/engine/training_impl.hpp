#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cpu/training.hpp"
#include "engine/engine_impl.hpp"
#include "varmoe/training.hpp"

namespace varmoe {

namespace engine {

/// A BackwardArgs that is out of range: the sentence for people. Empty when it is sound but, perhaps, for the
/// sizes of saved and workspace.
std::string backward_argument_problem(const LayerSpec& spec, const BackwardArgs& args,
                                      std::size_t saved_needed, std::size_t workspace_needed);

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
  std::size_t needed_saved(std::int64_t tokens) const noexcept;
  std::size_t needed_workspace(std::int64_t tokens) const noexcept;

  const std::shared_ptr<Engine::Impl> engine_;
  const LayerSpec spec_;
  const TrainingOptions options_;
  std::unique_ptr<cpu::CpuTrainingLayer> cpu_;
  std::atomic<bool> bound_{false}, gradients_bound_{false};
};

}  // namespace varmoe
