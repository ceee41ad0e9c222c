#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/blocks.hpp"
#include "engine/device_table.hpp"
#include "engine/engine_impl.hpp"
#include "engine/prepared_sets.hpp"
#include "plan/blocks.hpp"
#include "varmoe/blocks.hpp"

namespace varmoe {

struct VARMOE_HIDDEN Blocks::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec,
                                              const BlocksOptions& options);
  Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const BlocksOptions& options);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Status bind(const Weights& weights);
  Result<std::size_t> workspace_bytes(std::int64_t rows) const;
  Status gather(const GatherArgs& args);
  Status slot_rows(const SlotRowsArgs& args);
  Status up(const GroupedUpArgs& args);
  Status down(const GroupedDownArgs& args);
  Status combine(const CombineArgs& args);
  Status combine_backward(const CombineBackwardArgs& args);
  Status bind_gradients(const Weights& gradients);
  Result<std::size_t> backward_workspace_bytes(std::int64_t rows) const;
  Status down_backward(const GroupedDownBackwardArgs& args);
  Status up_backward(const GroupedUpBackwardArgs& args);

  const LayerSpec& spec() const noexcept { return spec_; }
  const BlocksOptions& options() const noexcept { return options_; }

 private:
  Status not_forked() const { return engine_->fork.same_process() ? Status{} : engine_->fork.error(); }
  /// Runs `launch(context, kernels)` with the kernels of so many tokens.
  plan::BlocksContext context() const noexcept;
  /// What down_backward and up_backward ask before they begin; `rows_done`: there is nothing more to do.
  template <class Args>
  Status begin_backward(const char* type, const char* call, const Args& args, std::size_t bytes,
                        bool& rows_done, bool fc1);
  template <class Launch>
  Status on_device(std::int64_t tokens, void* stream, Launch&& launch);
  std::int64_t tokens_of(std::int64_t rows) const noexcept {
    return (rows + spec_.slots_per_token() - 1) / spec_.slots_per_token();
  }
  /// Kernels for a call, prepared at the first use of a bucket unless a capture forbids it.
  Result<const plan::BlockKernels*> kernels_for(std::int64_t tokens, void* stream);
  Result<std::vector<KernelReport>> prepare_buckets(std::span<const std::int64_t> buckets,
                                                    const PrepareOptions& options, bool by_prepare);
  std::string name() const;

  const std::shared_ptr<Engine::Impl> engine_;
  const LayerSpec spec_;
  const BlocksOptions options_;
  std::unique_ptr<cpu::CpuBlocks> cpu_;

  const LayerSpec backward_spec_;  ///< model::backward_layer
  plan::BlocksContext context_;    ///< without the tables' addresses
  engine::DeviceTable table_, backward_table_, gradient_table_;
  engine::PreparedSets<plan::BlockKernels> kernels_;

  std::mutex bind_mutex_;
  Weights gradients_;  ///< as bound
};

}  // namespace varmoe
