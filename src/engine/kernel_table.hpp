#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "base/digest.hpp"
#include "base/log.hpp"
#include "cuda/device.hpp"
#include "cuda/module.hpp"
#include "engine/kernel_builder.hpp"
#include "plan/plan.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// A kernel that lies on the device until the engine goes, and what is known of it.
struct ResidentKernel {
  plan::LoadedKernel launch;
  cuda::Module module;
  KernelReport report;
};

/// The kernels of one device, by cubin key, shared by all layers of an engine. Kernels are added and never
/// removed, so that pointers and captured graphs stay valid. Thread-safe.
class KernelTable {
 public:
  KernelTable(std::shared_ptr<cuda::Device> device, KernelBuilder& builder, Log log);

  /// Null when it is not resident.
  const ResidentKernel* find(const Digest& key) const;

  /// Makes a built kernel resident (at once: nothing is left for the first launch). An image that the driver
  /// calls damaged is rebuilt once; a sound one that is too new for the driver is driver_too_old, said once,
  /// and stays cached.
  Status load(BuiltKernel& kernel, const std::atomic<bool>* cancel);

  std::uint64_t size() const noexcept { return count_.load(std::memory_order_relaxed); }
  std::uint64_t image_bytes() const noexcept { return bytes_.load(std::memory_order_relaxed); }

 private:
  Result<cuda::Module> load_module(BuiltKernel& kernel, const std::atomic<bool>* cancel);

  std::shared_ptr<cuda::Device> device_;
  KernelBuilder& builder_;
  Log log_;
  mutable std::mutex mutex_;
  std::map<Digest, std::unique_ptr<const ResidentKernel>> kernels_;
  std::array<std::mutex, 16> loading_;  ///< by a digit of the key: one load of a key at a time
  std::atomic<std::uint64_t> count_{0}, bytes_{0};
};

}  // namespace varmoe::engine
