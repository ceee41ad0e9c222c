#include "cpu/run.hpp"

#include <algorithm>
#include <cmath>

#include "cpu/tiles.hpp"
#include "cpu/workspace.hpp"

namespace varmoe::cpu {

namespace {

constexpr std::int64_t kCombineTokens = 8;  // a combine task
constexpr std::int64_t kGateTokens = kTileRows;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
T* at(void* workspace, std::size_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(workspace) + offset);
}

const std::uint16_t* elements(const void* p) {
  return static_cast<const std::uint16_t*>(p);
}

}  // namespace

Run::Run(const LayerSpec& spec, const std::vector<ExpertWeights>& experts, const void* shared_gate,
         const Kernels& kernels, const ForwardArgs& args, std::int64_t tokens, std::int64_t chunk,
         void* workspace, int team_size, int active) noexcept
    : spec_(spec),
      experts_(experts),
      shared_gate_(shared_gate),
      kernels_(kernels),
      args_(args),
      slot_experts_(spec, args),
      tokens_(tokens),
      chunk_(chunk),
      hidden_(spec.hidden_size),
      top_k_(spec.top_k),
      slots_(spec.slots_per_token()),
      x_stride_(args.x_stride != 0 ? args.x_stride : spec.hidden_size),
      out_stride_(args.out_stride != 0 ? args.out_stride : spec.hidden_size),
      gated_(spec.gated()),
      joint_(gate_and_up_joint(spec)),
      active_(active),
      barrier_(active) {
  const WorkspaceLayout layout = workspace_layout(spec, chunk, team_size);
  expert_rows_ = at<std::int64_t>(workspace, layout.expert_rows);
  expert_h_ = at<std::int64_t>(workspace, layout.expert_h);
  fc1_tasks_ = at<std::int64_t>(workspace, layout.fc1_tasks);
  fc2_tasks_ = at<std::int64_t>(workspace, layout.fc2_tasks);
  row_slot_ = at<std::int64_t>(workspace, layout.row_slot);
  slot_row_ = at<std::int64_t>(workspace, layout.slot_row);
  h_ = at<std::uint16_t>(workspace, layout.h);
  y_ = at<std::uint16_t>(workspace, layout.y);
  gates_ = at<float>(workspace, layout.gates);
  scratch_ = at<std::byte>(workspace, layout.scratch);
}

void Run::member(void* run, int member) noexcept {
  static_cast<Run*>(run)->work(member);
}

void Run::work(int member) noexcept {
  float* const scratch =
      reinterpret_cast<float*>(scratch_ + static_cast<std::size_t>(member) * kThreadScratch);
  const auto each = [](std::atomic<std::int64_t>& next, std::int64_t count, const auto& task) {
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
  };
  for (std::int64_t first = 0; first < tokens_; first += chunk_) {
    if (member == 0) {
      first_token_ = first;
      chunk_tokens_ = std::min(chunk_, tokens_ - first);
      sort();
      plan_tasks();
    }
    barrier_.wait();
    const std::int64_t experts = spec_.all_experts();
    if (shared_gate_ != nullptr) {
      each(next_gate_, ceil_div(chunk_tokens_, kGateTokens), [&](std::int64_t i) { gate(i, scratch); });
    }
    each(next_fc1_, fc1_tasks_[experts], [&](std::int64_t i) { fc1(i, scratch); });
    barrier_.wait();
    if (only_z_) continue;
    if (up_ != nullptr) {
      each(next_combine_, ceil_div(chunk_tokens_, kCombineTokens), [&](std::int64_t i) { hand_out_h(i); });
      barrier_.wait();
      continue;
    }
    each(next_fc2_, fc2_tasks_[experts], [&](std::int64_t i) { fc2(i, scratch); });
    barrier_.wait();
    each(next_combine_, ceil_div(chunk_tokens_, kCombineTokens), [&](std::int64_t i) { combine(i); });
    barrier_.wait();
  }
}

