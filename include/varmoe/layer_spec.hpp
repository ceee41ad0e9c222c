#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/error.hpp"

/// What a Mixture-of-Experts layer is: everything that is fixed when the layer is created; no pointers.
///
/// Words: T tokens, H hidden size, E experts, k = top_k, I_e width (intermediate size) of expert e,
/// S shared experts, which every token visits; R = T*(k + S) rows. fc1 is the up (and gate) projection with its activation,
/// fc2 the down projection.
namespace varmoe {

/// Element type of x, of the weights, of the intermediate h and of out. Accumulation is always fp32.
enum class DType : std::uint8_t { bf16, fp16 };

/// The function between fc1 and fc2, applied in fp32. The *_mul and swiglu_oai forms are gated: fc1 has 2*I rows.
enum class Activation : std::uint8_t {
  silu_mul,       ///< silu(gate) * up
  gelu_tanh_mul,  ///< gelu(gate) * up, tanh approximation
  gelu_erf_mul,   ///< gelu(gate) * up, exact
  swiglu_oai,     ///< gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit); g * sigmoid(alpha*g) * (u + 1)
  silu,
  gelu_tanh,
  gelu_erf,
  relu,
  relu2,          ///< max(x, 0)^2
  identity,
};

/// How a weight matrix lies in memory: which of its dimensions is contiguous.
enum class WeightLayout : std::uint8_t {
  nk,  ///< output rows, K contiguous: fc1 [2I, H], fc2 [H, I] (most Hugging Face models, vLLM)
  kn,  ///< K rows, outputs contiguous: fc1 [H, 2I], fc2 [I, H] (Llama-4, gpt-oss)
};

/// Which half of fc1's outputs is the gate. Ignored when the activation is not gated.
enum class GateOrder : std::uint8_t {
  gate_first,   ///< [gate; up]
  up_first,     ///< [up; gate]
  interleaved,  ///< gate 0, up 0, gate 1, up 1, … (gpt-oss)
};

/// Parameters of the activations that have any.
struct ActivationParams {
  float alpha = 1.702f;  ///< swiglu_oai
  float limit = 7.0f;    ///< swiglu_oai; > 0
  bool operator==(const ActivationParams&) const = default;
};

/// One row of the table of activations.
struct ActivationInfo {
  Activation activation;
  const char* name;         ///< as in layer files and on the command line
  bool gated;               ///< fc1 has gate and up
  bool keeps_zero;          ///< f(0) = 0 (gated: f(0, 0) = 0), so that zero columns pad a width exactly
  bool uses_params;         ///< reads ActivationParams
};

/// The row of an activation. Total: every enumerator has one.
VARMOE_API const ActivationInfo& activation_info(Activation activation) noexcept;

/// Limits that `validate` enforces.
inline constexpr std::int64_t kMaxExperts = 1024;
inline constexpr std::int64_t kMaxTopK = 32;
inline constexpr std::int64_t kMaxSharedExperts = 16;
inline constexpr std::int64_t kMaxWidth = 1 << 20;
inline constexpr std::int64_t kMaxHidden = 1 << 20;
inline constexpr std::int64_t kMinHidden = 64;
/// Widths and the hidden size are multiples of this (16-byte rows); `packed_width` rounds up to it.
inline constexpr std::int64_t kWidthMultiple = 8;
/// A layer with more distinct widths than this uses the runtime-width kernels.
inline constexpr std::size_t kMaxWidthClasses = 16;

struct LayerSpec {
  std::int64_t hidden_size = 0;            ///< H; multiple of 8, at least 64
  std::vector<std::int64_t> expert_widths; ///< I_e, one per expert; multiples of 8, at least 8
  std::int64_t top_k = 0;                  ///< k; 1 … 32; may exceed E (a token may name one expert twice)
  Activation activation = Activation::silu_mul;
  ActivationParams activation_params;
  DType dtype = DType::bf16;
  WeightLayout fc1_layout = WeightLayout::nk;
  WeightLayout fc2_layout = WeightLayout::nk;
  GateOrder gate_order = GateOrder::gate_first;
  bool batch_invariant = false;            ///< a token's output bits do not depend on its neighbours
  /// Widths of the S shared experts (0 … 16), multiples of 8, at least 8: experts that every token visits beside its k routed
  /// ones, with weight 1. `topk_ids` never names them; activation, layouts and gate order are the layer's.
  std::vector<std::int64_t> shared_widths;
  /// Each token's shared output is multiplied by sigmoid(x·w_g), w_g [H] of the layer's dtype: one gate for all shared experts
  /// (Qwen2-MoE).
  bool shared_gate = false;
  /// fc1 and fc2 add a bias of the layer's dtype: fc1's [2I_e] (ungated [I_e]) in the gate order, before the activation; fc2's
  /// [H], before y is rounded. Both or neither, as in every model that has any; zeroes stand for the one that is missing.
  bool bias = false;
  /// The routing weight multiplies the expert's input instead of its output (Llama-4): fc1's fp32 sums are multiplied by it, before
  /// the bias. A module that rounds x·w to its dtype first differs by that rounding.
  bool weight_on_input = false;

