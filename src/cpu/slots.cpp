#include "cpu/slots.hpp"

#include <algorithm>
#include <cmath>

namespace varmoe::cpu {

std::int64_t Slots::expert_of(std::int64_t slot) const noexcept {
  const std::int64_t token = slot / per_token_, j = slot % per_token_;
  if (j >= top_k_) return spec_.num_experts() + j - top_k_;
  const std::int64_t at = token * top_k_ + j;
  std::int64_t id = ids_64_ ? static_cast<const std::int64_t*>(topk_ids_)[at]
                            : static_cast<const std::int32_t*>(topk_ids_)[at];
  if (expert_map_ != nullptr) id = id >= 0 && id < num_global_experts_ ? expert_map_[id] : -1;
  return id >= 0 && id < spec_.num_experts() ? id : -1;
}

void Slots::sort(std::int64_t begin, std::int64_t count, std::int64_t* expert_rows, std::int64_t* cursors,
                 std::int64_t* row_slot, std::int64_t* slot_row) const noexcept {
  const std::int64_t experts = spec_.all_experts();
  std::fill_n(expert_rows, experts + 1, 0);
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t e = expert_of(begin + s);
    if (e >= 0) ++expert_rows[e + 1];
  }
  for (std::int64_t e = 0; e < experts; ++e) expert_rows[e + 1] += expert_rows[e];
  std::copy_n(expert_rows, experts, cursors);
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t e = expert_of(begin + s);
    if (e < 0) {
      slot_row[s] = -1;
      continue;
    }
    const std::int64_t row = cursors[e]++;
    row_slot[row] = begin + s;
    slot_row[s] = row;
  }
}

// A product takes outputs by eights: all of them are w_g, and the first counts.
void token_gates(const LayerSpec& spec, const Kernels& kernels, const void* shared_gate,
                 const std::uint16_t* x, std::int64_t x_stride, int count, float* scratch,
                 float* gates) noexcept {
  const std::uint16_t* rows[kTileRows];
  Product p;
  p.row_count = count;
  for (int m = 0; m < count; ++m) rows[m] = x + m * x_stride;
  p.dtype = spec.dtype;
  p.layout = WeightLayout::nk;
  p.rows = rows;
  p.weights = static_cast<const std::uint16_t*>(shared_gate);
  p.weight_stride = 0;
  p.outputs = 8;
  p.depth = spec.hidden_size;
  p.c = scratch + kProductScratch;
  p.scratch = scratch;
  kernels.product(p);
  for (int m = 0; m < count; ++m) gates[m] = 1.0f / (1.0f + std::exp(-p.c[m * kTileOutputs]));
}

std::int64_t expert_of_task(std::int64_t experts, const std::int64_t* tasks, std::int64_t task) noexcept {
  return std::upper_bound(tasks, tasks + experts + 1, task) - tasks - 1;
}

}  // namespace varmoe::cpu
