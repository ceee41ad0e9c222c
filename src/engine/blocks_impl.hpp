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

#include "cpu/blocks.hpp"
#include "engine/engine_impl.hpp"
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

  const LayerSpec& spec() const noexcept { return spec_; }
  const BlocksOptions& options() const noexcept { return options_; }

 private:
  /// Immutable; calls read it through one atomic pointer.
  struct Published {
    bool by_prepare = false;  ///< a prepare has said which buckets to serve from: nothing is compiled after
    std::vector<std::int64_t> buckets;  ///< ascending
    std::vector<const plan::BlockKernels*> sets;
  };

  Status not_forked() const { return engine_->fork.same_process() ? Status{} : engine_->fork.error(); }
  /// Runs `launch(context, kernels)` with the kernels of so many tokens.
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

  plan::RunContext context_;  ///< without the table's address, which bind sets
  std::atomic<std::uint64_t> table_{0};
  std::atomic<const Published*> published_{nullptr};

  std::mutex bind_mutex_;
  std::size_t table_bytes_ = 0;

  std::mutex prepare_mutex_;
  std::map<std::int64_t, std::unique_ptr<const plan::BlockKernels>> sets_;
  /// What was published: calls may still read it.
  std::vector<std::unique_ptr<const Published>> history_;
  std::map<std::int64_t, Error> failed_first_uses_;  ///< later calls are told at once
};

}  // namespace varmoe
