#pragma once

#include <cstdint>
#include <vector>

#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// Where a layer's weights lie. Every storage that varmoe supports is, per expert, three base pointers and two strides.
namespace varmoe {

/// One expert's matrices. Pointers are device pointers on a GPU engine, host pointers on the CPU engine; the caller owns
/// them and keeps them valid while the layer is bound. Values may change freely between forwards.
struct ExpertWeights {
  /// Gate matrix, or null when the activation is not gated. With interleaved kn weights: the fc1 matrix itself.
  const void* gate = nullptr;
  /// Up matrix (the only fc1 matrix when not gated). With interleaved kn weights: ignored.
  const void* up = nullptr;
  const void* down = nullptr;
  /// Elements from one stored row to the next. nk: a row is one output (K contiguous); kn: a row is one k (outputs
  /// contiguous). Multiples of 8. For interleaved nk weights this is twice the stored row length.
  std::int64_t fc1_stride = 0;
  std::int64_t fc2_stride = 0;
  /// Biases of a layer that has them, else null: gate and up [I_e], down [H], of the layer's dtype, aligned to their element. The
  /// gate's is null when the activation is not gated.
  const void* gate_bias = nullptr;
  const void* up_bias = nullptr;
  const void* down_bias = nullptr;
  /// Elements from one entry of gate_bias and of up_bias to the next: 1, or 2 where gate and up alternate.
  std::int64_t fc1_bias_stride = 1;
};

/// Weights of all experts, in expert order. `element_bytes` of the functions that derive addresses is 2 (weights, and gradients of the
/// layer's dtype) or 4: gradients of TrainingOptions::gradient_type = fp32; strides count elements, and another size is invalid_argument.
struct Weights {
  std::vector<ExpertWeights> experts;  ///< the E routed ones
  /// The shared ones, in the order of LayerSpec::shared_widths; checkpoints hold them apart. Filled by set_shared_blocks or
  /// set_shared_pointers, or by hand.
  std::vector<ExpertWeights> shared;
  /// w_g of a layer with LayerSpec::shared_gate: H contiguous elements of the layer's dtype, 16-byte aligned; else null.
  const void* shared_gate = nullptr;

  /// Storage "blocks": each expert's matrices contiguous, experts one after another: nk fc1 [Σ 2I_e, H], fc2 blocks [H, I_e];
  /// kn fc1 blocks [H, 2I_e], fc2 [Σ I_e, H]. With equal widths this is the usual [E, 2I, H] / [E, H, I].
  static VARMOE_API Result<Weights> blocks(const LayerSpec& spec, const void* fc1, const void* fc2,
                                           std::int64_t element_bytes = 2);

  /// Storage "padded": as if every expert had width `padded_width` ≥ max I_e; the first I_e rows (columns) of each are valid.
  /// A gated fc1's second half begins at row (column) `padded_width`.
  static VARMOE_API Result<Weights> padded(const LayerSpec& spec, const void* fc1, const void* fc2,
                                           std::int64_t padded_width, std::int64_t element_bytes = 2);

  /// Storage "packed", kn only: gate and up each [H, ΣI], fc2 [ΣI, H]. `gate` is null when not gated.
  static VARMOE_API Result<Weights> packed(const LayerSpec& spec, const void* gate, const void* up, const void* down,
                                           std::int64_t element_bytes = 2);

  /// Storage "packed_joint", kn only: fc1 [H, 2ΣI] with each expert's gate and up columns side by side, fc2 [ΣI, H].
  static VARMOE_API Result<Weights> packed_joint(const LayerSpec& spec, const void* fc1, const void* fc2,
                                                 std::int64_t element_bytes = 2);

  /// Storage "pointers": one fc1 and one fc2 pointer per expert. Strides in elements; 0 means contiguous.
  static VARMOE_API Result<Weights> pointers(const LayerSpec& spec, const std::vector<const void*>& fc1,
                                             const std::vector<const void*>& fc2, std::int64_t fc1_stride = 0,
                                             std::int64_t fc2_stride = 0, std::int64_t element_bytes = 2);

  /// Fills `shared` from contiguous storage: each shared expert's matrices one after another as in `blocks`, with the layer's
  /// layouts and gate order; one shared expert is fc1 [2I, H], fc2 [H, I] (nk). `gate`: see shared_gate. Fails as validate does.
  VARMOE_API Status set_shared_blocks(const LayerSpec& spec, const void* fc1, const void* fc2, const void* gate = nullptr,
                                      std::int64_t element_bytes = 2);
  /// The same from one fc1 and one fc2 pointer per shared expert, contiguous.
  VARMOE_API Status set_shared_pointers(const LayerSpec& spec, const std::vector<const void*>& fc1,
                                        const std::vector<const void*>& fc2, const void* gate = nullptr,
                                        std::int64_t element_bytes = 2);

  /// These weights with biases, of a spec that has them. fc1_bias: each expert's [2I_e] (ungated [I_e]) in the gate order, one after
  /// another; with `padded_width` each as if its width were that, as in the storage "padded" (0: its own). fc2_bias: [E, H].
  VARMOE_API Result<Weights> with_biases(const LayerSpec& spec, const void* fc1_bias, const void* fc2_bias,
                                         std::int64_t padded_width = 0, std::int64_t element_bytes = 2) const;
  /// The same with one pointer per expert: fc1's [2I_e] (ungated [I_e]) in the gate order, fc2's [H].
  VARMOE_API Result<Weights> with_biases(const LayerSpec& spec, const std::vector<const void*>& fc1_bias,
                                         const std::vector<const void*>& fc2_bias,
                                         std::int64_t element_bytes = 2) const;

  /// Checks count, nulls, 16-byte alignment and strides against the spec, of routed and shared experts, and that biases are there where
  /// the spec has them and nowhere else; the error names the expert and the matrix. The functions that make Weights check the routed
  /// matrices alone: shared experts and biases are added after.
  VARMOE_API Status validate(const LayerSpec& spec) const;
};

/// The smallest width ≥ `width` that kernels take (a multiple of 8).
VARMOE_API std::int64_t packed_width(std::int64_t width) noexcept;

/// Packs one expert of any width into the storage "blocks" of a spec whose width for it is packed_width(width): new
/// columns are zero, which is exact for every activation with f(0) = 0; others are refused. Host memory; two-byte elements.
/// `fc1` and `fc2` are contiguous in the spec's layouts and gate order with the true width; outputs likewise with the packed one.
VARMOE_API Status pack_expert(const LayerSpec& spec, std::int64_t width, const void* fc1, const void* fc2,
                              void* packed_fc1, void* packed_fc2);
/// The same for fc1's bias of one expert ([2·width] in the gate order, [width] ungated): padded columns get a bias of zero, so they stay
/// exact. fc2's bias has H entries whatever the width.
VARMOE_API Status pack_fc1_bias(const LayerSpec& spec, std::int64_t width, const void* fc1_bias, void* packed_fc1_bias);

}  // namespace varmoe
