#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/backward_config.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"

/// Tuning records: what was measured best for a layer, a device and a token bucket. Field names are those of
/// AITER's tuned_fmoe.csv where the meaning is the same; tuning_db/README.md describes the files that hold
/// records.
namespace varmoe {

/// The GPU of a record. An arch alone fixes no number of SMs, and a number of SMs no bandwidth: all three
/// count.
struct TuningDevice {
  std::string arch;         ///< what kernels are compiled for, e.g. "sm_90a"
  std::int32_t cu_num = 0;  ///< SMs
  std::string name;         ///< what the driver calls the board, e.g. "NVIDIA H200"
  bool operator==(const TuningDevice&) const = default;
};

/// Which pass of a layer a record is of.
enum class TuningPass : std::uint8_t {
  forward,   ///< a Layer's, and the forward of a TrainingLayer
  backward,  ///< a TrainingLayer's
};

/// How weights and activations are quantised. No other way is known yet.
enum class QuantType : std::uint8_t { none };

/// What a record is for. Made by make_tuning_key from a layer, in canonical form: what the layer's
/// computation does not read (the gate order of an ungated layer, parameters of an activation without any)
/// has its default, so that equal computations have equal keys; the order of experts does not enter.
struct TuningKey {
  TuningDevice device;
  std::int64_t token = 0;             ///< token bucket: a power of two
  std::int64_t model_dim = 0;         ///< H
  std::vector<WidthClass> inter_dim;  ///< widths of the experts, ascending, with how many have each
  std::int64_t expert = 0;            ///< E, the sum of the counts
  std::int64_t topk = 0;
  Activation act_type = Activation::silu_mul;
  ActivationParams act_params;  ///< where the activation reads any
  DType dtype = DType::bf16;
  DType q_dtype_a = DType::bf16, q_dtype_w = DType::bf16;  ///< of activations and weights: dtype, unquantised
  QuantType q_type = QuantType::none;
  bool use_g1u1 = true;  ///< gated: fc1 has gate and up
  bool doweight_stage1 =
      false;  ///< LayerSpec::weight_on_input: fc1 applies the routing weights, not the combine
  WeightLayout fc1_layout = WeightLayout::nk, fc2_layout = WeightLayout::nk;
  GateOrder gate_order = GateOrder::gate_first;
  bool bias = false;  ///< LayerSpec::bias
  bool batch_invariant = false;
  std::vector<WidthClass>
      shared_inter_dim;  ///< of the shared experts; `inter_dim` and `expert` are the routed ones'
  bool shared_gate = false;
  TuningPass pass = TuningPass::forward;
  GradientType gradient_type = GradientType::layer_dtype;  ///< of a backward pass

  bool operator==(const TuningKey&) const = default;
};

/// The key of a layer on a device, for a token count: it is rounded up to its bucket.
VARMOE_API TuningKey make_tuning_key(const LayerSpec& spec, const TuningDevice& device, std::int64_t tokens);
/// The key of its backward pass with gradients of weights of this type. Whether forward keeps z, and whether
/// gradients are added to what is there, is no part of it: the kernels of the four products are the same.
VARMOE_API TuningKey make_backward_tuning_key(const LayerSpec& spec, const TuningDevice& device,
                                              std::int64_t tokens, GradientType gradient_type);
/// A layer that the key stands for, its experts by ascending width. make_tuning_key of it, or of a backward
/// pass make_backward_tuning_key, gives the key again.
VARMOE_API LayerSpec layer_spec_of(const TuningKey& key);
/// Every field in range and canonical; invalid_argument names the field, its value and what is allowed.
VARMOE_API Status validate(const TuningKey& key);
/// One line for people: `sm_90a, 132 SMs, NVIDIA H200; 64 tokens; hidden=… experts=… top_k=… widths=…`; of a
/// backward pass with `; backward, bf16 gradients` at its end.
VARMOE_API std::string to_string(const TuningKey& key);

/// Performance epochs of the kernels that were measured: a kernel family's epoch is raised by hand when its
/// speed may have changed. fc1 and fc2 count those of the family that their schedule belongs to.
struct TuningEpochs {
  std::int32_t sort = 1, gather = 1, combine = 1, fc1 = 1, fc2 = 1, one_launch = 1;
  /// Of a backward pass. dh counts fc1's families and dx fc2's: they are these kernels.
  std::int32_t dh = 1, dx = 1, fc1_gradient = 1, fc2_gradient = 1;
  bool operator==(const TuningEpochs&) const = default;
};

/// Figures of the four products of a backward pass.
struct BackwardFigures {
  double us_dh = 0, us_dx = 0, us_fc1_gradient = 0, us_fc2_gradient = 0;  ///< time of each, in µs
  /// Share (0 … 1) of the compared elements of dtopk_weights, dx, dW1, dW2 beyond the tolerance.
  double err_dh = 0, err_dx = 0, err_fc1_gradient = 0, err_fc2_gradient = 0;
  bool operator==(const BackwardFigures&) const = default;
};

/// One measured winner. A figure of 0 was not measured.
struct TuningRecord {
  TuningKey key;
  LayerConfig config;       ///< of a forward
  BackwardConfig backward;  ///< of a backward pass, and its figures
  BackwardFigures of_products;

  // us1, us2, err1 and err2 are a forward's; what follows them is of the pass that the key names.
  double us1 = 0, us2 = 0;  ///< time of fc1, of fc2, in µs
  double err1 = 0,
         err2 =
             0;  ///< share (0 … 1) of the elements of h, of out, beyond the tolerance against the reference
  double us = 0;           ///< time of a whole pass, in µs; above 0
  double tflops = 0;       ///< TFLOP/s of the pass
  double bw = 0;           ///< GB/s of the pass: bytes that it must move at least, over its time
  double baseline_us = 0;  ///< time in µs of the config that the cost model predicts, in the same session
  double spread = 0;       ///< (slowest − fastest) / median of the winner's timings
  bool verified = false;   ///< compared with a reference on skewed routing, and right

  // Validators: whether the figures still hold.
  TuningEpochs epochs;
  std::int32_t config_space = 0;  ///< version of the config space; 0: unknown, so never fresh

  // Provenance, for people; decides nothing but which of two records is newer (date). Empty or 0: unknown.
  std::string library;                ///< version of varmoe
  std::string kernel_digest;          ///< of the kernels measured, lower-case hex digits
  std::string nvrtc;                  ///< "13.0.88"
  std::string driver;                 ///< "580.82.07"
  std::string date;                   ///< UTC, "2026-11-21T15:04:05Z"
  std::int32_t sm_clock_mhz = 0;      ///< under load
  std::int32_t memory_clock_mhz = 0;  ///< under load
  std::int32_t candidates = 0;        ///< configs tried

  bool operator==(const TuningRecord&) const = default;
};

/// How well an answer fits the question, best first. Where a record differs in several ways, the worst of
/// them counts.
enum class MatchQuality : std::uint8_t {
  exact,              ///< the same layer, device and bucket, measured with kernels of today's speed
  near_bucket,        ///< a bucket half or twice as large
  near_widths,        ///< the same set of widths and the same E, other experts per width
  stale_epoch,        ///< measured with kernels, or a config space, of another epoch
  same_device_class,  ///< another board with this arch and number of SMs
  same_arch,          ///< a GPU of this arch with another number of SMs
  predicted,          ///< no record: the cost model's
};

VARMOE_API const char* to_string(MatchQuality) noexcept;
VARMOE_API const char* to_string(QuantType) noexcept;
VARMOE_API const char* to_string(TuningPass) noexcept;

}  // namespace varmoe
