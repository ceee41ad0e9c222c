#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "cpu/layer.hpp"
#include "engine/device_table.hpp"
#include "engine/engine_impl.hpp"
#include "engine/layer_build.hpp"
#include "engine/prepared_sets.hpp"
#include "plan/plan.hpp"
#include "varmoe/engine.hpp"

namespace varmoe {

namespace engine {

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
  engine::PreparedSets<plan::KernelSet> kernels_;
  engine::DeviceTable table_;

  std::mutex bind_mutex_;
};

}  // namespace varmoe
