#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/backward_config.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// A layer's parts, each usable alone: gather, up, down, combine. The caller says which rows belong to which
/// expert, in any of the layouts that frameworks use; varmoe neither routes nor sorts. Spec, weights,
/// kernels, configs and their overrides are those of a Layer.
///
/// A batch of rows is an array [R, …] whose rows lie by expert: expert e has one segment, rows begin_e …
/// begin_e + count_e. What lies between segments is padding, which is never written, and whose contents do
/// not matter. Where each segment lies is read on the device: nothing waits for the host. E counts a layer's
/// shared experts too, after the routed ones, and k their slots.
namespace varmoe {

/// How RowsByExpert says where the segments lie.
enum class RowLayout : std::uint8_t {
  /// expert_offsets [E + 1]: begin_e = offsets[e], and count_e = offsets[e + 1] − begin_e, or, with
  /// expert_counts, counts[e] if that is less.
  offsets,
  /// expert_counts [E]: segments follow one another, each beginning at a multiple of `multiple` (1: no
  /// padding).
  counts,
  /// expert_counts [E] of a dense batch [E, multiple, …]: begin_e = e · multiple.
  batched,
  /// The arrays of moe_align_block_size (BlockAligner, vLLM, SGLang) with blocks of `multiple` rows: a row of
  /// the batch is an entry of
  /// sorted_token_ids. Blocks of one expert follow each other, its rows before the sentinels.
  aligned_blocks,
};

/// Which rows of a batch are which expert's. Device pointers on a GPU engine, host pointers on the CPU
/// engine; what RowLayout does not name is null or 0. What would reach beyond `rows` is cut off. Segments
/// must not overlap.
struct RowsByExpert {
  RowLayout layout = RowLayout::offsets;
  std::int64_t rows = 0;                 ///< R, the rows that the arrays have, padding included; ≥ 0
  const void* expert_offsets = nullptr;  ///< [E + 1], aligned to its element
  const void* expert_counts = nullptr;   ///< [E]
  IdType index_type = IdType::int32;     ///< of expert_offsets and expert_counts
  std::int64_t multiple = 1;  ///< counts, aligned_blocks: 1 … 65536; batched: R / E, and R = E · multiple
  const std::int32_t* sorted_token_ids = nullptr;     ///< [R]
  const std::int32_t* expert_ids = nullptr;           ///< [R / multiple]
  const std::int32_t* num_tokens_post_pad = nullptr;  ///< [1]
  std::int64_t routed_rows =
      0;  ///< aligned_blocks: the sentinel: entries of sorted_token_ids at or beyond it are padding
};

struct BlocksOptions {
  /// As LayerOptions::max_sms.
  int max_sms = 0;
  /// down takes GroupedDownArgs::row_weights: a kernel of its own, so it is said beforehand. Not with the
  /// spec's weight_on_input.
  bool weighted_down = false;
  /// down_backward and up_backward are there, and up can keep z: kernels beside the others.
  bool training = false;
  /// Of the weights' gradients; with training.
  GradientType gradient_type = GradientType::layer_dtype;
};

/// What the entries of a row map count.
enum class RowMap : std::uint8_t {
  slots,   ///< token · k + slot, as in moe_align_block_size: row r holds token map[r] / k
  tokens,  ///< tokens
};

/// out[r] = x[token of row_map[r]]. Its backward pass is `combine` with topk_weights null.
struct GatherArgs {
  std::int64_t tokens = 0;    ///< T
  const void* x = nullptr;    ///< [T, H], spec dtype, 16-byte aligned
  std::int64_t x_stride = 0;  ///< elements between rows; 0: H; multiple of 8
  std::int64_t rows = 0;      ///< R; 0 is allowed and does nothing
  const std::int32_t* row_map =
      nullptr;  ///< [R]; an entry below 0, or at or beyond T · k (T), is padding: the row is not written
  RowMap map_to = RowMap::slots;
  const std::int32_t* row_count =
      nullptr;          ///< optional device-side number of rows n ≤ R: those beyond are not looked at
  void* out = nullptr;  ///< [R, H] contiguous, 16-byte aligned; must not overlap x
  void* stream = nullptr;
};

/// slot_row, as `combine` takes it, from a row map of slots: slot_row[row_map[r]] = r, and −1 for slots that
/// no row names.
struct SlotRowsArgs {
  std::int64_t tokens = 0;                  ///< T
  std::int64_t rows = 0;                    ///< R
  const std::int32_t* row_map = nullptr;    ///< [R], as RowMap::slots; no slot twice
  const std::int32_t* row_count = nullptr;  ///< as GatherArgs
  std::int32_t* slot_row = nullptr;         ///< [T, k]
  void* stream = nullptr;
};

/// h = activation(x · W1ᵀ + b1) of each row by its expert's matrices, rounded once.
struct GroupedUpArgs {
  RowsByExpert by_expert;
  const void* x = nullptr;    ///< [R, H], spec dtype, 16-byte aligned
  std::int64_t x_stride = 0;  ///< elements between rows; 0: H; multiple of 8
  const float* row_weights =
      nullptr;  ///< [R]: the product's weight, of a spec with weight_on_input; else null
  /// [R, h_stride], spec dtype, 16-byte aligned; must overlap neither x nor the workspace. A row of expert e
  /// gets I_e columns; those up to the next multiple of 64 may be overwritten.
  void* h = nullptr;
  std::int64_t h_stride = 0;  ///< multiple of 8, at least the widest of all experts rounded up to 64. 0: that
  /// [R, z_stride], spec dtype, 16-byte aligned, of blocks made with training: gets what the activation is
  /// applied to, rounded, for up_backward or down_backward. A row of expert e has the gate's I_e columns
  /// first, and up's from I_e rounded up to 64 on (without a gate: the one half); columns up to the next
  /// multiple of 64 may be overwritten. Null: not kept. Must overlap nothing else.
  void* z = nullptr;
  std::int64_t z_stride =
      0;  ///< multiple of 8, at least the widest rounded up to 64, twice with a gate. 0: that
  void* workspace = nullptr;  ///< 256-byte aligned; needs no initial contents; not shared by concurrent calls
  std::size_t workspace_bytes = 0;  ///< ≥ Blocks::workspace_bytes(R)
  void* stream = nullptr;
};

/// y = h · W2ᵀ + b2 of each row by its expert's matrix, times its weight where there are weights, rounded.
struct GroupedDownArgs {
  RowsByExpert by_expert;
  /// [R, h_stride], spec dtype, 16-byte aligned. Where I_e is no multiple of 64, a row's columns from I_e to
  /// the next multiple are multiplied by zero, so they must hold finite numbers. `up` of as many rows leaves
  /// them so.
  const void* h = nullptr;
  std::int64_t h_stride = 0;  ///< multiple of 8, at least the widest of all experts. 0: that rounded up to 64
  const float* row_weights = nullptr;  ///< [R], of blocks made with weighted_down; else null
  void* y =
      nullptr;  ///< [R, H] contiguous, spec dtype, 16-byte aligned; must overlap neither h nor the workspace
  void* workspace = nullptr;  ///< as GroupedUpArgs
  std::size_t workspace_bytes = 0;
  void* stream = nullptr;
};

/// Of blocks made with training, the backward pass of down. With g = dy · W2, fp32: dh = w · g, rounded;
/// dw = ⟨g, h⟩ + ⟨b2, dy⟩; dW2 = Σ dy ⊗ w·h, where w·h is rounded, and db2 = Σ w · dy over an expert's rows.
/// w is 1 without row_weights. Gradients of weights go where bind_gradients said; an expert without rows gets
/// exact zeros. Rows of padding are not written, and what they hold does not matter.
///
/// With z instead of h the activation's backward is done too, while g is in registers: dz = w · g ∘
/// activation'(z), and h = activation(z) need neither be kept nor written. up_backward goes on from dz.
struct GroupedDownBackwardArgs {
  RowsByExpert by_expert;
  const void* dy = nullptr;    ///< [R, H], spec dtype, 16-byte aligned
  std::int64_t dy_stride = 0;  ///< elements between rows; 0: H; multiple of 8
  /// [R, h_stride], 16-byte aligned: what down read. Null with z, or where dh of rows without weights is all
  /// that is asked for.
  const void* h = nullptr;
  /// Of h and dh; multiple of 8, at least the widest of all experts rounded up to 64. 0: that.
  std::int64_t h_stride = 0;
  const void* z = nullptr;             ///< [R, z_stride], 16-byte aligned: what up kept, instead of h
  std::int64_t z_stride = 0;           ///< of z and dz; as GroupedUpArgs
  const float* row_weights = nullptr;  ///< [R], of blocks made with weighted_down; else null
  /// [R, h_stride], 16-byte aligned; null with z. A row's columns up to the next multiple of 64 may be
  /// overwritten. Null: not computed; with row_weights it must be given.
  void* dh = nullptr;
  /// [R, z_stride], 16-byte aligned, with z, and then it must be given: as z, but that gate and up alternate,
  /// 2 · I_e columns, where W1's do (kn, interleaved). Columns up to the next multiple of 64 get zeros.
  void* dz = nullptr;
  float* drow_weights = nullptr;             ///< [R] with row_weights. Null: not computed
  bool weight_gradients = true;              ///< dW2 and db2 are computed
  bool accumulate_weight_gradients = false;  ///< added to what is there instead of written
  void* workspace = nullptr;        ///< 256-byte aligned; needs no initial contents; overlaps nothing else
  std::size_t workspace_bytes = 0;  ///< ≥ Blocks::backward_workspace_bytes(R)
  void* stream = nullptr;
};

/// Of blocks made with training, the backward pass of up: dz = dh ∘ activation'(z), rounded; dx = dz · W1;
/// dW1 = Σ dz ⊗ x and db1 = Σ dz over an expert's rows. With the spec's weight_on_input z is of w·x: then
/// dx = w · p, dw = ⟨p, x⟩ and dW1 = Σ dz ⊗ w·x, with p = dz · W1 and w·x rounded. At the kinks of relu,
/// relu2 and of swiglu_oai's clamps the derivative is 0. Gradients of weights and padding: as
/// GroupedDownBackwardArgs.
struct GroupedUpBackwardArgs {
  RowsByExpert by_expert;
  const void* x = nullptr;     ///< [R, H], what up read; null without gradients of weights of any kind
  std::int64_t x_stride = 0;   ///< elements between rows; 0: H; multiple of 8
  const void* z = nullptr;     ///< [R, z_stride], 16-byte aligned, what up kept; null without dh
  std::int64_t z_stride = 0;   ///< of z and dz; as GroupedUpArgs
  const void* dh = nullptr;    ///< [R, dh_stride], 16-byte aligned. Null: dz is there already
  std::int64_t dh_stride = 0;  ///< as h_stride of GroupedUpArgs
  const float* row_weights = nullptr;  ///< [R], of a spec with weight_on_input; else null
  /// [R, z_stride], 16-byte aligned, laid out as GroupedDownBackwardArgs has it: written from dh and z, or
  /// without dh read as down_backward left it.
  void* dz = nullptr;
  void* dx = nullptr;             ///< [R, H] contiguous, spec dtype, 16-byte aligned. Null: not computed
  float* drow_weights = nullptr;  ///< [R] with row_weights and dx. Null: not computed
  bool weight_gradients = true;   ///< dW1 and db1 are computed
  bool accumulate_weight_gradients = false;  ///< added to what is there instead of written
  void* workspace = nullptr;                 ///< as GroupedDownBackwardArgs
  std::size_t workspace_bytes = 0;
  void* stream = nullptr;
};

/// out_t (+)= Σ w · y over the token's slots, in fp32, in ascending slot: always in one order. Its backward
/// pass is `combine_backward`.
struct CombineArgs {
  std::int64_t tokens = 0;  ///< T
  std::int64_t rows = 0;    ///< R
  const void* y = nullptr;  ///< [R, H] contiguous, spec dtype, 16-byte aligned
  const std::int32_t* slot_row =
      nullptr;  ///< [T, k]: row of each slot; an entry that is negative adds nothing; else below R
  /// [T, k] of the routed slots, fp32. Null: every row counts once (rows that carry their weights; the
  /// backward pass of gather); of a spec with weight_on_input it must be null.
  const float* topk_weights = nullptr;
  const float* shared_weights = nullptr;  ///< [T]: weight of the token's shared experts, of a spec with
                                          ///< shared_gate and with topk_weights
  void* out = nullptr;                    ///< [T, H], 16-byte aligned; must not overlap y
  std::int64_t out_stride = 0;            ///< elements between rows; 0: H; multiple of 8
  bool accumulate = false;                ///< out += result instead of out = result
  AbsentTokens absent_tokens = AbsentTokens::write_zeros;  ///< of tokens without any row
  const std::int32_t* token_count =
      nullptr;  ///< optional device-side token count n ≤ T, as ForwardArgs has it
  void* stream = nullptr;
};

/// From dout = ∂loss/∂out of a combine to its rows and weights: dy_r = w · dout_t (rounded), dw = ⟨dout_t,
/// y_r⟩ in fp32.
struct CombineBackwardArgs {
  std::int64_t tokens = 0;                 ///< T
  std::int64_t rows = 0;                   ///< R
  const void* dout = nullptr;              ///< [T, H], spec dtype, 16-byte aligned
  std::int64_t dout_stride = 0;            ///< elements between rows; 0: H; multiple of 8
  const std::int32_t* slot_row = nullptr;  ///< as CombineArgs; no row twice
  const float* topk_weights = nullptr;     ///< as CombineArgs
  const float* shared_weights = nullptr;   ///< as CombineArgs
  const void* y = nullptr;  ///< [R, H] contiguous, what was combined; null without gradients of weights
  void* dy = nullptr;       ///< [R, H] contiguous: rows that a slot names are written. Null: not computed
  float* dtopk_weights =
      nullptr;  ///< [T, k] of the routed slots; 0 of a slot without a row. Null: not computed
  float* dshared_weights =
      nullptr;  ///< [T, S], of each shared expert's slot, of a spec with shared experts. Null: not computed
  const std::int32_t* token_count =
      nullptr;  ///< optional device-side token count: gradients of later tokens are not written
  void* stream = nullptr;
};

/// A layer's building blocks on an engine. As a Layer: thread-safe, calls may run at the same time (distinct
/// workspaces), `bind` must not run concurrently with them; once prepared a call neither allocates, locks nor
/// waits, and can be captured.
class VARMOE_API Blocks {
 public:
  Blocks(Blocks&&) noexcept;
  Blocks& operator=(Blocks&&) noexcept;
  ~Blocks();