float Run::weight_of(std::int64_t slot) const noexcept {
  if (shared_gate_ == nullptr || slot_experts_.routed(slot)) return slot_experts_.weight_of(slot, 1.0f);
  return gates_[slot / slots_ - first_token_];
}

void Run::sort() noexcept {
  // fc1_tasks_ is not planned yet: it serves as the cursors.
  slot_experts_.sort(first_token_ * slots_, chunk_tokens_ * slots_, expert_rows_, fc1_tasks_, row_slot_,
                     slot_row_);
  std::int64_t h = 0;
  for (std::int64_t e = 0; e < spec_.all_experts(); ++e) {
    expert_h_[e] = h;
    h += (expert_rows_[e + 1] - expert_rows_[e]) * spec_.width_of(e);
  }
}

void Run::plan_tasks() noexcept {
  const std::int64_t experts = spec_.all_experts();
  // Narrower tasks until there are enough for every thread; an output's sum does not depend on its task.
  const auto plan = [&](std::int64_t* tasks, int widest, const auto& outputs_of) {
    for (int tile = widest;; tile /= 2) {
      plan_tiles(experts, expert_rows_, tile, outputs_of, tasks);
      if (active_ == 1 || tile <= 32 || tasks[experts] >= 4 * static_cast<std::int64_t>(active_)) return tile;
    }
  };
  fc1_outputs_ = plan(fc1_tasks_, joint_ ? kTileOutputs / 2 : kTileOutputs,
                      [&](std::int64_t e) { return spec_.width_of(e); });
  fc2_outputs_ = plan(fc2_tasks_, kTileOutputs, [&](std::int64_t) { return hidden_; });
  next_fc1_.store(0, std::memory_order_relaxed);
  next_fc2_.store(0, std::memory_order_relaxed);
  next_combine_.store(0, std::memory_order_relaxed);
  next_gate_.store(0, std::memory_order_relaxed);
}

Tile Run::tile_of(const std::int64_t* tasks, std::int64_t task, int tile_outputs,
                  bool is_fc1) const noexcept {
  return tile_at(
      spec_.all_experts(), expert_rows_, tile_outputs,
      [&](std::int64_t e) { return is_fc1 ? spec_.width_of(e) : hidden_; }, tasks, task);
}

void Run::gate(std::int64_t task, float* scratch) noexcept {
  const std::int64_t first = task * kGateTokens;
  token_gates(spec_, kernels_, shared_gate_, elements(args_.x) + (first_token_ + first) * x_stride_,
              x_stride_, static_cast<int>(std::min(kGateTokens, chunk_tokens_ - first)), scratch,
              gates_ + first);
}

void Run::fc1(std::int64_t task, float* scratch) noexcept {
  const Tile t = tile_of(fc1_tasks_, task, fc1_outputs_, true);
  const auto expert = static_cast<std::size_t>(t.expert);
  const std::int64_t width = spec_.width_of(t.expert);
  const std::uint16_t* rows[kTileRows];
  float weights[kTileRows];
  for (int m = 0; m < t.rows; ++m) {
    const std::int64_t slot = row_slot_[t.first_row + m];
    rows[m] = elements(args_.x) + slot / slots_ * x_stride_;
    // A shared gate is of the output.
    if (spec_.weight_on_input) weights[m] = slot_experts_.routed(slot) ? weight_of(slot) : 1.0f;
  }
  const UpSums sums = up_products(spec_, kernels_, experts_[expert], t, rows, scratch);
  // Of weight on input z is kept as it is before both: the weight's gradient is made of it, and a weight may
  // be 0.
  if (z_ != nullptr && spec_.weight_on_input) store_z(t, sums.gate, sums.up, sums.step);
  if (only_z_ && spec_.weight_on_input) return;
  weigh_and_bias(spec_, kernels_, experts_[expert], t, spec_.weight_on_input ? weights : nullptr, sums);
  if (z_ != nullptr && !spec_.weight_on_input) store_z(t, sums.gate, sums.up, sums.step);
  if (only_z_) return;
  std::uint16_t* h =
      h_ + expert_h_[t.expert] + (t.first_row - expert_rows_[t.expert]) * width + t.first_output;
  for (int m = 0; m < t.rows; ++m) store_h(spec_, kernels_, t, sums, m, h + m * width);
}

