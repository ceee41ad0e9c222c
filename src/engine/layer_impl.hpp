#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/layer.hpp"
#include "engine/engine_impl.hpp"
#include "engine/layer_build.hpp"
#include "plan/plan.hpp"
#include "varmoe/engine.hpp"

namespace varmoe {

namespace engine {

/// The prepared buckets of a layer at one moment. Immutable; forward reads it through one atomic pointer.
struct PublishedSets {
  /// A prepare has said which buckets to serve from: forward never compiles.
  bool by_prepare = false;
  std::vector<std::int64_t> buckets;  ///< ascending
  std::vector<const plan::KernelSet*> sets;

  /// The smallest prepared bucket ≥ tokens, else the largest; null when there is none.
  const plan::KernelSet* nearest(std::int64_t tokens) const noexcept;
  const plan::KernelSet* exact(std::int64_t bucket) const noexcept;
};

/// A ForwardArgs that is out of range: the sentence for people. Empty when it is sound.
std::string forward_argument_problem(const LayerSpec& spec, const ForwardArgs& args,
                                     std::size_t workspace_needed);
/// The same question without the sentence: fast, for every forward.
bool forward_arguments_ok(const LayerSpec& spec, const ForwardArgs& args,
                          std::size_t workspace_needed) noexcept;

}  // namespace engine

struct VARMOE_HIDDEN Layer::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec,
                                              const LayerOptions& options);
  Impl(std::shared_ptr<Engine::Impl> engine, const LayerSpec& spec, const LayerOptions& options);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Status bind(const Weights& weights);
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  Status forward(const ForwardArgs& args) noexcept;
  Status up(const UpArgs& args) noexcept;

  const LayerSpec& spec() const noexcept { return spec_; }

 private:
  /// The set for a forward that no published one is meant for: prepared there and then, or what serves a
  /// capture.
  Result<const plan::KernelSet*> first_use(std::int64_t tokens, void* stream);
  Status prepare_at_first_use(std::int64_t bucket);
  Status publish(const engine::LayerBuild& build, bool by_prepare);
  /// Tokens of one chunk of a forward of `tokens`: even chunks, so that the last is not a sliver.
  std::int64_t chunk(std::int64_t tokens) const noexcept;
  /// What workspace_bytes promises and forward asks for; tokens ≥ 1.
  std::size_t needed_workspace(std::int64_t tokens) const noexcept;
  std::string name() const;

  const std::shared_ptr<Engine::Impl> engine_;
  const LayerSpec spec_;
  const LayerOptions options_;
  std::unique_ptr<cpu::CpuLayer> cpu_;

  // Read by forward.
  plan::RunContext context_;    ///< without the table's address, which bind sets
  std::int64_t max_chunk_ = 0;  ///< most tokens that go in one piece
  std::atomic<const engine::PublishedSets*> published_{nullptr};
  std::atomic<std::uint64_t> table_{0};

  std::mutex bind_mutex_;
  std::size_t table_bytes_ = 0;

  std::mutex publish_mutex_;
  /// What was ever published: a forward may still read it. One small entry for each prepare that brought
  /// something new.
  std::vector<std::unique_ptr<const engine::PublishedSets>> history_;
  std::deque<plan::KernelSet> sets_;

  std::mutex first_use_mutex_;
  /// Buckets whose first use failed: the next forward is told at once. A prepare tries again.
  std::map<std::int64_t, Error> failed_first_uses_;
};

}  // namespace varmoe
