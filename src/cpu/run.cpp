#include "cpu/run.hpp"

#include <algorithm>
#include <cmath>

#include "cpu/activation.hpp"
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
      tokens_(tokens),
      chunk_(chunk),
      hidden_(spec.hidden_size),
      top_k_(spec.top_k),
      slots_(spec.slots_per_token()),
      x_stride_(args.x_stride != 0 ? args.x_stride : spec.hidden_size),
      out_stride_(args.out_stride != 0 ? args.out_stride : spec.hidden_size),
      gated_(spec.gated()),
      joint_(gated_ && spec.fc1_layout == WeightLayout::kn && spec.gate_order == GateOrder::interleaved),
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

std::int64_t Run::expert_of(std::int64_t slot) const noexcept {
  const std::int64_t token = slot / slots_, j = slot % slots_;
  if (j >= top_k_) return spec_.num_experts() + j - top_k_;
  const std::int64_t at = token * top_k_ + j;
  std::int64_t id = args_.id_type == IdType::int64 ? static_cast<const std::int64_t*>(args_.topk_ids)[at]
                                                   : static_cast<const std::int32_t*>(args_.topk_ids)[at];
  if (args_.expert_map != nullptr) id = id >= 0 && id < args_.num_global_experts ? args_.expert_map[id] : -1;
  return id >= 0 && id < spec_.num_experts() ? id : -1;
}

float Run::weight_of(std::int64_t slot) const noexcept {
  const std::int64_t token = slot / slots_, j = slot % slots_;
  if (j < top_k_) return args_.topk_weights[token * top_k_ + j];
  return shared_gate_ != nullptr ? gates_[token - first_token_] : 1.0f;
}

// Counting sort of the chunk's slots by expert, stable: an expert's rows are in ascending token·(k + S) + j.
void Run::sort() noexcept {
  const std::int64_t experts = spec_.all_experts(), begin = first_token_ * slots_,
                     count = chunk_tokens_ * slots_;
  std::fill_n(expert_rows_, experts + 1, 0);
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t e = expert_of(begin + s);
    if (e >= 0) ++expert_rows_[e + 1];
  }
  std::int64_t h = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    expert_h_[e] = h;
    h += expert_rows_[e + 1] * spec_.width_of(e);
    expert_rows_[e + 1] += expert_rows_[e];
  }
  // fc1_tasks_ is not planned yet: it serves as the cursors.
  std::copy_n(expert_rows_, experts, fc1_tasks_);
  for (std::int64_t s = 0; s < count; ++s) {
    const std::int64_t e = expert_of(begin + s);
    if (e < 0) {
      slot_row_[s] = -1;
      continue;
    }
    const std::int64_t row = fc1_tasks_[e]++;
    row_slot_[row] = begin + s;
    slot_row_[s] = row;
  }
}