void Run::store_z(const Tile& t, const float* gate, const float* up, std::int64_t step) const noexcept {
  const ZRows place = z_rows(spec_);
  float values[kTileOutputs];
  const auto store = [&](const float* from, std::uint16_t* to) {
    if (step != 1) {
      for (int i = 0; i < t.outputs; ++i) values[i] = from[i * step];
      from = values;
    }
    kernels_.scale_round(spec_.dtype, from, 1.0f, t.outputs, to);
  };
  for (int m = 0; m < t.rows; ++m) {
    std::uint16_t* row = z_ + (t.first_row + m) * place.stride + t.first_output;
    if (gated_) store(gate + m * kTileOutputs, row);
    store(up + m * kTileOutputs, row + place.up);
  }
}

void Run::fc2(std::int64_t task, float* scratch) noexcept {
  const Tile t = tile_of(fc2_tasks_, task, fc2_outputs_, false);
  const auto expert = static_cast<std::size_t>(t.expert);
  const ExpertWeights& w = experts_[expert];
  const std::int64_t width = spec_.width_of(t.expert);
  const std::uint16_t* rows[kTileRows];
  const std::uint16_t* h = h_ + expert_h_[t.expert] + (t.first_row - expert_rows_[t.expert]) * width;
  for (int m = 0; m < t.rows; ++m) rows[m] = h + m * width;
  const float* sums = down_sums(spec_, kernels_, w, t, width, rows, scratch);
  for (int m = 0; m < t.rows; ++m) {
    const std::int64_t row = t.first_row + m;
    const std::int64_t slot = row_slot_[row];
    const float weight = spec_.weight_on_input && slot_experts_.routed(slot) ? 1.0f : weight_of(slot);
    kernels_.scale_round(spec_.dtype, sums + m * kTileOutputs, weight, t.outputs,
                         y_ + row * hidden_ + t.first_output);
  }
}

void Run::hand_out_h(std::int64_t task) noexcept {
  const std::int64_t stride = up_->h_stride != 0 ? up_->h_stride : (spec_.widest_of_all() + 63) / 64 * 64;
  const std::int64_t experts = spec_.all_experts();
  if (task == 0) {
    for (std::int64_t e = 0; e <= experts; ++e)
      up_->expert_offsets[e] = static_cast<std::int32_t>(expert_rows_[e]);
  }
  const std::int64_t end = std::min(chunk_tokens_, (task + 1) * kCombineTokens) * slots_;
  for (std::int64_t slot = task * kCombineTokens * slots_; slot < end; ++slot) {
    const std::int64_t row = slot_row_[slot];
    up_->slot_row[slot] = static_cast<std::int32_t>(row);
    if (row < 0) continue;
    const std::int64_t expert = slot_experts_.expert_of(slot), width = spec_.width_of(expert);
    std::copy_n(h_ + expert_h_[expert] + (row - expert_rows_[expert]) * width, width,
                static_cast<std::uint16_t*>(up_->h) + row * stride);
  }
}

void Run::combine(std::int64_t task) noexcept {
  const std::uint16_t* rows[kMaxTopK + kMaxSharedExperts];
  const std::int64_t end = std::min(chunk_tokens_, (task + 1) * kCombineTokens);
  for (std::int64_t t = task * kCombineTokens; t < end; ++t) {
    int count = 0;
    for (std::int64_t j = 0; j < slots_; ++j) {
      const std::int64_t row = slot_row_[t * slots_ + j];
      if (row >= 0) rows[count++] = y_ + row * hidden_;
    }
    if (count == 0 && args_.absent_tokens == AbsentTokens::untouched) continue;
    std::uint16_t* out = static_cast<std::uint16_t*>(args_.out) + (first_token_ + t) * out_stride_;
    kernels_.combine(spec_.dtype, rows, count, args_.accumulate ? out : nullptr, hidden_, out);
  }
}

}  // namespace varmoe::cpu
