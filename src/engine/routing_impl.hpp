#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "cpu/route.hpp"
#include "engine/engine_impl.hpp"
#include "engine/kernel_group.hpp"
#include "plan/routing.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_statistics.hpp"

namespace varmoe {

namespace engine {

/// A RouteArgs or AlignArgs that is out of range: the sentence for people. Empty when it is sound.
std::string route_argument_problem(const RouterSpec& spec, const RouteArgs& args);
std::string align_argument_problem(const AlignSpec& spec, const AlignArgs& args);
/// The same question without the sentence: fast, for every call.
bool route_arguments_ok(const RouterSpec& spec, const RouteArgs& args) noexcept;
bool align_arguments_ok(const AlignSpec& spec, const AlignArgs& args) noexcept;

}  // namespace engine

struct VARMOE_HIDDEN Router::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine, const RouterSpec& spec);
  Impl(std::shared_ptr<Engine::Impl> engine, const RouterSpec& spec);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  Status route(const RouteArgs& args) noexcept;
  const RouterSpec& spec() const noexcept { return spec_; }

 private:
  const std::shared_ptr<Engine::Impl> engine_;
  const RouterSpec spec_;
  std::unique_ptr<cpu::CpuRouter> cpu_;
  plan::RoutingContext context_;
  engine::KernelGroup kernels_;  ///< route; with hidden_size router_gemv and router_gemm too
};

struct VARMOE_HIDDEN BlockAligner::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine, const AlignSpec& spec);
  Impl(std::shared_ptr<Engine::Impl> engine, const AlignSpec& spec);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Result<std::size_t> workspace_bytes(std::int64_t rows) const;
  Status align(const AlignArgs& args) noexcept;
  const AlignSpec& spec() const noexcept { return spec_; }

 private:
  const std::shared_ptr<Engine::Impl> engine_;
  const AlignSpec spec_;
  plan::RoutingContext context_;
  engine::KernelGroup kernels_;  ///< single, count, scatter
};

struct VARMOE_HIDDEN RouterStatistics::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine,
                                              const RouterStatisticsSpec& spec);
  Impl(std::shared_ptr<Engine::Impl> engine, const RouterStatisticsSpec& spec);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  Status compute(const RouterStatisticsArgs& args) noexcept;
  const RouterStatisticsSpec& spec() const noexcept { return spec_; }

 private:
  const std::shared_ptr<Engine::Impl> engine_;
  const RouterStatisticsSpec spec_;
  plan::RoutingContext context_;
  engine::KernelGroup kernels_;  ///< statistics_blocks, statistics_total
};

}  // namespace varmoe
