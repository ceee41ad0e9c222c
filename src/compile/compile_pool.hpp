#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "base/kernel_artifact.hpp"
#include "compile/compiler.hpp"
#include "varmoe/error.hpp"

namespace varmoe::compile {

struct CompileAllOptions {
  int threads = 0;  ///< 0: one per core; never more than there are requests
  /// Called after each request with (done, total). Calls do not overlap; they come from compile threads, or
  /// from the caller's for requests that were given up. None comes after compile_all has returned.
  std::function<void(std::size_t, std::size_t)> progress;
  /// Called with each finished request before `progress`, so that it can be stored at once; same guarantees.
  std::function<void(std::size_t index, const Result<KernelBinary>&)> on_result;
  /// Set from any thread: requests not begun return `cancelled`; those under way are asked to stop.
  const std::atomic<bool>* cancel = nullptr;
  /// Longest time one request may take.
  std::chrono::milliseconds limit = std::chrono::minutes(5);
};

/// Compiles every request, in parallel, results in request order. CompileRequest::cancel is not looked at
/// here; `options.cancel` is.
///
/// NVRTC cannot be interrupted from outside. A request that outlives `limit` returns compile_failed; its
/// thread is left behind, detached, holding the compiler and its own copy of the request, and another thread
/// takes its place in the pool. If the stuck call ever ends, its result is dropped. A crash inside NVRTC
/// takes the process with it.
std::vector<Result<KernelBinary>> compile_all(const std::shared_ptr<Compiler>& compiler,
                                              std::vector<CompileRequest> requests,
                                              const CompileAllOptions& options = {});

}  // namespace varmoe::compile
