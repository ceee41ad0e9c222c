#include "cpu/backward.hpp"

#include <algorithm>

#include "cpu/activation.hpp"
#include "cpu/workspace.hpp"

namespace varmoe::cpu {

namespace {

constexpr std::int64_t kTokensOfTask = 8;    // combine and dtopk_weights
constexpr std::int64_t kRowsOfTask = 16;     // gather
constexpr std::int64_t kColumnsOfTask = 64;  // the shared gate's gradient
constexpr int kSumLanes = 8;                 // a dot product's partial sums

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

const std::uint16_t* elements(const void* p) {
  return static_cast<const std::uint16_t*>(p);
}

/// The layout in which a product reads a matrix transposed: outputs become the depth.
WeightLayout transposed(WeightLayout layout) {
  return layout == WeightLayout::nk ? WeightLayout::kn : WeightLayout::nk;
}

template <class F>
void each(std::atomic<std::int64_t>& next, std::int64_t count, const F& task) {
  for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
}

/// `count` is a multiple of kSumLanes.
void add_products(const float* a, const float* b, std::int64_t count, float* lanes) {
  for (std::int64_t i = 0; i < count; i += kSumLanes)
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += a[i + l] * b[i + l];
}
float sum_of(const float* lanes) {
  float sum = 0;
  for (int l = 0; l < kSumLanes; ++l) sum += lanes[l];
  return sum;
}

}  // namespace

/// Offsets in bytes, 256-byte aligned.
struct Backward::Layout {
  std::size_t expert_rows, tasks[5], row_slot, slot_row, g, dz, dz_across, bias_across, wh_across, x_rows,
      dout_rows, dx_rows, dw, gates, gate_slopes, scratch, total_bytes = 0;

