#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/kernel_artifact.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// Spec + config → CUDA source text. Takes integers, booleans, enumerators and floats (as bit patterns)
/// alone: no string from outside reaches source, options or comments.
namespace varmoe::emit {

/// What a kernel does: the stages of a layer's forward, and after them what is an operation of its own
/// (emit/routing.hpp).
enum class Stage : std::uint8_t {
  sort_single,   ///< one block sorts all routed rows
  sort_count,    ///< first of two launches: per-block histograms
  sort_scatter,  ///< second of two launches: offsets, row index, tile lists
  gather,        ///< copies rows of x into expert order (GatherMode::copy)
  fc1,
  fc2,
  combine,
  whole_layer,    ///< all of it, for few tokens
  route,          ///< logits → topk_ids, topk_weights
  align_single,   ///< moe_align_block_size in one launch
  align_count,    ///< first of two launches
  align_scatter,  ///< second of two launches
  router_gemv,    ///< x → logits, for few tokens
  router_gemm,    ///< x → logits, for many
  /// First of two launches: sums over each block's tokens.
  statistics_blocks,
  /// Second of two launches: sums over blocks, losses.
  statistics_total,
  topk_weight_gradient,  ///< the gradients of topk_weights from what dout·W2 left (emit/training.hpp)
  gradient_schedule,     ///< the order of the weights' gradients
  fc1_gradient,          ///< dW1
  fc2_gradient,          ///< dW2
  fc1_bias_gradient,
  fc2_bias_gradient,
  shared_gate_gradient,
  router_loss_terms,    ///< what the losses of mean scores mean to each expert
  router_dlogits,       ///< gradients of topk_weights and losses → logits
  router_dx,            ///< gradient of logits → x
  router_dweight,       ///< gradient of logits → the router's weight and bias
  block_schedule,       ///< tile lists from a caller's segments of rows (emit/blocks.hpp)
  block_gather,         ///< rows of x by a caller's row map
  block_slot_rows,      ///< the inverse of a row map
  combine_gradient,     ///< of combine: rows and weights
  activation_gradient,  ///< of up: dh and z → dz
  row_weight_gradient,  ///< of down: weights of rows
  weigh_rows,           ///< rows times their weights, and what those weights' gradients are
};
/// Of a layer's forward.
inline constexpr std::size_t kStageCount = 8;
const char* to_string(Stage) noexcept;

/// K of fc2. A backward pass multiplies dz, of fc1's outputs, by fc1's weights.
enum class DownK : std::uint8_t {
  width,        ///< the expert's width
  gate_and_up,  ///< the width for each of two matrices, in whole stages of 64
  alternating,  ///< twice the width: gate and up alternate in one matrix
};

/// What fc1 of a backward pass does with its product g = dout·W2: it makes dz and w·h of the layer whose
/// gradient this is, and parts of the weights' gradients.
struct ActivationBackward {
  Activation activation = Activation::identity;  ///< of that layer
  ActivationParams params;
  bool alternating = false;      ///< dz: gate and up alternate in one matrix
  bool shared_gate = false;      ///< that layer's shared experts have a gate
  bool weight_on_input = false;  ///< its weights are of its input: z is kept without them
  bool bias = false;             ///< of weight_on_input: z is kept without fc1's biases
  bool weighs_rows = true;       ///< rows have weights; else each counts once
  bool operator==(const ActivationBackward&) const = default;
};

/// What to emit. Only the fields that concern `stage` are read.
struct KernelRequest {
  Stage stage = Stage::fc1;
  GemmConfig gemm;                 ///< fc1, fc2
  std::int32_t block_threads = 0;  ///< sort_*, gather, combine
  OneLaunchConfig one_launch;      ///< whole_layer
  bool runtime_width = false;      ///< fc1, fc2: widths from the device table instead of compiled in
  bool saves_z = false;            ///< fc1: keeps what the activation is applied to (TrainingLayer, Blocks)
  bool saves_product = false;      ///< and that before weight on input and bias are (TrainingLayer)
  DownK down_k = DownK::width;     ///< fc2
  std::optional<ActivationBackward> backward;  ///< fc1 of model::backward_layer
  bool row_weights = false;                    ///< fc2: multiplies each row by its weight (Blocks::down)
  bool row_gaps = false;  ///< fc1 of runtime width: there may be gaps between experts' rows (Blocks::up)
  bool operator==(const KernelRequest&) const = default;
};

/// A kernel ready to be compiled, and how it is launched.
struct EmittedKernel {
  Stage stage = Stage::fc1;
  std::string entry_name;             ///< varmoe_<stage>_<config>_<16 hex digits of the text's digest>
  std::string text;                   ///< the translation unit
  std::vector<SourceHeader> headers;  ///< exactly those the text reaches
  std::vector<std::string> options;   ///< canonical NVRTC options without the arch, e.g. "--std=c++17"
  std::int32_t block_threads = 0;
  std::int32_t dynamic_smem_bytes = 0;
  std::int32_t ctas_per_sm = 1;  ///< what __launch_bounds__ asked for
};

/// Emits one kernel. Fails on a spec or config that no kernel takes; device limits are config_space's
/// business.
Result<EmittedKernel> emit_kernel(const LayerSpec& spec, const KernelRequest& request);

/// The kernels that one LayerConfig needs for a token bucket: sort_single or the sort pair, gather when fc1
/// copies, fc1, fc2, combine; whole_layer where config.one_launch serves the bucket's tokens or fewer.
/// `sort_single` serves bucket·k ≤ sort.single_block_rows; both kinds are listed where smaller T of the same
/// bucket need it.
std::vector<KernelRequest> required_kernels(const LayerSpec& spec, const LayerConfig& config,
                                            std::int64_t bucket, bool runtime_width);

/// Reads kernels_src/ from `directory` instead of the embedded copy (VARMOE_KERNELS_DIR, development only).
/// Call before the first emit_kernel; empty returns to the embedded copy.
Status use_kernels_dir(const std::string& directory);

}  // namespace varmoe::emit
