#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/digest.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "plan/plan.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// Kernels of many configs, compiled side by side in the background in the order of the configs, while those
/// that are ready are used. Only compiling happens there: kernels are loaded by load(), so that the driver is
/// never busy with it while something is timed.
class KernelStream {
 public:
  /// Begins. The references outlive it; kernels that `table` has are not fetched. `of_config`: which of the
  /// requests each config takes.
  KernelStream(engine::KernelBuilder& builder, engine::KernelTable& table,
               std::vector<engine::UnitRequest> requests, std::vector<std::vector<std::size_t>> of_config);
  /// Stops compiling.
  ~KernelStream();
  KernelStream(const KernelStream&) = delete;
  KernelStream& operator=(const KernelStream&) = delete;

  /// Waits until the kernels of config `index` are compiled. An error is that of its first kernel that could
  /// not be made.
  Status wait(std::size_t index);
  /// After wait(): loads them.
  Status load(std::size_t index);
  /// After load(): the kernel of a request of that config.
  plan::LoadedKernel kernel(std::size_t request) const;

 private:
  void build();

  engine::KernelBuilder& builder_;
  engine::KernelTable& table_;
  const std::vector<engine::UnitRequest> requests_;
  const std::vector<std::vector<std::size_t>> of_config_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Digest, engine::BuiltKernel> ready_;
  bool done_ = false;
  std::vector<Status> outcome_;  ///< of each request; once done
  std::atomic<bool> cancel_{false};
  std::thread thread_;
};

}  // namespace varmoe::tools
