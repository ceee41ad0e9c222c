#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "emit/emitter.hpp"
#include "engine/engine_impl.hpp"
#include "plan/plan.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// The kernels of an operation that has no configs and no token buckets: all of them serve every call.
/// Thread-safe.
class KernelGroup {
 public:
  using Emit = std::function<Result<std::vector<emit::EmittedKernel>>()>;
  /// `name` stands for the operation in messages.
  KernelGroup(std::shared_ptr<Engine::Impl> engine, std::string name, Emit emit);

  /// Builds and loads them; a no-op when they are there. Tries again after a failure.
  Result<PrepareReport> prepare(const PrepareOptions& options);

  /// Loaded, in the order of emission; null before that.
  const plan::LoadedKernel* loaded() const noexcept { return published_.load(std::memory_order_acquire); }

  /// The same for a call on `stream`: prepares at first use, unless a capture forbids it. The device's
  /// context is current.
  Result<const plan::LoadedKernel*> first_use(void* stream);

 private:
  Result<PrepareReport> prepare_locked(const PrepareOptions& options);

  const std::shared_ptr<Engine::Impl> engine_;
  const std::string name_;
  const Emit emit_;
  std::mutex mutex_;
  std::vector<plan::LoadedKernel> kernels_;  ///< written once, before it is published
  std::optional<Error> failed_;              ///< of the first use: later calls are told at once
  std::atomic<const plan::LoadedKernel*> published_{nullptr};
};

}  // namespace varmoe::engine
