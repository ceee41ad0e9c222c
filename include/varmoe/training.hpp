#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/backward_config.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// A layer that learns: create → prepare → bind, bind_gradients → forward, backward.
///
/// Of row r, the visit of token t to expert e with weight w_r: z_r = W1·x_t + b1 (gate and up of a gated layer), h_r = activation(z_r),
/// y_r = W2·h_r + b2, out_t = Σ w_r·y_r. Given dout = ∂loss/∂out, backward gives, with g_r = W2ᵀ·dout_t:
///
/// - dw_r = ⟨g_r, h_r⟩ + ⟨b2, dout_t⟩, the gradients of topk_weights;
/// - dz_r = w_r · g_r ∘ activation'(z_r);
/// - dx_t = Σ W1ᵀ·dz_r over the token's rows, in ascending slot;
/// - dW1 = Σ dz_r ⊗ x_t, dW2 = Σ dout_t ⊗ w_r·h_r, db1 = Σ dz_r, db2 = Σ w_r·dout_t over the expert's rows.
///
/// With weight_on_input z_r = w_r·(W1·x_t) + b1 and routed rows are summed as they are: dw_r = ⟨dz_r, W1·x_t⟩ of dz_r = g_r ∘ activation'(z_r), and
/// dx_t = Σ w_r·W1ᵀ·dz_r, dW1 = Σ w_r·dz_r ⊗ x_t, dW2 = Σ dout_t ⊗ h_r, db1 = Σ dz_r, db2 = Σ dout_t. A weight may be 0.
///
/// A shared expert's rows weigh 1, or σ(x_t·w_g) with a shared gate: then s_t = σ(1 − σ)·Σ dw_r over the token's shared rows,
/// dw_g = Σ s_t·x_t, and dx_t has s_t·w_g in it.
///
/// Rounding: z and g to the layer's dtype where they are stored, dz and w·h likewise; every sum is fp32. At the kinks of relu, relu2 and of
/// swiglu_oai's clamps the derivative is 0. An expert without rows gets gradients of exactly zero (with accumulation: its gradients stay as they are).
/// Sums have one order: the same inputs give the same bits.
namespace varmoe {

struct TrainingOptions {
  /// forward keeps z in `saved`. Otherwise backward computes it again from x: a third of a forward more, and saved_bytes is 0.
  bool save_preactivation = true;
  GradientType gradient_type = GradientType::layer_dtype;
  /// As LayerOptions::max_sms.
  int max_sms = 0;
};

/// Arguments of one backward. Pointers are device pointers on a GPU engine, host pointers on the CPU engine. What forward had too is
/// what forward was given, unchanged; ForwardArgs says more of it.
struct BackwardArgs {
  std::int64_t tokens = 0;             ///< T; 0 is allowed: weight gradients without accumulation become zero
  const void* x = nullptr;             ///< [T, H]
  std::int64_t x_stride = 0;           ///< elements between rows; 0: H; multiple of 8
  const void* topk_ids = nullptr;      ///< [T, k]
  IdType id_type = IdType::int32;
  const float* topk_weights = nullptr; ///< [T, k]
  const std::int32_t* token_count = nullptr;  ///< rows of dx and dtopk_weights at and beyond it are not written
  const std::int32_t* expert_map = nullptr;
  std::int64_t num_global_experts = 0;

  const void* dout = nullptr;          ///< [T, H], spec dtype, 16-byte aligned
  std::int64_t dout_stride = 0;        ///< elements between rows; 0: H; multiple of 8
  const void* saved = nullptr;         ///< what forward wrote; null when saved_bytes(tokens) is 0
  std::size_t saved_bytes = 0;

  void* dx = nullptr;                  ///< [T, H], spec dtype, 16-byte aligned; null: not computed. Overlaps no input
  std::int64_t dx_stride = 0;          ///< elements between rows; 0: H; multiple of 8
  float* dtopk_weights = nullptr;      ///< [T, k] contiguous; 0 for slots without a row; null: not computed
  bool weight_gradients = true;        ///< what bind_gradients named is computed
  bool accumulate_weight_gradients = false;  ///< added to what is there (gradient accumulation) instead of written
  bool accumulate_dx = false;          ///< dx += instead of dx =

  void* workspace = nullptr;           ///< 256-byte aligned; needs no initial contents
  std::size_t workspace_bytes = 0;     ///< ≥ TrainingLayer::workspace_bytes(tokens)
  void* stream = nullptr;              ///< CUstream / cudaStream_t; null: the legacy default stream. CPU: ignored
};

/// A layer on an engine with its backward pass. Thread-safe as Layer is. All tokens go in one piece.
class VARMOE_API TrainingLayer {
 public:
  TrainingLayer(TrainingLayer&&) noexcept;
  TrainingLayer& operator=(TrainingLayer&&) noexcept;
  ~TrainingLayer();

  const LayerSpec& spec() const noexcept;
  const TrainingOptions& options() const noexcept;

  /// As Layer::prepare, of forward and backward. Configs of the backward's four products come from its tuning
  /// records, which are apart from the forward's; KernelReport::config_source says so of each kernel.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});

  /// As Layer::bind.
  Status bind(const Weights& weights);
  /// Where the gradients go: pointers, strides and layouts as of the weights, which they need not share (each expert's matrices have the
  /// weights' shapes); written by backward. Elements are of TrainingOptions::gradient_type (fp32: element_bytes = 4
  /// of the functions that make Weights); strides count elements. Biases and the shared gate where the
  /// layer has them. May be repeated as `bind` may. Experts' gradients must not overlap.
  Status bind_gradients(const Weights& gradients);

  /// Bytes that forward keeps for backward, of `tokens` tokens: [T·(k + S)] rows of z, each of gate and up rounded up to 64
  /// columns of the widest expert; 0 without save_preactivation.
  Result<std::size_t> saved_bytes(std::int64_t tokens) const;
  /// Bytes of workspace that forward and backward of `tokens` tokens need (the greater of the two); monotonic.
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;

  /// Layer::forward, and keeps what backward needs in `saved` ([saved_bytes(args.tokens)], 256-byte aligned; the caller's, until backward has
  /// run; must not overlap anything of args). Not `args.absent_tokens` = untouched.
  Status forward(const ForwardArgs& args, void* saved, std::size_t saved_bytes) noexcept;

  /// Enqueues the backward pass on args.stream, by forward's rules: prepared, it neither allocates nor synchronises, and can be captured.
  Status backward(const BackwardArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit TrainingLayer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
