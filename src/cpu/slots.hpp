#pragma once

#include <cstdint>

#include "cpu/kernels.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/layer_spec.hpp"

/// What forward and backward share: which rows the tokens of a call make, and their weights.
namespace varmoe::cpu {

/// The slots of a call, token·(k + S) + j, of which each names an expert or none.
class Slots {
 public:
  /// Of ForwardArgs or BackwardArgs, which outlive this.
  template <class Args>
  Slots(const LayerSpec& spec, const Args& args) noexcept
      : spec_(spec),
        topk_ids_(args.topk_ids),
        ids_64_(args.id_type == IdType::int64),
        topk_weights_(args.topk_weights),
        expert_map_(args.expert_map),
        num_global_experts_(args.num_global_experts),
        top_k_(spec.top_k),
        per_token_(spec.slots_per_token()) {}

  std::int64_t per_token() const noexcept { return per_token_; }
  /// Of all E + S; −1: none.
  std::int64_t expert_of(std::int64_t slot) const noexcept;
  bool routed(std::int64_t slot) const noexcept { return slot % per_token_ < top_k_; }
  /// `gate`: of the slot's token; 1 without a shared gate.
  float weight_of(std::int64_t slot, float gate) const noexcept {
    const std::int64_t token = slot / per_token_, j = slot % per_token_;
    return j < top_k_ ? topk_weights_[token * top_k_ + j] : gate;
  }

  /// Counting sort of `count` slots from `begin` by expert, stable: an expert's rows are in ascending slot.
  /// expert_rows [E + S + 1]: first row of each expert, and their number; row_slot [rows]; slot_row [count]:
  /// the row, or −1; cursors [E + S]: scratch.
  void sort(std::int64_t begin, std::int64_t count, std::int64_t* expert_rows, std::int64_t* cursors,
            std::int64_t* row_slot, std::int64_t* slot_row) const noexcept;

 private:
  const LayerSpec& spec_;
  const void* topk_ids_;
  bool ids_64_;
  const float* topk_weights_;
  const std::int32_t* expert_map_;
  std::int64_t num_global_experts_, top_k_, per_token_;
};

/// gates[i] = sigmoid(x_i·w_g) of `count` ≤ kTileRows rows of x; `scratch`: kProductScratch and a tile of
/// floats.
void token_gates(const LayerSpec& spec, const Kernels& kernels, const void* shared_gate,
                 const std::uint16_t* x, std::int64_t x_stride, int count, float* scratch,
                 float* gates) noexcept;

/// A rectangle of one expert's rows and outputs.
struct Tile {
  std::int64_t expert, first_row, first_output;
  int rows, outputs;
};

/// Tasks of tiles of at most kTileRows rows and `tile_outputs` outputs: fills tasks [experts + 1], the first
/// of each expert and their number.
template <class OutputsOf>
void plan_tiles(std::int64_t experts, const std::int64_t* expert_rows, int tile_outputs,
                const OutputsOf& outputs_of, std::int64_t* tasks) noexcept {
  tasks[0] = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t rows = expert_rows[e + 1] - expert_rows[e];
    tasks[e + 1] =
        tasks[e] + (rows + kTileRows - 1) / kTileRows * ((outputs_of(e) + tile_outputs - 1) / tile_outputs);
  }
}

/// The expert to which a task belongs.
std::int64_t expert_of_task(std::int64_t experts, const std::int64_t* tasks, std::int64_t task) noexcept;

/// One of plan_tiles' tasks. Row tiles of one strip of outputs follow each other, so that threads share its
/// weights in cache.
template <class OutputsOf>
Tile tile_at(std::int64_t experts, const std::int64_t* expert_rows, int tile_outputs,
             const OutputsOf& outputs_of, const std::int64_t* tasks, std::int64_t task) noexcept {
  Tile t;
  t.expert = expert_of_task(experts, tasks, task);
  const std::int64_t outputs = outputs_of(t.expert);
  const std::int64_t rows = expert_rows[t.expert + 1] - expert_rows[t.expert];
  const std::int64_t row_tiles = (rows + kTileRows - 1) / kTileRows,
                     rows_each = (rows + row_tiles - 1) / row_tiles;
  const std::int64_t local = task - tasks[t.expert], first = local % row_tiles * rows_each;
  t.first_row = expert_rows[t.expert] + first;
  t.rows = static_cast<int>(rows_each < rows - first ? rows_each : rows - first);
  t.first_output = local / row_tiles * tile_outputs;
  t.outputs =
      static_cast<int>(tile_outputs < outputs - t.first_output ? tile_outputs : outputs - t.first_output);
  return t;
}

}  // namespace varmoe::cpu