  const LayerSpec& spec() const noexcept;
  const BlocksOptions& options() const noexcept;

  /// As Layer::prepare; a call of R rows takes the kernels of ⌈R / k⌉ tokens. Which experts have how many of
  /// them does not matter.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});
  /// As Layer::bind. gather, slot_rows and combine need no weights.
  Status bind(const Weights& weights);
  /// As TrainingLayer::bind_gradients, of blocks made with training: where down_backward and up_backward put
  /// the weights' gradients. The shared gate's, which is the caller's business, is not written.
  Status bind_gradients(const Weights& gradients);
  /// Of up and down, of at most so many rows (R, padding included); monotonic.
  Result<std::size_t> workspace_bytes(std::int64_t rows) const;

  /// Of down_backward and up_backward, likewise.
  Result<std::size_t> backward_workspace_bytes(std::int64_t rows) const;

  Status gather(const GatherArgs& args) noexcept;
  Status slot_rows(const SlotRowsArgs& args) noexcept;
  Status up(const GroupedUpArgs& args) noexcept;
  Status down(const GroupedDownArgs& args) noexcept;
  Status combine(const CombineArgs& args) noexcept;
  Status combine_backward(const CombineBackwardArgs& args) noexcept;
  Status down_backward(const GroupedDownBackwardArgs& args) noexcept;
  Status up_backward(const GroupedUpBackwardArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit Blocks(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
