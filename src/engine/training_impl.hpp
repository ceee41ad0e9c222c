#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/training.hpp"
#include "engine/engine_impl.hpp"
#include "plan/training.hpp"
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
  /// Immutable; forward and backward read it through one atomic pointer.
  struct Published {
    bool by_prepare = false;  ///< a prepare has said which buckets to serve from: nothing is compiled after
    std::vector<std::int64_t> buckets;  ///< ascending
    std::vector<const plan::TrainingKernels*> sets;
  };

  /// Kernels for a call, prepared at the first use of a bucket unless a capture forbids it.
  Result<const plan::TrainingKernels*> kernels_for(std::int64_t tokens, void* stream);
  Result<std::vector<KernelReport>> prepare_buckets(std::span<const std::int64_t> buckets,
                                                    const PrepareOptions& options, bool by_prepare);
  /// Copies a table to the device: the first time to memory that stays, then in place, so that captured
  /// graphs follow.
  Status keep_table(const std::vector<std::byte>& table, std::atomic<std::uint64_t>& address,
                    std::size_t& bytes);
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
  std::atomic<std::uint64_t> forward_table_{0}, backward_table_{0}, gradient_table_{0};
  std::atomic<const Published*> published_{nullptr};

  std::mutex bind_mutex_;
  std::size_t forward_table_bytes_ = 0, backward_table_bytes_ = 0, gradient_table_bytes_ = 0;
  Weights gradients_;  ///< as bound

  std::mutex prepare_mutex_;
  std::map<std::int64_t, std::unique_ptr<const plan::TrainingKernels>> sets_;
  /// What was published: calls may still read it.
  std::vector<std::unique_ptr<const Published>> history_;
  std::map<std::int64_t, Error> failed_first_uses_;  ///< later calls are told at once
};

}  // namespace varmoe
