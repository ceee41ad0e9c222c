#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/digest.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "plan/plan.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::tools {

/// The kernels of many configs of one layer and token bucket, compiled side by side in the background in the
/// order of the configs, while those that are ready are used. Only compiling happens there: kernels are
/// loaded by get(), so that the driver is never busy with it while something is timed.
class CandidateKernels {
 public:
  /// Begins. All references outlive it; kernels that `table` has are not fetched.
  CandidateKernels(engine::KernelBuilder& builder, engine::KernelTable& table, const LayerSpec& spec,
                   std::int64_t bucket, const std::vector<LayerConfig>& configs);
  /// Stops compiling.
  ~CandidateKernels();
  CandidateKernels(const CandidateKernels&) = delete;
  CandidateKernels& operator=(const CandidateKernels&) = delete;

  /// Waits until the kernels of config `index` are compiled. An error is that of its first kernel that could
  /// not be made.
  Status wait(std::size_t index);
  /// After wait(): loads them.
  Result<plan::KernelSet> load(std::size_t index);

 private:
  void build();

  engine::KernelBuilder& builder_;
  engine::KernelTable& table_;
  const LayerSpec& spec_;
  const std::vector<LayerConfig>& configs_;
  const bool runtime_width_;
  std::vector<emit::KernelRequest> requests_;        ///< distinct
  std::vector<std::vector<std::size_t>> of_config_;  ///< indices into requests_

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Digest, engine::BuiltKernel> ready_;
  bool done_ = false;
  std::vector<Status> outcome_;  ///< of each request; once done
  std::atomic<bool> cancel_{false};
  std::thread thread_;
};

}  // namespace varmoe::tools
