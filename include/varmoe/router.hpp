#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/router_spec.hpp"

/// Routing as operations of their own: logits → topk_ids and topk_weights (Router), and routed rows → blocks of one expert each
/// (BlockAligner, moe_align_block_size). Both live on an Engine like a Layer: create → prepare → call.
namespace varmoe {

/// Arguments of one route. Device pointers on a GPU engine, host pointers on the CPU engine. Outputs must not overlap inputs.
struct RouteArgs {
  std::int64_t tokens = 0;                 ///< T; 0 is allowed and does nothing
  const void* logits = nullptr;            ///< [T, E], spec.logit_type, aligned to its element
  std::int64_t logit_stride = 0;           ///< elements between rows; 0: E. Any; rows that keep 16-byte alignment load fastest
  const float* correction_bias = nullptr;  ///< [E], fp32; required by a spec with correction_bias, else ignored
  std::int32_t* topk_ids = nullptr;        ///< [T, k] contiguous, best first
  float* topk_weights = nullptr;           ///< [T, k] contiguous, fp32
  float* scores = nullptr;                 ///< optional [T, E] contiguous, fp32: every expert's score, without bias, scaling and groups
  /// Optional device-side token count n ≤ T: rows at and beyond n are neither read nor written. int32, 4-byte aligned.
  const std::int32_t* token_count = nullptr;
  void* stream = nullptr;                  ///< CUstream / cudaStream_t; null: the legacy default stream. CPU: ignored

  // Of a router with hidden_size alone, which takes these instead of `logits` (must be null then); null and 0 for others.
  const void* x = nullptr;                 ///< [T, H], spec.input_type, 16-byte aligned
  std::int64_t x_stride = 0;               ///< elements between rows; 0: H; multiple of 8
  const void* weight = nullptr;            ///< Wᵣ [E, H], spec.weight_type, 16-byte aligned
  std::int64_t weight_stride = 0;          ///< elements between rows; 0: H; multiple of 8
  const float* logit_bias = nullptr;       ///< [E], fp32; required by a spec with logit_bias, else ignored
  float* logits_out = nullptr;             ///< optional [T, E] contiguous, fp32: the logits, with their bias
  void* workspace = nullptr;               ///< 16-byte aligned, no initial contents, not shared by concurrent routes; null where 0 bytes are needed
  std::size_t workspace_bytes = 0;         ///< ≥ Router::workspace_bytes(tokens)
};

/// A router on an engine. Thread-safe; may outlive the Engine object.
class VARMOE_API Router {
 public:
  Router(Router&&) noexcept;
  Router& operator=(Router&&) noexcept;
  ~Router();

  const RouterSpec& spec() const noexcept;

  /// Compiles or loads its kernels: they serve every token count, so `tokens` and the range of the options are not read.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});

  /// For up to `tokens` tokens. 0 for a router that is given logits, and on the CPU.
  Result<std::size_t> workspace_bytes(std::int64_t tokens) const;

  /// Enqueues on args.stream: one kernel, two for a router with hidden_size. After `prepare` it makes no host synchronisation, allocation, file access, lock,
  /// log line or compile and can be captured in a CUDA graph. Without, the first call prepares, unless the stream is capturing (not_prepared).
  Status route(const RouteArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit Router(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

/// route, then forward on the same stream: a layer from its logits. `forward` must read what `route` writes: the same ids (int32), weights,
/// tokens, token count and stream. Router and layer must agree on experts (with an expert map: on its entries), top-k and weight_on_input.
VARMOE_API Status route_and_forward(Router& router, const RouteArgs& route, Layer& layer, const ForwardArgs& forward) noexcept;

/// Arguments of one alignment. Device pointers on a GPU engine, host pointers on the CPU engine.
struct AlignArgs {
  std::int64_t rows = 0;                       ///< R = T·k; 0 is allowed: no blocks
  const void* topk_ids = nullptr;              ///< [R]; an id of −1 or ≥ E takes no place
  IdType id_type = IdType::int32;
  /// [sorted_size]: row numbers 0 … R−1 in expert order, ascending within an expert, each expert's run filled up to whole blocks and the
  /// rest of the array with R, which is no row.
  std::int32_t* sorted_token_ids = nullptr;
  std::int64_t sorted_size = 0;                ///< entries there; 0: sorted_ids_size(spec, R), which is also the least
  std::int32_t* expert_ids = nullptr;          ///< [aligned_blocks(spec, sorted_size)]: each block's expert; −1 beyond the last block
  std::int32_t* num_tokens_post_pad = nullptr; ///< [1]: entries of whole blocks in sorted_token_ids, a multiple of block_size
  void* workspace = nullptr;                   ///< 16-byte aligned; may be null where workspace_bytes(rows) is 0
  std::size_t workspace_bytes = 0;             ///< ≥ BlockAligner::workspace_bytes(rows)
  void* stream = nullptr;
};

/// moe_align_block_size on an engine. Thread-safe; may outlive the Engine object.
class VARMOE_API BlockAligner {
 public:
  BlockAligner(BlockAligner&&) noexcept;
  BlockAligner& operator=(BlockAligner&&) noexcept;
  ~BlockAligner();

  const AlignSpec& spec() const noexcept;

  /// As Router::prepare; its kernels serve every number of rows.
  Result<PrepareReport> prepare(const PrepareOptions& options = {});
  /// 0 for few rows, and on the CPU.
  Result<std::size_t> workspace_bytes(std::int64_t rows) const;
  /// As Router::route; one launch for few rows, two for more.
  Status align(const AlignArgs& args) noexcept;

  struct Impl;

 private:
  friend class Engine;
  explicit BlockAligner(std::shared_ptr<Impl>);
  std::shared_ptr<Impl> impl_;
};

}  // namespace varmoe
