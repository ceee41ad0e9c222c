#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/kernel_artifact.hpp"
#include "emit/emitter.hpp"
#include "model/device_profile.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// The kernels that are compiled for every arch: for each family one layer whose widths have tails, at
/// several buckets.
namespace kernels_test {

struct Family {
  std::string name;
  varmoe::LayerSpec spec;
  std::vector<std::int64_t> buckets;
  bool runtime_width = false;
  bool copies_rows = false;  ///< fc1 reads a copy made by the gather kernel
};
std::vector<Family> families();

/// A shipped profile of each arch: those with the least shared memory.
std::vector<varmoe::model::DeviceProfile> devices();

struct Kernel {
  std::string what;  ///< family, stage, config, for messages
  varmoe::emit::EmittedKernel emitted;
  bool wgmma = false;  ///< of Hopper's main loop
  std::int32_t cluster = 1;
};
/// The distinct kernels of a family on a device, with the configs that the cost model predicts.
std::vector<Kernel> kernels_of(const Family& family, const varmoe::model::DeviceProfile& device);

/// GEMMs of Hopper's main loop, with configs of their own, for a device of sm_90a.
std::vector<Kernel> hopper_kernels(const varmoe::model::DeviceProfile& device);

/// Whole layers in one launch, of every size, with the deepest ring that fits the device.
std::vector<Kernel> whole_layer_kernels(const varmoe::model::DeviceProfile& device);

/// Compiles with NVRTC, each kernel once a process. Thread-safe.
std::shared_ptr<const varmoe::Result<varmoe::KernelBinary>> compile_one(const Kernel& kernel,
                                                                        const std::string& arch);

}  // namespace kernels_test
