#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/kernel_artifact.hpp"
#include "cuda/device.hpp"
#include "varmoe/error.hpp"

namespace varmoe::cuda {

/// Why the driver refused an image: what the owner of the image should do about it.
enum class LoadFailure : std::uint8_t {
  none,
  damaged,  ///< not a sound image: rebuild it once
  too_new,  ///< sound, made by a compiler newer than the driver (driver_too_old): keep it, rebuilding will
            ///< not help
  wrong_device,   ///< sound, for another architecture (unsupported): keep it
  out_of_memory,  ///< keep it
  other,          ///< keep it
};

/// What the driver says of a loaded kernel.
struct KernelAttributes {
  int registers = 0;    ///< per thread
  int local_bytes = 0;  ///< per thread: spills and stack
  int static_smem = 0;  ///< bytes
  int max_threads = 0;  ///< largest block it can be launched with
};

/// One kernel resident on one device. The handle stays valid, also inside captured graphs, until the Module
/// is destroyed.
class Module {
 public:
  /// Loads the image eagerly (nothing is left for the first launch), whatever CUDA_MODULE_LOADING says, finds
  /// binary.entry_name in it and allows `dynamic_smem` bytes of dynamic shared memory. Harmless to graph
  /// captures that other threads have under way. `why` receives the reason of a failure.
  static Result<Module> load(std::shared_ptr<Device> device, const KernelBinary& binary, int dynamic_smem,
                             LoadFailure* why = nullptr);
  Module(Module&&) noexcept;
  Module& operator=(Module&&) noexcept;
  ~Module();

  /// CUfunction in the device's primary context.
  void* function() const noexcept { return function_; }
  const KernelAttributes& attributes() const noexcept { return attributes_; }
  std::size_t image_bytes() const noexcept { return image_bytes_; }
  /// Blocks of this size that one SM holds at a time; 0: it does not fit at all.
  Result<int> blocks_per_sm(int block_threads, int dynamic_smem) const;

 private:
  Module() = default;
  void unload() noexcept;
  std::shared_ptr<Device> device_;
  void* library_ = nullptr;
  void* function_ = nullptr;
  KernelAttributes attributes_;
  std::size_t image_bytes_ = 0;
};

}  // namespace varmoe::cuda