  Layout(const LayerSpec& spec, std::int64_t tokens, int threads) noexcept {
    const auto take = [&](std::size_t count, std::size_t bytes) {
      const std::size_t at = total_bytes;
      total_bytes = (at + count * bytes + 255) / 256 * 256;
      return at;
    };
    const auto experts = static_cast<std::size_t>(spec.all_experts()), t = static_cast<std::size_t>(tokens);
    const std::size_t rows = t * static_cast<std::size_t>(spec.slots_per_token());
    const auto hidden = static_cast<std::size_t>(spec.hidden_size);
    const std::size_t z = rows * static_cast<std::size_t>(z_rows(spec).stride);
    const std::size_t half = z / (spec.gated() ? 2 : 1);
    expert_rows = take(experts + 1, sizeof(std::int64_t));
    for (std::size_t& offset : tasks) offset = take(experts + 1, sizeof(std::int64_t));
    row_slot = take(rows, sizeof(std::int64_t));
    slot_row = take(rows, sizeof(std::int64_t));
    g = take(half, sizeof(float));
    dz = take(z, 2);
    dz_across = take(z, 2);
    // dz without weights, which b1's gradient is of where they multiply the input.
    bias_across = take(spec.bias && spec.weight_on_input ? z : 0, 2);
    wh_across = take(half, 2);
    x_rows = take(rows * hidden, 2);
    dout_rows = take(rows * hidden, 2);
    dx_rows = take(rows * hidden, sizeof(float));
    dw = take(rows, sizeof(float));
    gates = take(spec.shared_gate ? t : 0, sizeof(float));
    gate_slopes = take(spec.shared_gate ? t : 0, sizeof(float));
    scratch = take(static_cast<std::size_t>(threads), kThreadScratch);
  }
};

std::size_t Backward::workspace_bytes(const LayerSpec& spec, std::int64_t tokens, int threads) noexcept {
  return Layout(spec, tokens, threads).total_bytes;
}

Backward::Backward(const LayerSpec& spec, const std::vector<ExpertWeights>& experts, const void* shared_gate,
                   const Gradients& gradients, const Kernels& kernels, const BackwardArgs& args,
                   std::int64_t tokens, const std::uint16_t* z, void* workspace, int team_size,
                   int active) noexcept
    : spec_(spec),
      experts_(experts),
      shared_gate_(shared_gate),
      gradients_(gradients),
      kernels_(kernels),
      args_(args),
      slots_(spec, args),
      tokens_(tokens),
      hidden_(spec.hidden_size),
      all_experts_(spec.all_experts()),
      top_k_(spec.top_k),
      x_stride_(args.x_stride != 0 ? args.x_stride : spec.hidden_size),
      dout_stride_(args.dout_stride != 0 ? args.dout_stride : spec.hidden_size),
      dx_stride_(args.dx_stride != 0 ? args.dx_stride : spec.hidden_size),
      columns_(z_rows(spec).stride / (spec.gated() ? 2 : 1)),
      gated_(spec.gated()),
      joint_(gated_ && spec.fc1_layout == WeightLayout::kn && spec.gate_order == GateOrder::interleaved),
      z_(z),
      barrier_(active) {
  const Layout layout(spec, args.tokens, team_size);
  const auto at = [&]<class T>(std::size_t offset, T*& pointer) {
    pointer = reinterpret_cast<T*>(static_cast<std::byte*>(workspace) + offset);
  };
  at(layout.expert_rows, expert_rows_);
  Tasks* const tasks[] = {&g_tasks_, &slope_tasks_, &dx_tasks_, &fc1_tasks_, &fc2_tasks_};
  for (std::size_t i = 0; i < 5; ++i) at(layout.tasks[i], tasks[i]->first);
  at(layout.row_slot, row_slot_);
  at(layout.slot_row, slot_row_);
  at(layout.g, g_);
  at(layout.dz, dz_);
  at(layout.dz_across, dz_across_);
  at(layout.bias_across, bias_across_);
  if (!(spec.bias && spec.weight_on_input)) bias_across_ = dz_across_;
  at(layout.wh_across, wh_across_);
  at(layout.x_rows, x_rows_);
  at(layout.dout_rows, dout_rows_);
  at(layout.dx_rows, dx_rows_);
  at(layout.dw, dw_);
  at(layout.gates, gates_);
  at(layout.gate_slopes, gate_slopes_);
  at(layout.scratch, scratch_);
}

void Backward::member(void* backward, int member) noexcept {
  static_cast<Backward*>(backward)->work(member);
}

void Backward::work(int member) noexcept {
  float* const scratch =
      reinterpret_cast<float*>(scratch_ + static_cast<std::size_t>(member) * kThreadScratch);
  const auto take = [&](Tasks& tasks, const auto& task) {
    each(tasks.next, tasks.first[all_experts_], task);
  };
  if (member == 0) plan();
  barrier_.wait();
  if (shared_gate_ != nullptr)
    each(next_gates_, ceil_div(tokens_, kTileRows), [&](std::int64_t i) { gates(i, scratch); });
  take(g_tasks_, [&](std::int64_t i) { g_tile(i, scratch); });
  if (args_.weight_gradients)
    each(next_gather_, ceil_div(expert_rows_[all_experts_], kRowsOfTask), [&](std::int64_t i) { gather(i); });
  barrier_.wait();
  take(slope_tasks_, [&](std::int64_t i) { slopes(i); });
  barrier_.wait();
  if (args_.dx != nullptr) take(dx_tasks_, [&](std::int64_t i) { dx_tile(i, scratch); });
  if (args_.weight_gradients) {
    take(fc1_tasks_, [&](std::int64_t i) { fc1_gradient(i, scratch); });
    take(fc2_tasks_, [&](std::int64_t i) { fc2_gradient(i, scratch); });
  }
  each(next_tokens_, ceil_div(tokens_, kTokensOfTask), [&](std::int64_t i) { token_weights(i); });
  barrier_.wait();
  if (args_.dx != nullptr)
    each(next_combine_, ceil_div(tokens_, kTokensOfTask), [&](std::int64_t i) { combine(i); });
  if (args_.weight_gradients && shared_gate_ != nullptr)
    each(next_gate_gradient_, ceil_div(hidden_, kColumnsOfTask), [&](std::int64_t i) { gate_gradient(i); });
}

void Backward::plan() noexcept {
  // fc1_tasks_ is not planned yet: it serves as the cursors.
  slots_.sort(0, tokens_ * slots_.per_token(), expert_rows_, fc1_tasks_.first, row_slot_, slot_row_);
  const auto width = [&](std::int64_t e) { return spec_.width_of(e); };
  plan_tiles(all_experts_, expert_rows_, kTileOutputs, width, g_tasks_.first);
  plan_tiles(
      all_experts_, expert_rows_, 1, [](std::int64_t) { return 1; }, slope_tasks_.first);
  plan_tiles(
      all_experts_, expert_rows_, kTileOutputs, [&](std::int64_t) { return hidden_; }, dx_tasks_.first);
  const std::int64_t across = ceil_div(hidden_, kTileOutputs);
  fc1_tasks_.first[0] = fc2_tasks_.first[0] = 0;
  for (std::int64_t e = 0; e < all_experts_; ++e) {  // of experts without rows too: they get zeros
    const std::int64_t tiles = ceil_div(width(e), kTileRows) * across;
    fc1_tasks_.first[e + 1] = fc1_tasks_.first[e] + (gated_ ? 2 : 1) * tiles;
    fc2_tasks_.first[e + 1] = fc2_tasks_.first[e] + tiles;
  }
}

float Backward::weight_of(std::int64_t row) const noexcept {
  return slots_.weight_of(row_slot_[row], shared_gate_ != nullptr ? gates_[token_of(row)] : 1.0f);
}

Backward::RowWeights Backward::weights_of(std::int64_t row) const noexcept {
  const float weight = weight_of(row);
  // A shared gate is of the output.
  if (spec_.weight_on_input && slots_.routed(row_slot_[row])) return {weight, 1.0f};
  return {1.0f, weight};
}

void Backward::weigh_and_bias(const ExpertWeights& w, std::int64_t begin, std::int64_t count, float weight,
                              float* gate, float* up) const noexcept {
  float bias[kTileOutputs];
  const auto half = [&](float* z, const void* from) {
    for (std::int64_t i = 0; i < count; ++i) z[i] *= weight;
    if (from == nullptr) return;
    for (std::int64_t i = 0; i < count; ++i)
      kernels_.widen(spec_.dtype, elements(from) + (begin + i) * w.fc1_bias_stride, 1, bias + i);
    for (std::int64_t i = 0; i < count; ++i) z[i] += bias[i];
  };
  if (gated_) half(gate, w.gate_bias);
  half(up, w.up_bias);
}

const std::uint16_t* Backward::x_row(std::int64_t token) const noexcept {
  return elements(args_.x) + token * x_stride_;
}
const std::uint16_t* Backward::dout_row(std::int64_t token) const noexcept {
  return elements(args_.dout) + token * dout_stride_;
}

void Backward::gates(std::int64_t task, float* scratch) noexcept {
  const std::int64_t first = task * kTileRows;
  token_gates(spec_, kernels_, shared_gate_, x_row(first), x_stride_,
              static_cast<int>(std::min<std::int64_t>(kTileRows, tokens_ - first)), scratch, gates_ + first);
}

void Backward::g_tile(std::int64_t task, float* scratch) noexcept {
  const Tile t = tile_at(
      all_experts_, expert_rows_, kTileOutputs, [&](std::int64_t e) { return spec_.width_of(e); },
      g_tasks_.first, task);
  const ExpertWeights& w = experts_[static_cast<std::size_t>(t.expert)];
  const std::uint16_t* rows[kTileRows];
  for (int m = 0; m < t.rows; ++m) rows[m] = dout_row(token_of(t.first_row + m));
  Product p;
  p.dtype = spec_.dtype;
  p.layout = transposed(spec_.fc2_layout);
  p.rows = rows;
  p.row_count = t.rows;
  p.weights = elements(w.down) + t.first_output * (p.layout == WeightLayout::nk ? w.fc2_stride : 1);
  p.weight_stride = w.fc2_stride;
  p.outputs = t.outputs;
  p.depth = hidden_;
  p.c = scratch + kProductScratch;
  p.scratch = scratch;
  kernels_.product(p);
  for (int m = 0; m < t.rows; ++m)
    std::copy_n(p.c + m * kTileOutputs, t.outputs, g_ + (t.first_row + m) * columns_ + t.first_output);
}

void Backward::gather(std::int64_t task) noexcept {
  const std::int64_t end = std::min(expert_rows_[all_experts_], (task + 1) * kRowsOfTask);
  for (std::int64_t row = task * kRowsOfTask; row < end; ++row) {
    std::copy_n(x_row(token_of(row)), hidden_, x_rows_ + row * hidden_);
    std::copy_n(dout_row(token_of(row)), hidden_, dout_rows_ + row * hidden_);
  }
}

// Of some rows of an expert: dw, dz as rows for dx, dz and w·h transposed for the weights' gradients.
void Backward::slopes(std::int64_t task) noexcept {
  const Tile t = tile_at(
      all_experts_, expert_rows_, 1, [](std::int64_t) { return 1; }, slope_tasks_.first, task);
  const DType dtype = spec_.dtype;
  const ZRows place = z_rows(spec_);
  const std::int64_t width = spec_.width_of(t.expert), first = expert_rows_[t.expert],
                     rows = rows_of(t.expert);
  std::uint16_t* const up_across = dz_across_ + first * place.stride;
  std::uint16_t* const gate_across = up_across + width * rows;
  std::uint16_t* const h_across = wh_across_ + first * columns_;
  RowWeights weights[kTileRows];
  float lanes[kTileRows][kSumLanes] = {};
  for (int m = 0; m < t.rows; ++m) weights[m] = weights_of(t.first_row + m);
  // Rows of a tile are all of routed experts or all of shared ones.
  const bool on_input = spec_.weight_on_input && slots_.routed(row_slot_[t.first_row]);
  const bool both = args_.weight_gradients && spec_.bias && on_input;
  std::uint16_t* const up_bias_across = bias_across_ + first * place.stride;
  std::uint16_t* const gate_bias_across = up_bias_across + width * rows;
  float gate[kTileOutputs], up[kTileOutputs], g[kTileOutputs], h[kTileOutputs], d_gate[kTileOutputs],
      d_up[kTileOutputs], kept_gate[kTileOutputs], kept_up[kTileOutputs];
  std::uint16_t gate_bits[kTileRows][kTileOutputs], up_bits[kTileRows][kTileOutputs],
      h_bits[kTileRows][kTileOutputs], plain_gate_bits[kTileRows][kTileOutputs],
      plain_up_bits[kTileRows][kTileOutputs];
  for (std::int64_t begin = 0; begin < width; begin += kTileOutputs) {
    const std::int64_t count = std::min<std::int64_t>(kTileOutputs, width - begin);
    for (int m = 0; m < t.rows; ++m) {
      const std::int64_t row = t.first_row + m;
      const std::uint16_t* z = z_ + row * place.stride + begin;
      if (gated_) kernels_.widen(dtype, z, count, gate);
      kernels_.widen(dtype, z + place.up, count, up);
      if (on_input) {
        std::copy_n(gate, gated_ ? count : 0, kept_gate);
        std::copy_n(up, count, kept_up);
        weigh_and_bias(experts_[static_cast<std::size_t>(t.expert)], begin, count, weights[m].input, gate,
                       up);
      }
      std::copy_n(g_ + row * columns_ + begin, count, g);
      activation_slopes(spec_.activation, spec_.activation_params, gate, up, count, h, d_gate, d_up);
      if (!on_input) add_products(g, h, count, lanes[m]);
      kernels_.scale_round(dtype, h, weights[m].output, count, h_bits[m]);
      std::uint16_t* dz = dz_ + row * place.stride;
      for (std::int64_t i = 0; i < count; ++i) g[i] *= weights[m].output;
      if (on_input) {
        // dz without weights; ⟨dz, W1·x⟩ is the weight's gradient.
        const auto half = [&](float* slope, const float* kept, std::uint16_t* bits) {
          for (std::int64_t i = 0; i < count; ++i) slope[i] *= g[i];
          add_products(slope, kept, count, lanes[m]);
          if (both) kernels_.scale_round(dtype, slope, 1.0f, count, bits);
        };
        if (gated_) half(d_gate, kept_gate, plain_gate_bits[m]);
        half(d_up, kept_up, plain_up_bits[m]);
      }
      const auto round = [&](float* slope, std::uint16_t* bits, std::uint16_t* to, std::int64_t step) {
        for (std::int64_t i = 0; !on_input && i < count; ++i) slope[i] *= g[i];
        kernels_.scale_round(dtype, slope, weights[m].input, count, bits);
        for (std::int64_t i = 0; i < count; ++i) to[i * step] = bits[i];
      };
      if (joint_) {
        round(d_gate, gate_bits[m], dz + 2 * begin, 2);
        round(d_up, up_bits[m], dz + 2 * begin + 1, 2);
      } else {
        if (gated_) round(d_gate, gate_bits[m], dz + begin, 1);
        round(d_up, up_bits[m], dz + place.up + begin, 1);
      }
    }
    if (!args_.weight_gradients) continue;
    const auto across = [&](const std::uint16_t(*bits)[kTileOutputs], std::uint16_t* to) {
      for (std::int64_t i = 0; i < count; ++i)
        for (int m = 0; m < t.rows; ++m) to[(begin + i) * rows + t.first_row - first + m] = bits[m][i];
    };
    if (gated_) across(gate_bits, gate_across);
    across(up_bits, up_across);
    across(h_bits, h_across);
    if (!both) continue;
    if (gated_) across(plain_gate_bits, gate_bias_across);
    across(plain_up_bits, up_bias_across);
  }
  // What a weight multiplies has b2 in it, where it is the output's.
  const void* bias = on_input ? nullptr : experts_[static_cast<std::size_t>(t.expert)].down_bias;
  for (int m = 0; m < t.rows; ++m) {
    const std::int64_t row = t.first_row + m;
    float sum = sum_of(lanes[m]);
    if (bias != nullptr) {
      float bias_lanes[kSumLanes] = {};
      for (std::int64_t i = 0; i < hidden_; i += kTileOutputs) {
        const std::int64_t count = std::min<std::int64_t>(kTileOutputs, hidden_ - i);
        kernels_.widen(dtype, elements(bias) + i, count, up);
        kernels_.widen(dtype, dout_row(token_of(row)) + i, count, g);
        add_products(up, g, count, bias_lanes);
      }
      sum += sum_of(bias_lanes);
    }
    dw_[row] = sum;
  }
}

void Backward::dx_tile(std::int64_t task, float* scratch) noexcept {
  const Tile t = tile_at(
      all_experts_, expert_rows_, kTileOutputs, [&](std::int64_t) { return hidden_; }, dx_tasks_.first, task);
  const ExpertWeights& w = experts_[static_cast<std::size_t>(t.expert)];
  const ZRows place = z_rows(spec_);
  const std::uint16_t* rows[kTileRows];
  float* const sums = scratch + kProductScratch;
  float* const more = sums + kTileRows * kTileOutputs;
  Product p;
  p.dtype = spec_.dtype;
  p.layout = transposed(spec_.fc1_layout);
  p.rows = rows;
  p.row_count = t.rows;
  p.weight_stride = w.fc1_stride;
  p.outputs = t.outputs;
  p.depth = spec_.width_of(t.expert);
  p.scratch = scratch;
  const std::int64_t offset = t.first_output * (p.layout == WeightLayout::nk ? w.fc1_stride : 1);
  const auto product = [&](const void* weights, std::int64_t column, float* c) {
    for (int m = 0; m < t.rows; ++m) rows[m] = dz_ + (t.first_row + m) * place.stride + column;
    p.weights = elements(weights) + offset;
    p.c = c;
    kernels_.product(p);
  };
  if (joint_) {
    p.depth *= 2;
    product(w.gate, 0, sums);
  } else {
    product(w.up, place.up, sums);
    if (gated_) {
      product(w.gate, 0, more);
      for (int m = 0; m < t.rows; ++m)
        for (int i = 0; i < t.outputs; ++i) sums[m * kTileOutputs + i] += more[m * kTileOutputs + i];
    }
  }
  for (int m = 0; m < t.rows; ++m)
    std::copy_n(sums + m * kTileOutputs, t.outputs, dx_rows_ + (t.first_row + m) * hidden_ + t.first_output);
}

void Backward::outer(const std::uint16_t* across, const std::uint16_t* ordered, std::int64_t expert,
                     const Tile& tile, float* scratch) const noexcept {
  const std::int64_t first = expert_rows_[expert], depth = rows_of(expert);
  float* const sums = scratch + kProductScratch;
  if (depth == 0) {
    std::fill_n(sums, kTileRows * kTileOutputs, 0.0f);
    return;
  }
  const std::uint16_t* rows[kTileRows];
  for (int j = 0; j < tile.rows; ++j) rows[j] = across + (tile.first_row + j) * depth;
  Product p;
  p.dtype = spec_.dtype;
  p.layout = WeightLayout::kn;
  p.rows = rows;
  p.row_count = tile.rows;
  p.weights = ordered + first * hidden_ + tile.first_output;
  p.weight_stride = hidden_;
  p.outputs = tile.outputs;
  p.depth = depth;
  p.c = sums;
  p.scratch = scratch;
  kernels_.product(p);
}

namespace {

/// Tile `local` of a gradient's, kTileRows of its `width` by kTileOutputs of the hidden size.
Tile gradient_tile(std::int64_t expert, std::int64_t width, std::int64_t hidden, std::int64_t local) {
  const std::int64_t across = ceil_div(hidden, kTileOutputs);
  Tile t;
  t.expert = expert;
  t.first_row = local / across * kTileRows;
  t.rows = static_cast<int>(std::min<std::int64_t>(kTileRows, width - t.first_row));
  t.first_output = local % across * kTileOutputs;
  t.outputs = static_cast<int>(std::min<std::int64_t>(kTileOutputs, hidden - t.first_output));
  return t;
}

}  // namespace

void Backward::fc1_gradient(std::int64_t task, float* scratch) noexcept {
  const std::int64_t e = expert_of_task(all_experts_, fc1_tasks_.first, task), rows = rows_of(e);
  if (rows == 0 && args_.accumulate_weight_gradients) return;
  const std::int64_t width = spec_.width_of(e), local = task - fc1_tasks_.first[e];
  const bool gate = gated_ && local % 2 == 1;
  const Tile t = gradient_tile(e, width, hidden_, gated_ ? local / 2 : local);
  const ExpertGradients& to = gradients_.expert(e);
  const std::int64_t at = expert_rows_[e] * z_rows(spec_).stride + (gate ? width * rows : 0);
  outer(dz_across_ + at, x_rows_, e, t, scratch);
  gradients_.put_tile(kernels_, gate ? to.gate : to.up, t.first_row, t.rows, t.first_output, t.outputs,
                      scratch + kProductScratch, args_.accumulate_weight_gradients);
  const GradientVector& bias = gate ? to.gate_bias : to.up_bias;
  if (bias.base == nullptr || t.first_output != 0) return;
  float sums[kTileRows], piece[kTileOutputs];
  for (int j = 0; j < t.rows; ++j) {
    sums[j] = 0;
    for (std::int64_t r = 0; r < rows; r += kTileOutputs) {
      const std::int64_t count = std::min<std::int64_t>(kTileOutputs, rows - r);
      kernels_.widen(spec_.dtype, bias_across_ + at + (t.first_row + j) * rows + r, count, piece);
      for (std::int64_t i = 0; i < count; ++i) sums[j] += piece[i];
    }
  }
  gradients_.put(kernels_, bias.base, t.first_row * bias.step, bias.step, sums, t.rows,
                 args_.accumulate_weight_gradients);
}

void Backward::fc2_gradient(std::int64_t task, float* scratch) noexcept {
  const std::int64_t e = expert_of_task(all_experts_, fc2_tasks_.first, task), rows = rows_of(e);
  if (rows == 0 && args_.accumulate_weight_gradients) return;
  const Tile t = gradient_tile(e, spec_.width_of(e), hidden_, task - fc2_tasks_.first[e]);
  const ExpertGradients& to = gradients_.expert(e);
  outer(wh_across_ + expert_rows_[e] * columns_, dout_rows_, e, t, scratch);
  // The tile is dW2 transposed.
  gradients_.put_tile(kernels_, {to.down.base, to.down.input_step, to.down.output_step}, t.first_row, t.rows,
                      t.first_output, t.outputs, scratch + kProductScratch,
                      args_.accumulate_weight_gradients);
  if (to.down_bias.base == nullptr || t.first_row != 0) return;
  float sums[kTileOutputs] = {}, row[kTileOutputs];
  for (std::int64_t r = expert_rows_[e]; r < expert_rows_[e + 1]; ++r) {
    const float weight = weights_of(r).output;
    kernels_.widen(spec_.dtype, dout_rows_ + r * hidden_ + t.first_output, t.outputs, row);
    for (int i = 0; i < t.outputs; ++i) sums[i] += weight * row[i];
  }
  gradients_.put(kernels_, to.down_bias.base, t.first_output, 1, sums, t.outputs,
                 args_.accumulate_weight_gradients);
}

void Backward::token_weights(std::int64_t task) noexcept {
  const std::int64_t slots = slots_.per_token(), end = std::min(tokens_, (task + 1) * kTokensOfTask);
  for (std::int64_t t = task * kTokensOfTask; t < end; ++t) {
    const std::int64_t* rows = slot_row_ + t * slots;
    if (args_.dtopk_weights != nullptr)
      for (std::int64_t j = 0; j < top_k_; ++j)
        args_.dtopk_weights[t * top_k_ + j] = rows[j] >= 0 ? dw_[rows[j]] : 0.0f;
    if (shared_gate_ == nullptr) continue;
    float sum = 0;
    for (std::int64_t j = top_k_; j < slots; ++j) sum += dw_[rows[j]];
    gate_slopes_[t] = gates_[t] * (1.0f - gates_[t]) * sum;
  }
}

void Backward::combine(std::int64_t task) noexcept {
  const std::int64_t slots = slots_.per_token(), end = std::min(tokens_, (task + 1) * kTokensOfTask);
  constexpr std::int64_t kPiece = 512;
  float sum[kPiece], more[kPiece];
  for (std::int64_t t = task * kTokensOfTask; t < end; ++t) {
    std::uint16_t* dx = static_cast<std::uint16_t*>(args_.dx) + t * dx_stride_;
    for (std::int64_t i = 0; i < hidden_; i += kPiece) {
      const std::int64_t count = std::min(kPiece, hidden_ - i);
      std::fill_n(sum, count, 0.0f);
      for (std::int64_t j = 0; j < slots; ++j) {
        const std::int64_t row = slot_row_[t * slots + j];
        if (row < 0) continue;
        const float* part = dx_rows_ + row * hidden_ + i;
        for (std::int64_t n = 0; n < count; ++n) sum[n] += part[n];
      }
      if (shared_gate_ != nullptr) {
        kernels_.widen(spec_.dtype, elements(shared_gate_) + i, count, more);
        for (std::int64_t n = 0; n < count; ++n) sum[n] += gate_slopes_[t] * more[n];
      }
      if (args_.accumulate_dx) {
        kernels_.widen(spec_.dtype, dx + i, count, more);
        for (std::int64_t n = 0; n < count; ++n) sum[n] += more[n];
      }
      kernels_.scale_round(spec_.dtype, sum, 1.0f, count, dx + i);
    }
  }
}

void Backward::gate_gradient(std::int64_t task) noexcept {
  const std::int64_t first = task * kColumnsOfTask, count = std::min(kColumnsOfTask, hidden_ - first);
  float sum[kColumnsOfTask] = {}, x[kColumnsOfTask];
  for (std::int64_t t = 0; t < tokens_; ++t) {
    kernels_.widen(spec_.dtype, x_row(t) + first, count, x);
    for (std::int64_t i = 0; i < count; ++i) sum[i] += gate_slopes_[t] * x[i];
  }
  const GradientVector& to = gradients_.shared_gate();
  gradients_.put(kernels_, to.base, first, 1, sum, count, args_.accumulate_weight_gradients);
}

}  // namespace varmoe::cpu