void Run::plan_tasks() noexcept {
  const std::int64_t experts = spec_.all_experts();
  // Narrower tasks until there are enough for every thread; an output's sum does not depend on its task.
  const auto plan = [&](std::int64_t* tasks, int widest, const auto& outputs_of) {
    for (int tile = widest;; tile /= 2) {
      tasks[0] = 0;
      for (std::int64_t e = 0; e < experts; ++e) {
        const std::int64_t rows = expert_rows_[e + 1] - expert_rows_[e];
        tasks[e + 1] = tasks[e] + ceil_div(rows, kTileRows) * ceil_div(outputs_of(e), tile);
      }
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

// Row tiles of one strip of weights follow each other, so that threads share it in cache.
Run::Tile Run::tile_of(const std::int64_t* tasks, std::int64_t task, int tile_outputs,
                       bool is_fc1) const noexcept {
  Tile t;
  t.expert = std::upper_bound(tasks, tasks + spec_.all_experts() + 1, task) - tasks - 1;
  const std::int64_t outputs = is_fc1 ? spec_.width_of(t.expert) : hidden_;
  const std::int64_t rows = expert_rows_[t.expert + 1] - expert_rows_[t.expert];
  const std::int64_t row_tiles = ceil_div(rows, kTileRows), rows_each = ceil_div(rows, row_tiles);
  const std::int64_t local = task - tasks[t.expert], first = local % row_tiles * rows_each;
  t.first_row = expert_rows_[t.expert] + first;
  t.rows = static_cast<int>(std::min(rows_each, rows - first));
  t.first_output = local / row_tiles * tile_outputs;
  t.outputs = static_cast<int>(std::min<std::int64_t>(tile_outputs, outputs - t.first_output));
  return t;
}

// sigmoid(x·w_g) of some tokens. A product takes outputs by eights: all of them are w_g, and the first
// counts.
void Run::gate(std::int64_t task, float* scratch) noexcept {
  const std::int64_t first = task * kGateTokens;
  const std::uint16_t* rows[kTileRows];
  Product p;
  p.row_count = static_cast<int>(std::min(kGateTokens, chunk_tokens_ - first));
  for (int m = 0; m < p.row_count; ++m) rows[m] = elements(args_.x) + (first_token_ + first + m) * x_stride_;
  p.dtype = spec_.dtype;
  p.layout = WeightLayout::nk;
  p.rows = rows;
  p.weights = elements(shared_gate_);
  p.weight_stride = 0;
  p.outputs = 8;
  p.depth = hidden_;
  p.c = scratch + kProductScratch;
  p.scratch = scratch;
  kernels_.product(p);
  for (int m = 0; m < p.row_count; ++m) gates_[first + m] = 1.0f / (1.0f + std::exp(-p.c[m * kTileOutputs]));
}

void Run::add_bias(const void* bias, std::int64_t first, std::int64_t stride, int rows, int outputs,
                   std::int64_t step, float* sums) const noexcept {
  float values[2 * kTileOutputs];
  kernels_.widen(spec_.dtype, elements(bias) + first * stride, (outputs - 1) * stride + 1, values);
  for (int m = 0; m < rows; ++m) {
    for (std::int64_t i = 0; i < outputs; ++i) sums[m * kTileOutputs + i * step] += values[i * stride];
  }
}

void Run::fc1(std::int64_t task, float* scratch) noexcept {
  const Tile t = tile_of(fc1_tasks_, task, fc1_outputs_, true);
  const auto expert = static_cast<std::size_t>(t.expert);
  const ExpertWeights& w = experts_[expert];
  const std::int64_t width = spec_.width_of(t.expert);
  const std::uint16_t* rows[kTileRows];
  for (int m = 0; m < t.rows; ++m) {
    rows[m] = elements(args_.x) + row_slot_[t.first_row + m] / slots_ * x_stride_;
  }
  float* const up = scratch + kProductScratch;
  float* const gate = up + kTileRows * kTileOutputs;
  Product p;
  p.dtype = spec_.dtype;
  p.layout = spec_.fc1_layout;
  p.rows = rows;
  p.row_count = t.rows;
  p.weight_stride = w.fc1_stride;
  p.outputs = t.outputs;
  p.depth = hidden_;
  p.scratch = scratch;
  const std::int64_t offset = t.first_output * (p.layout == WeightLayout::nk ? w.fc1_stride : 1);
  float *gate_values = gate, *up_values = up;
  std::int64_t step = 1;
  if (joint_) {
    p.weights = elements(w.gate) + 2 * offset;
    p.outputs = 2 * t.outputs;
    p.c = up;
    kernels_.product(p);
    gate_values = up;
    up_values = up + 1;
    step = 2;
  } else {
    p.weights = elements(w.up) + offset;
    p.c = up;
    kernels_.product(p);
    if (gated_) {
      p.weights = elements(w.gate) + offset;
      p.c = gate;
      kernels_.product(p);
    }
  }
  if (spec_.weight_on_input) {
    // Not together with the bias: a compiler may make one multiply-add of the two in one loop and not in
    // another.
    for (int m = 0; m < t.rows; ++m) {
      const float weight = weight_of(row_slot_[t.first_row + m]);
      for (int i = 0; i < p.outputs; ++i) up[m * kTileOutputs + i] *= weight;
      for (int i = 0; gated_ && !joint_ && i < p.outputs; ++i) gate[m * kTileOutputs + i] *= weight;
    }
  }
  if (spec_.bias) {
    add_bias(w.up_bias, t.first_output, w.fc1_bias_stride, t.rows, t.outputs, step, up_values);
    if (gated_)
      add_bias(w.gate_bias, t.first_output, w.fc1_bias_stride, t.rows, t.outputs, step, gate_values);
  }
  std::uint16_t* h =
      h_ + expert_h_[t.expert] + (t.first_row - expert_rows_[t.expert]) * width + t.first_output;
  for (int m = 0; m < t.rows; ++m) {
    apply_activation(spec_.activation, spec_.activation_params, gate_values + m * kTileOutputs,
                     up_values + m * kTileOutputs, step, t.outputs, up + m * kTileOutputs);
    kernels_.scale_round(spec_.dtype, up + m * kTileOutputs, 1.0f, t.outputs, h + m * width);
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
  Product p;
  p.dtype = spec_.dtype;
  p.layout = spec_.fc2_layout;
  p.rows = rows;
  p.row_count = t.rows;
  p.weights = elements(w.down) + t.first_output * (p.layout == WeightLayout::nk ? w.fc2_stride : 1);
  p.weight_stride = w.fc2_stride;
  p.outputs = t.outputs;
  p.depth = width;
  p.c = scratch + kProductScratch;
  p.scratch = scratch;
  kernels_.product(p);
  if (spec_.bias) add_bias(w.down_bias, t.first_output, 1, t.rows, t.outputs, 1, p.c);
  for (int m = 0; m < t.rows; ++m) {
    const std::int64_t row = t.first_row + m;
    const std::int64_t slot = row_slot_[row];
    const float weight = spec_.weight_on_input && slot % slots_ < top_k_ ? 1.0f : weight_of(slot);
    kernels_.scale_round(spec_.dtype, p.c + m * kTileOutputs, weight, t.outputs,
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
    const std::int64_t expert = expert_of(slot), width = spec_.width_of(expert);
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