  /// E: routed experts, those that `topk_ids` may name.
  std::int64_t num_experts() const noexcept { return static_cast<std::int64_t>(expert_widths.size()); }
  /// S.
  std::int64_t num_shared() const noexcept { return static_cast<std::int64_t>(shared_widths.size()); }
  /// E + S. Where experts of both kinds are numbered together, the shared ones follow the routed ones.
  std::int64_t all_experts() const noexcept { return num_experts() + num_shared(); }
  /// k + S: rows that a token makes. Its first k slots are those of topk_ids.
  std::int64_t slots_per_token() const noexcept { return top_k + num_shared(); }
  bool gated() const noexcept { return activation_info(activation).gated; }
  /// The width of expert e of all E + S.
  std::int64_t width_of(std::int64_t e) const noexcept {
    return e < num_experts() ? expert_widths[static_cast<std::size_t>(e)]
                             : shared_widths[static_cast<std::size_t>(e - num_experts())];
  }
  /// The widest routed expert; 0 without experts.
  VARMOE_API std::int64_t max_width() const noexcept;
  /// The widest of all E + S experts.
  VARMOE_API std::int64_t widest_of_all() const noexcept;
  /// Σ I_e of the routed experts.
  VARMOE_API std::int64_t total_width() const noexcept;

  /// Every field in range; the error names field, value and what is allowed.
  VARMOE_API Status validate() const;

  bool operator==(const LayerSpec&) const = default;
};

/// One distinct expert width and how many experts have it.
struct WidthClass {
  std::int64_t width;
  std::int64_t count;
  bool operator==(const WidthClass&) const = default;
};

/// The distinct widths of all E + S experts, ascending. Order of experts does not enter.
VARMOE_API std::vector<WidthClass> width_classes(const LayerSpec& spec);
/// The distinct ones of these widths, ascending.
VARMOE_API std::vector<WidthClass> classes_of_widths(std::vector<std::int64_t> widths);

/// Canonical text of what keys kernels: H, E, k, class set of all experts (widths, not counts; "runtime" beyond kMaxWidthClasses),
/// activation and its parameters, dtype, layouts, gate order, batch_invariant; bias and weight_on_input where they are set; of a layer with shared experts their number and
/// whether there is a shared gate. What a layer ignores (the gate order of an ungated one, unused parameters) does not enter.
/// Two layers with equal signatures share kernels however their experts are arranged.
VARMOE_API std::string kernel_signature(const LayerSpec& spec);

/// Canonical text of what keys tuning records: as kernel_signature, with every width and its count, the routed experts' and the
/// shared ones' apart.
VARMOE_API std::string tuning_signature(const LayerSpec& spec);

/// A spec with `num_experts` experts of one width. Out-of-range arguments give a spec that `validate` refuses.
VARMOE_API LayerSpec uniform_spec(std::int64_t hidden_size, std::int64_t num_experts, std::int64_t width,
                                  std::int64_t top_k, Activation activation = Activation::silu_mul,
                                  DType dtype = DType::bf16);

VARMOE_API const char* to_string(DType) noexcept;
VARMOE_API const char* to_string(Activation) noexcept;
VARMOE_API const char* to_string(WeightLayout) noexcept;
VARMOE_API const char* to_string(GateOrder) noexcept;
VARMOE_API Result<DType> parse_dtype(std::string_view);
VARMOE_API Result<Activation> parse_activation(std::string_view);
VARMOE_API Result<WeightLayout> parse_weight_layout(std::string_view);
VARMOE_API Result<GateOrder> parse_gate_order(std::string_view);

}  // namespace varmoe
