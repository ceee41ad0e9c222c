#pragma once

#include <cstdint>
#include <string>

#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"

/// What the tuner chooses for a backward pass.
namespace varmoe {

/// Element type of the gradients of weights, biases and the shared gate.
enum class GradientType : std::uint8_t {
  layer_dtype,  ///< the layer's bf16 or fp16
  fp32,
};

/// Config of a product that is a weight's gradient: per expert, its summed dimension is the expert's rows.
struct GradientConfig {
  Schedule schedule = Schedule::mma_sync;  ///< wgmma or mma_sync
  std::int32_t block_m = 128;              ///< rows of the gradient per tile
  std::int32_t block_n = 128;              ///< columns of the gradient per tile
  std::int32_t stages = 3;                 ///< pipeline depth: of 64 routed rows (mma_sync: 32)
  /// wgmma: rows of x and dout are gathered on the way, or read from copies in expert order. mma_sync
  /// gathers.
  GatherMode gather = GatherMode::fused;
  bool operator==(const GradientConfig&) const = default;
};

/// Configs of the four products of a backward pass. Where a gradient reads copies of rows, dh.gather is copy.
struct BackwardConfig {
  GemmConfig dh;                ///< g = dout·W2: an fc1 whose up-projection is W2
  GemmConfig dx;                ///< dz·W1: an fc2 whose K is gate's columns, then up's
  GradientConfig fc1_gradient;  ///< dW1
  GradientConfig fc2_gradient;  ///< dW2
  bool operator==(const BackwardConfig&) const = default;
};

/// "schedule=wgmma,block_m=128,block_n=256,stages=4,gather=fused": the grammar of VARMOE_DW1_CONFIG.
VARMOE_API std::string to_string(const GradientConfig& config);

}  // namespace varmoe
