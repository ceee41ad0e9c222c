#pragma once

#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/slots.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// One tile of fc1 or fc2, as a forward and the building blocks compute it.
namespace varmoe::cpu {

/// What a tile needs to itself: the product's panels and two tiles of results (gate and up), in floats.
inline constexpr std::size_t kTileScratch = kProductScratch + 2 * std::size_t{kTileRows} * kTileOutputs;

/// Whether gate and up alternate within a stored row (interleaved kn).
inline bool gate_and_up_joint(const LayerSpec& spec) {
  return spec.gated() && spec.fc1_layout == WeightLayout::kn && spec.gate_order == GateOrder::interleaved;
}

/// fp32 sums of a tile of fc1 with their biases: output i of row m at m·kTileOutputs + i·step. They lie in
/// the scratch; an ungated layer's are `up`.
struct UpSums {
  float *gate, *up;
  std::int64_t step;
};

/// The sums before weights and biases. `rows`: of x, one pointer per row of the tile. `scratch`: kTileScratch
/// floats.
UpSums up_products(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& expert,
                   const Tile& tile, const std::uint16_t* const* rows, float* scratch) noexcept;

/// Multiplies each row's sums by its weight (`weights` null: by none), then adds biases of a layer with them.
void weigh_and_bias(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& expert,
                    const Tile& tile, const float* weights, const UpSums& sums) noexcept;

/// Both: what the activation is applied to.
UpSums up_sums(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& expert, const Tile& tile,
               const std::uint16_t* const* rows, const float* weights, float* scratch) noexcept;

/// The activation of row m of the tile's sums, rounded.
void store_h(const LayerSpec& spec, const Kernels& kernels, const Tile& tile, const UpSums& sums, int m,
             std::uint16_t* h) noexcept;

/// fp32 sums of a tile of fc2 with their biases: output i of row m at m·kTileOutputs + i.
float* down_sums(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& expert, const Tile& tile,
                 std::int64_t width, const std::uint16_t* const* rows, float* scratch) noexcept;

}  // namespace varmoe::cpu
