#include "cpu/tiles.hpp"

#include "cpu/activation.hpp"

namespace varmoe::cpu {
namespace {

const std::uint16_t* elements(const void* p) {
  return static_cast<const std::uint16_t*>(p);
}

/// Adds to the tile's sums, `step` apart, a bias whose entries are `stride` elements apart.
void add_bias(const LayerSpec& spec, const Kernels& kernels, const Tile& t, const void* bias,
              std::int64_t stride, std::int64_t step, float* sums) noexcept {
  float values[2 * kTileOutputs];
  kernels.widen(spec.dtype, elements(bias) + t.first_output * stride, (t.outputs - 1) * stride + 1, values);
  for (int m = 0; m < t.rows; ++m) {
    for (std::int64_t i = 0; i < t.outputs; ++i) sums[m * kTileOutputs + i * step] += values[i * stride];
  }
}

}  // namespace

UpSums up_products(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& w, const Tile& t,
                   const std::uint16_t* const* rows, float* scratch) noexcept {
  const bool gated = spec.gated(), joint = gate_and_up_joint(spec);
  float* const up = scratch + kProductScratch;
  float* const gate = up + kTileRows * kTileOutputs;
  Product p;
  p.dtype = spec.dtype;
  p.layout = spec.fc1_layout;
  p.rows = rows;
  p.row_count = t.rows;
  p.weight_stride = w.fc1_stride;
  p.outputs = t.outputs;
  p.depth = spec.hidden_size;
  p.scratch = scratch;
  const std::int64_t offset = t.first_output * (p.layout == WeightLayout::nk ? w.fc1_stride : 1);
  UpSums sums{gate, up, 1};
  if (joint) {
    p.weights = elements(w.gate) + 2 * offset;
    p.outputs = 2 * t.outputs;
    p.c = up;
    kernels.product(p);
    sums = {up, up + 1, 2};
  } else {
    p.weights = elements(w.up) + offset;
    p.c = up;
    kernels.product(p);
    if (gated) {
      p.weights = elements(w.gate) + offset;
      p.c = gate;
      kernels.product(p);
    }
  }
  return sums;
}

void weigh_and_bias(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& w, const Tile& t,
                    const float* weights, const UpSums& sums) noexcept {
  if (weights != nullptr) {
    // Not together with the bias: a compiler may make one multiply-add of the two in one loop and not in
    // another.
    for (int m = 0; m < t.rows; ++m) {
      const std::int64_t first = m * kTileOutputs;
      for (int i = 0; i < t.outputs; ++i) sums.up[first + i * sums.step] *= weights[m];
      for (int i = 0; spec.gated() && i < t.outputs; ++i) sums.gate[first + i * sums.step] *= weights[m];
    }
  }
  if (spec.bias) {
    add_bias(spec, kernels, t, w.up_bias, w.fc1_bias_stride, sums.step, sums.up);
    if (spec.gated()) add_bias(spec, kernels, t, w.gate_bias, w.fc1_bias_stride, sums.step, sums.gate);
  }
}

UpSums up_sums(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& w, const Tile& t,
               const std::uint16_t* const* rows, const float* weights, float* scratch) noexcept {
  const UpSums sums = up_products(spec, kernels, w, t, rows, scratch);
  weigh_and_bias(spec, kernels, w, t, weights, sums);
  return sums;
}

void store_h(const LayerSpec& spec, const Kernels& kernels, const Tile& t, const UpSums& sums, int m,
             std::uint16_t* h) noexcept {
  float values[kTileOutputs];
  apply_activation(spec.activation, spec.activation_params, sums.gate + m * kTileOutputs,
                   sums.up + m * kTileOutputs, sums.step, t.outputs, values);
  kernels.scale_round(spec.dtype, values, 1.0f, t.outputs, h);
}

float* down_sums(const LayerSpec& spec, const Kernels& kernels, const ExpertWeights& w, const Tile& t,
                 std::int64_t width, const std::uint16_t* const* rows, float* scratch) noexcept {
  Product p;
  p.dtype = spec.dtype;
  p.layout = spec.fc2_layout;
  p.rows = rows;
  p.row_count = t.rows;
  p.weights = elements(w.down) + t.first_output * (p.layout == WeightLayout::nk ? w.fc2_stride : 1);
  p.weight_stride = w.fc2_stride;
  p.outputs = t.outputs;
  p.depth = width;
  p.c = scratch + kProductScratch;
  p.scratch = scratch;
  kernels.product(p);
  if (spec.bias) add_bias(spec, kernels, t, w.down_bias, 1, 1, p.c);
  return p.c;
}

}  // namespace varmoe::cpu
