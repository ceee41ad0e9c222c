#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config_space.hpp"
#include "model/device_profile.hpp"
#include "varmoe/backward_config.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// Configs of the weights' gradients: per expert a product whose summed dimension is its rows.
namespace varmoe::model {

using varmoe::GradientConfig;
using varmoe::to_string;

/// The base with the keys of `text` replaced, in the grammar of to_string; invalid_config names key, value
/// and choices.
Result<GradientConfig> parse_gradient_config(std::string_view text, const GradientConfig& base);

/// Reads copies of x or dout in expert order.
constexpr bool reads_copies(const GradientConfig& config) {
  return config.schedule == Schedule::wgmma && config.gather == GatherMode::copy;
}

/// Elements of the largest tile of the space.
inline constexpr std::int64_t kMostGradientTile = std::int64_t{128} * 256;

std::int32_t gradient_threads(const GradientConfig& config);
std::int64_t gradient_smem_bytes(const GradientConfig& config);

/// Which dimension of the gradient is fc1's or fc2's input's: of fc1's [2I, H] (nk) H is that of columns, of
/// fc2's [H, I] that of rows.
bool gradient_rows_are_hidden(const LayerSpec& spec, GemmStage stage);
/// Output tiles of one expert of this width.
std::int64_t gradient_tiles(const LayerSpec& spec, GemmStage stage, const GradientConfig& config,
                            std::int64_t width);
/// Gate and up of fc1 alternate in one matrix.
bool gate_and_up_alternate(const LayerSpec& spec);

/// fc1's config where it keeps z: a second and third store of the accumulators take registers, which portable
/// tiles that fill an SM have not.
GemmConfig saving_config(GemmConfig config);

/// Accumulators of a thread that leave dout·W2's epilogue without spills, by wgmma: z is in registers beside
/// them.
inline constexpr std::int64_t kMaxWgmmaBackwardAccumulators = 128;
/// check_gemm_config of fc1 of a backward_layer: with fewer accumulators by wgmma, and as saving_config makes
/// it by mma_sync.
Status check_dh_config(const LayerSpec& back, const GemmConfig& config, const DeviceProfile& device);
/// What of it no device decides beside the shape.
Status check_dh_accumulators(const GemmConfig& config);

/// How dout·W2 leaves each row's ⟨g, h⟩: a sum over each span of columns, those of one warp (mma_sync) or
/// warpgroup.
struct PartialSums {
  std::int64_t span = 0;    ///< columns
  std::int64_t of_row = 0;  ///< at the widest expert
};
PartialSums partial_sums(const GemmConfig& dh, std::int64_t max_width);
/// PartialSums::of_row of the config with most: the narrowest warps have 16 columns.
constexpr std::int64_t most_partials(std::int64_t max_width) {
  return (max_width + 15) / 16;
}

/// The cost model's configs of a backward pass's products with weights: fc1 of backward_layer, fc2 of
/// backward_down_layer.
LayerConfig predict_backward_config(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device);

/// The cost model's choice of all four products, which go together.
BackwardConfig predict_products(const LayerSpec& spec, std::int64_t tokens, const DeviceProfile& device);
/// dout·W2 reads the copy of dout where a gradient reads copies.
BackwardConfig with_copies(BackwardConfig config);
/// Whether the four exist for the layer and go together on this device: invalid_config names the product, its
/// value and what is allowed; unsupported for a layer without a backward pass. `spec` is valid.
Status check_backward_config(const LayerSpec& spec, const BackwardConfig& config,
                             const DeviceProfile& device);

/// What of check_backward_config does not depend on a device.
Status check_backward_shape(const LayerSpec& spec, const BackwardConfig& config);

/// Every config of the space that this device runs.
std::vector<GradientConfig> gradient_configs(const DeviceProfile& device);
/// invalid_config unless it is one of them; the message has the choices.
Status check_gradient_config(const GradientConfig& config, const DeviceProfile& device);
/// What orders the configs of a weight's gradient, in time of an arbitrary unit; with what gathering on the
/// way and slower main loops cost.
double predict_gradient_cost(const LayerSpec& spec, GemmStage stage, const GradientConfig& config,
                             const DeviceProfile& device);
/// The cost model's choice: fewest computed elements, waves counted.
GradientConfig predict_gradient_config(const LayerSpec& spec, GemmStage stage, const DeviceProfile& device);

}  // namespace varmoe::model
