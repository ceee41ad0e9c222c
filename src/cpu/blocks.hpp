#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "varmoe/backward_config.hpp"
#include "varmoe/blocks.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cpu {

/// The building blocks on the CPU, on host pointers, before each call returns; the same rules and rounding
/// points as on a GPU. Arguments are sound (the engine checks them); rows or tokens ≥ 1.
///
/// Deterministic: a row's bits depend on the row, the layer and the instruction set alone. Thread-safe: calls
/// take turns at the threads; `bind` must not run concurrently with them.
class CpuBlocks {
 public:
  /// `threads` ≤ 0: one per core.
  static Result<std::unique_ptr<CpuBlocks>> create(const LayerSpec& spec, GradientType gradient_type,
                                                   int threads = 0);
  ~CpuBlocks();
  CpuBlocks(const CpuBlocks&) = delete;
  CpuBlocks& operator=(const CpuBlocks&) = delete;

  /// `weights` fit the spec.
  void bind(const Weights& weights);
  std::size_t workspace_bytes(std::int64_t rows) const noexcept;

  /// `gradients` fit the spec.
  void bind_gradients(const Weights& gradients);
  std::size_t backward_workspace_bytes(std::int64_t rows) const noexcept;
  /// Zeros to fc1's gradients, or to fc2's.
  void clear_gradients(bool fc1) noexcept;

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
  explicit CpuBlocks(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace varmoe::cpu
