#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cuda/driver.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

struct DeviceAttributes {
  std::string name;  ///< "NVIDIA H200"
  int compute_major = 0, compute_minor = 0;
  int sm_count = 0;
  int smem_per_block = 0;  ///< bytes a block may opt in to
  int smem_per_sm = 0;     ///< bytes
  int regs_per_sm = 0;
  int threads_per_sm = 0;
  int warp_size = 32;
  std::int64_t l2_bytes = 0;
  std::int64_t total_memory = 0;  ///< bytes
  std::string pci_bus_id;         ///< "0000:1b:00.0"
};

/// One GPU with its primary context retained (the context that the runtime API and frameworks use).
/// Thread-safe. Objects made on it (modules, buffers, streams) share its ownership, so it outlives them.
class Device {
 public:
  /// no_device names the ordinal and how many there are.
  static Result<std::shared_ptr<Device>> open(std::shared_ptr<Driver> driver, int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Driver& driver() const noexcept { return *driver_; }
  const std::shared_ptr<Driver>& shared_driver() const noexcept { return driver_; }
  int ordinal() const noexcept { return ordinal_; }
  const DeviceAttributes& attributes() const noexcept { return attributes_; }
  /// CUcontext of the primary context.
  void* context() const noexcept { return context_; }
  /// Blocks until the device is idle.
  Status synchronize() const;

 private:
  Device() = default;
  std::shared_ptr<Driver> driver_;
  int ordinal_ = 0;
  int handle_ = 0;
  void* context_ = nullptr;
  DeviceAttributes attributes_;
};

/// Makes the device's context current for a block of code and restores the caller's on leaving. Does nothing
/// when it is current already (the usual case under a framework). No synchronisation, no allocation on
/// success: `forward` opens one, because a launch on the null stream goes to the current context, and a
/// thread may have none.
class ContextScope {
 public:
  explicit ContextScope(const Device& device) noexcept;
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;
  bool ok() const noexcept { return result_ == 0; }
  Status status() const noexcept;

 private:
  const Device* device_;
  int result_ = 0;
  bool pushed_ = false;
};

}  // namespace varmoe::cuda
