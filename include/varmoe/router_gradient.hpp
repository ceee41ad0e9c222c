#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router_spec.hpp"
#include "varmoe/router_statistics.hpp"

/// A router's backward pass: create → prepare → compute, and product.
///
/// compute: from g = ∂loss/∂topk_weights [T, k] and the coefficients c of RouterStatistics' losses to ∂loss/∂logits [T, E], the loss being what
/// depends on topk_weights + Σ c_i·losses[i]. With s a token's scores, p its softmax over all experts, w_j the weight of slot j before the scaling factor σ, and
/// d_j = σ·g_j·w_j, or (renormalised) w_j·(σ·g_j − Σ_i σ·g_i·w_i):
///
/// - softmax over all experts: dl_e = Σ_{j names e} d_j − p_e·Σ_j d_j; over those chosen alone: the same with the softmax over those, nothing for others;
/// - sigmoid: dl_e = Σ_{j names e} d_j·(1 − s_e);
/// - z: dl_e += c_z·2/T·log(Σ exp l_i)·p_e, whatever the scoring;
/// - the other losses, which depend on logits through P_e alone: with V_e = ∂(Σ c_i·losses[i])/∂P_e, u_e = s_e/Σ s_i and V̄ = Σ u_i·V_i:
///   softmax dl_e += u_e·(V_e − V̄)/T, sigmoid dl_e += u_e·(1 − s_e)·(V_e − V̄)/T.
///
/// Which experts were chosen is a constant, and so are the shares f_e of slots: correction bias and groups have no gradient. NaN logits have a gradient of 0, and where
/// the router or RouterStatistics divides by 0 and gives 0 (no logit above −∞, a sum of scores and epsilon of 0, a group of widths with P_g = 0), nothing flows.
/// A token with an infinite log Σ exp adds nothing to z's gradient; a group of widths with P_g below 2^-100 adds none to group_balance's.
///
/// product: from ∂loss/∂logits to dx = dlogits·Wᵣ, dWᵣ = dlogitsᵀ·x and the gradient of the logit bias, for a router with hidden_size: products and sums in fp32 (an fp32 operand
/// is two tf32 numbers on the GPU, so that a product is off by 2^-22 of it at most).
///
/// Everything is fp32 inside. Sums have one order: the same inputs give the same bits.
namespace varmoe {

struct RouterGradientSpec {
  RouterSpec router;  ///< that made topk_ids and topk_weights
  /// Losses that may have a coefficient: bit 1 << RouterLoss.
  std::uint32_t losses = 0;
  LogitType dlogit_type = LogitType::fp32;   ///< of dlogits: fp32 or router.logit_type
  LogitType dweight_type = LogitType::fp32;  ///< of dWᵣ

  VARMOE_API Status validate() const;

  bool operator==(const RouterGradientSpec&) const = default;
};

/// The bit of a loss in RouterGradientSpec::losses.
constexpr std::uint32_t loss_bit(RouterLoss loss) noexcept {
  return std::uint32_t{1} << static_cast<unsigned>(loss);
}

/// Arguments of one compute. Device pointers on a GPU engine, host pointers on the CPU engine. Outputs must not overlap inputs.
struct RouterGradientArgs {
  std::int64_t tokens = 0;                ///< T; T·k at most 2³¹ − 1; 0 is allowed and does nothing
  const void* logits = nullptr;           ///< [T, E], router.logit_type, as the router had them (logits_out of one with hidden_size)
  std::int64_t logit_stride = 0;          ///< elements between rows; 0: E
  /// [T, k] contiguous, as the router wrote them. A slot with an id of −1 or ≥ E has no gradient and no share in sums over the chosen.
  const void* topk_ids = nullptr;         ///< required with dtopk_weights
  IdType id_type = IdType::int32;
  const float* dtopk_weights = nullptr;   ///< [T, k] contiguous; null: the losses' gradients alone
  void* dlogits = nullptr;                ///< [T, E], spec.dlogit_type, aligned to its element; written
  std::int64_t dlogit_stride = 0;         ///< elements between rows; 0: E

  float coefficients[kRouterLosses] = {}; ///< ∂loss/∂losses[i] in RouterLoss's order; finite; 0: does not take part
  /// Tokens that the losses are means over, where other devices' count too (tokens_per_expert and mean_scores are then of all of them).
  std::int64_t loss_tokens = 0;           ///< 0: T, or what token_count says
  const std::int32_t* tokens_per_expert = nullptr;  ///< [E], of RouterStatistics; required by every loss but z
  const float* mean_scores = nullptr;               ///< [E], of RouterStatistics; required by group_balance
  const std::int32_t* expert_widths = nullptr;      ///< [E], each at least 1; null: all equal

  /// Optional device-side token count n ≤ T: rows at and beyond n are neither read nor written.
  const std::int32_t* token_count = nullptr;
  void* workspace = nullptr;       ///< 16-byte aligned; null where 0 bytes are needed
  std::size_t workspace_bytes = 0; ///< ≥ RouterGradient::workspace_bytes(tokens)
  void* stream = nullptr;          ///< as RouteArgs
};

/// Arguments of one product. Pointers as above; outputs that are null are not computed.
struct RouterProductGradientArgs {
  std::int64_t tokens = 0;           ///< T; 0 is allowed: dweight and dlogit_bias without accumulation become zero
  const float* dlogits = nullptr;    ///< [T, E], fp32
  std::int64_t dlogit_stride = 0;    ///< elements between rows; 0: E
  const void* x = nullptr;           ///< [T, H], router.input_type, 16-byte aligned; required with dweight
  std::int64_t x_stride = 0;         ///< elements between rows; 0: H; multiple of 8; as the three below
  const void* weight = nullptr;      ///< Wᵣ [E, H], router.weight_type, 16-byte aligned; required with dx
  std::int64_t weight_stride = 0;
  void* dx = nullptr;                ///< [T, H], router.input_type, 16-byte aligned
  std::int64_t dx_stride = 0;
  void* dweight = nullptr;           ///< [E, H], spec.dweight_type, 16-byte aligned
  std::int64_t dweight_stride = 0;
  float* dlogit_bias = nullptr;      ///< [E]; of a router with logit_bias, else null
  bool accumulate_dx = false;        ///< dx += instead of dx =: after TrainingLayer::backward has written it
  bool accumulate_weight = false;    ///< the same of dweight and dlogit_bias (gradient accumulation)
  /// Optional device-side token count n ≤ T: rows of dx at and beyond n are not written, those of dlogits and x not read.
  const std::int32_t* token_count = nullptr;
  void* stream = nullptr;
};

/// A router's gradient on an engine. Thread-safe; may outlive the Engine object.
class VARMOE_API RouterGradient {
 public:
  RouterGradient(RouterGradient&&) noexcept;
  RouterGradient& operator=(RouterGradient&&) noexcept;
  ~RouterGradient();

  const RouterGradientSpec& spec() const noexcept;

  /// As Router::prepare; its kernels serve every number of tokens.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});
  /// Of compute, for up to `tokens` tokens. 0 without a loss other than z, and on the CPU.
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;
  /// As Router::route; one launch, two where a loss other than z has a coefficient.
  Status compute(const RouterGradientArgs& args) noexcept;
  /// As compute; one launch for dx, one for dweight and dlogit_bias. `unsupported` of a router without hidden_size.
  Status product(const RouterProductGradientArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit RouterGradient(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
