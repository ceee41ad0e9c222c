#pragma once

#include <cstdint>
#include <vector>

#include "model/config_space.hpp"
#include "model/device_profile.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::model {

/// Physical lower bound of a layer: max(FLOPs / tensor_flops, bytes / bandwidth); bytes = weights of the
/// experts hit + x + out.
struct Floor {
  double flops = 0;
  double bytes = 0;
  double seconds = 0;
};
/// `rows_per_expert[e]` as drawn; empty: the expectation under uniform routing.
Floor layer_floor(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device,
                  const std::vector<std::int64_t>& rows_per_expert = {});

/// Of a backward pass: twice a forward's products; reads x, dout and the weights, and writes dx and the
/// gradients, of `gradient_bytes` an element, of the experts that have rows.
Floor backward_floor(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device,
                     std::int64_t gradient_bytes);

/// Predicted time of one GEMM stage for T tokens routed uniformly, seconds; with the gather kernel's time
/// where fc1 reads a copy. Precondition: check_gemm_config accepts the config.
double predict_gemm_seconds(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                            std::int64_t tokens, const DeviceProfile& device);

/// The best predicted config for a token bucket. For a valid spec, always answers with a config that
/// check_layer_config accepts. The order of experts does not matter. Takes about a millisecond: keep the
/// answer.
LayerConfig predict_layer_config(const LayerSpec& spec, std::int64_t bucket, const DeviceProfile& device);

/// The best predicted config of fc1 of a backward_layer, whose epilogue goes on from g (emit::
/// ActivationBackward): it reads z and writes dz, of `halves` times the width, and w·h.
GemmConfig predict_dh_config(const LayerSpec& back, int halves, std::int64_t tokens,
                             const DeviceProfile& device);

}  // namespace varmoe::model
