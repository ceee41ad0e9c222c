#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/memory.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// A layer's weights on a device, or their gradients: each expert's matrices one after another, the shared
/// ones last.
namespace varmoe::tools {

struct TrialWeights {
  cuda::DeviceBuffer fc1, fc2, shared_gate, fc1_bias, fc2_bias;
  Weights lie;

  std::uint64_t bytes() const noexcept { return fc1.size() + fc2.size(); }
};

/// out_of_memory. `element_bytes` 4: gradients in fp32. Nothing is written.
Result<TrialWeights> allocate_weights(const std::shared_ptr<cuda::Device>& device, const LayerSpec& spec,
                                      std::int64_t element_bytes = 2);
/// Random numbers that keep what a layer computes near a standard deviation of 1; the same each time.
Status fill_weights(const ReferenceKernels& kernels, const LayerSpec& spec, const TrialWeights& weights,
                    void* stream);
/// As the reference kernels read them.
std::vector<ReferenceExpert> reference_experts(const LayerSpec& spec, const Weights& weights);

/// Anything to the device; out_of_memory.
Status allocate(const std::shared_ptr<cuda::Device>& device, cuda::DeviceBuffer& buffer, std::size_t bytes);
template <class T>
Status upload(const std::shared_ptr<cuda::Device>& device, cuda::DeviceBuffer& buffer,
              const std::vector<T>& values) {
  if (auto status = allocate(device, buffer, values.size() * sizeof(T)); !status) return status;
  return cuda::copy_to_device(*device, buffer.address(), values.data(), values.size() * sizeof(T));
}

}  // namespace varmoe::tools
