#pragma once

#include <cstddef>
#include <memory>

#include "engine/engine_impl.hpp"
#include "engine/kernel_group.hpp"
#include "plan/router_gradient.hpp"
#include "varmoe/router_gradient.hpp"

namespace varmoe {

struct VARMOE_HIDDEN RouterGradient::Impl {
  static Result<std::shared_ptr<Impl>> create(std::shared_ptr<Engine::Impl> engine,
                                              const RouterGradientSpec& spec);
  Impl(std::shared_ptr<Engine::Impl> engine, const RouterGradientSpec& spec);
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<PrepareReport> prepare(const PrepareOptions& options);
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  Status compute(const RouterGradientArgs& args) noexcept;
  Status product(const RouterProductGradientArgs& args) noexcept;
  const RouterGradientSpec& spec() const noexcept { return spec_; }

 private:
  /// The kernels, loaded at first use; the device's context is current.
  Result<plan::GradientKernels> kernels(void* stream);

  const std::shared_ptr<Engine::Impl> engine_;
  const RouterGradientSpec spec_;
  plan::RoutingContext context_;
  engine::KernelGroup kernels_;  ///< as emit_router_gradient
};

}  // namespace varmoe
