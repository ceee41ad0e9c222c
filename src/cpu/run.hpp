#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/slots.hpp"
#include "cpu/team.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cpu {

/// One forward on a team: for each chunk of tokens sort → fc1 → fc2 → combine, with a barrier after each.
/// Work is handed out dynamically; every element is computed whole by one thread, in one order.
class Run {
 public:
  /// `args` are valid, `tokens` ≥ 1 of them are computed, `chunk` at a time; `active` threads. The workspace
  /// holds workspace_layout(spec, chunk, threads of the layer). `experts`: the routed ones, then the shared
  /// ones; `shared_gate`: Weights::shared_gate.
  Run(const LayerSpec& spec, const std::vector<ExpertWeights>& experts, const void* shared_gate,
      const Kernels& kernels, const ForwardArgs& args, std::int64_t tokens, std::int64_t chunk,
      void* workspace, int team_size, int active) noexcept;

  /// fc1 alone: h, offsets and slots go where `args` say. All tokens are one chunk.
  void only_up(const UpArgs& args) noexcept { up_ = &args; }

  /// z of every row, rounded, goes to `z` too, as z_rows lays it out; `only`: nothing else is computed. All
  /// tokens are one chunk.
  void keep_z(std::uint16_t* z, bool only) noexcept {
    z_ = z;
    only_z_ = only;
  }

  /// Team::run's function; the context is a Run.
  static void member(void* run, int member) noexcept;

 private:
  void work(int member) noexcept;
  void sort() noexcept;
  void plan_tasks() noexcept;
  void gate(std::int64_t task, float* scratch) noexcept;
  void fc1(std::int64_t task, float* scratch) noexcept;
  void fc2(std::int64_t task, float* scratch) noexcept;
  void combine(std::int64_t task) noexcept;
  void hand_out_h(std::int64_t task) noexcept;
  /// `gate` and `up`: the tile's fp32 sums with their biases, a row's `step` apart.
  void store_z(const Tile& tile, const float* gate, const float* up, std::int64_t step) const noexcept;

  Tile tile_of(const std::int64_t* tasks, std::int64_t task, int tile_outputs, bool is_fc1) const noexcept;
  float weight_of(std::int64_t slot) const noexcept;

  const LayerSpec& spec_;
  const std::vector<ExpertWeights>& experts_;
  const void* const shared_gate_;
  const Kernels& kernels_;
  const ForwardArgs& args_;
  const Slots slot_experts_;
  const UpArgs* up_ = nullptr;
  std::uint16_t* z_ = nullptr;
  bool only_z_ = false;
  const std::int64_t tokens_, chunk_;
  const std::int64_t hidden_, top_k_, slots_, x_stride_, out_stride_;
  const bool gated_, joint_;  ///< joint_: gate and up alternate within a stored row (interleaved kn)
  const int active_;

  // In the workspace.
  std::int64_t *expert_rows_, *expert_h_, *fc1_tasks_, *fc2_tasks_, *row_slot_, *slot_row_;
  std::uint16_t *h_, *y_;
  float* gates_;
  std::byte* scratch_;

  // Of the chunk at hand; written by member 0 between barriers.
  std::int64_t first_token_ = 0, chunk_tokens_ = 0;
  int fc1_outputs_ = 0, fc2_outputs_ = 0;  ///< a task's outputs
  std::atomic<std::int64_t> next_fc1_{0}, next_fc2_{0}, next_combine_{0}, next_gate_{0};
  Barrier barrier_;
};

}  // namespace varmoe::cpu
