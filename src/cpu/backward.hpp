#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/gradients.hpp"
#include "cpu/kernels.hpp"
#include "cpu/slots.hpp"
#include "cpu/team.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/training.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cpu {

/// One backward on a team, all tokens at once:
///
///   sort → shared gates, g, rows of x and dout in expert order → dw, dz and w·h, as rows and transposed →
///   each row's part of dx, weight and bias gradients, dtopk_weights → dx, the shared gate's gradient
///
/// with a barrier at each arrow. Work is handed out dynamically; every element is computed whole by one
/// thread, in one order.
class Backward {
 public:
  /// `args` are valid, `tokens` ≥ 1 of them are computed, with `active` threads. `z`: rows as z_rows has
  /// them. `workspace` holds workspace_bytes(spec, args.tokens, team_size) bytes, 256-byte aligned.
  Backward(const LayerSpec& spec, const std::vector<ExpertWeights>& experts, const void* shared_gate,
           const Gradients& gradients, const Kernels& kernels, const BackwardArgs& args, std::int64_t tokens,
           const std::uint16_t* z, void* workspace, int team_size, int active) noexcept;

  static std::size_t workspace_bytes(const LayerSpec& spec, std::int64_t tokens, int threads) noexcept;

  /// Team::run's function; the context is a Backward.
  static void member(void* backward, int member) noexcept;

 private:
  struct Layout;
  /// Tasks that threads take one after another; `first` [E + S + 1] in the workspace, the first of each
  /// expert.
  struct Tasks {
    std::int64_t* first = nullptr;
    std::atomic<std::int64_t> next{0};
  };

  void work(int member) noexcept;
  void plan() noexcept;
  void gates(std::int64_t task, float* scratch) noexcept;
  void g_tile(std::int64_t task, float* scratch) noexcept;
  void gather(std::int64_t task) noexcept;
  void slopes(std::int64_t task) noexcept;
  void dx_tile(std::int64_t task, float* scratch) noexcept;
  void fc1_gradient(std::int64_t task, float* scratch) noexcept;
  void fc2_gradient(std::int64_t task, float* scratch) noexcept;
  void token_weights(std::int64_t task) noexcept;
  void combine(std::int64_t task) noexcept;
  void gate_gradient(std::int64_t task) noexcept;

  std::int64_t rows_of(std::int64_t e) const noexcept { return expert_rows_[e + 1] - expert_rows_[e]; }
  float weight_of(std::int64_t row) const noexcept;
  /// What a row's weight multiplies: input and output of its expert, of which the other's is 1.
  struct RowWeights {
    float input, output;
  };
  RowWeights weights_of(std::int64_t row) const noexcept;
  /// z of columns from `begin` on as the activation had it, of what was kept of weight on input.
  void weigh_and_bias(const ExpertWeights& expert, std::int64_t begin, std::int64_t count, float weight,
                      float* gate, float* up) const noexcept;
  std::int64_t token_of(std::int64_t row) const noexcept { return row_slot_[row] / slots_.per_token(); }
  const std::uint16_t* x_row(std::int64_t token) const noexcept;
  const std::uint16_t* dout_row(std::int64_t token) const noexcept;
  /// Sums over an expert's rows of transposed[j]·ordered[i], j from first_output on and i from first_input
  /// on: transposed [columns, rows], ordered [rows, H].
  void outer(const std::uint16_t* transposed, const std::uint16_t* ordered, std::int64_t expert,
             const Tile& tile, float* scratch) const noexcept;

  const LayerSpec& spec_;
  const std::vector<ExpertWeights>& experts_;
  const void* const shared_gate_;
  const Gradients& gradients_;
  const Kernels& kernels_;
  const BackwardArgs& args_;
  const Slots slots_;
  const std::int64_t tokens_, hidden_, all_experts_, top_k_, x_stride_, dout_stride_, dx_stride_;
  const std::int64_t columns_;  ///< of a row of g: the widest expert rounded up to 64
  const bool gated_, joint_;    ///< joint_: gate and up alternate within a stored row (interleaved kn)
  const std::uint16_t* const z_;

  // In the workspace.
  std::int64_t *expert_rows_, *row_slot_, *slot_row_;
  std::uint16_t *dz_, *dz_across_, *bias_across_, *wh_across_, *x_rows_, *dout_rows_;
  float *g_, *dx_rows_, *dw_, *gates_, *gate_slopes_;
  std::byte* scratch_;

  Tasks g_tasks_, slope_tasks_, dx_tasks_, fc1_tasks_, fc2_tasks_;
  std::atomic<std::int64_t> next_gates_{0}, next_gather_{0}, next_tokens_{0}, next_combine_{0},
      next_gate_gradient_{0};
  Barrier barrier_;
};

}  // namespace varmoe::cpu
