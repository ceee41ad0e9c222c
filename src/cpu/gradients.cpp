#include "cpu/gradients.hpp"

#include <algorithm>

namespace varmoe::cpu {

namespace {

/// ExpertWeights name what is const to a forward; here the same pointers are written through.
void* writable(const void* p) {
  return const_cast<void*>(p);
}

ExpertGradients expert_gradients(const LayerSpec& spec, std::int64_t element_bytes, const ExpertWeights& w) {
  const bool gated = spec.gated(), nk1 = spec.fc1_layout == WeightLayout::nk,
             nk2 = spec.fc2_layout == WeightLayout::nk;
  ExpertGradients g;
  if (gated && !nk1 && spec.gate_order == GateOrder::interleaved) {
    g.gate = {writable(w.gate), 2, w.fc1_stride};
    g.up = {static_cast<std::byte*>(writable(w.gate)) + element_bytes, 2, w.fc1_stride};
  } else {
    const std::int64_t output = nk1 ? w.fc1_stride : 1, input = nk1 ? 1 : w.fc1_stride;
    if (gated) g.gate = {writable(w.gate), output, input};
    g.up = {writable(w.up), output, input};
  }
  g.down = {writable(w.down), nk2 ? w.fc2_stride : 1, nk2 ? 1 : w.fc2_stride};
  g.gate_bias = {writable(w.gate_bias), w.fc1_bias_stride};
  g.up_bias = {writable(w.up_bias), w.fc1_bias_stride};
  g.down_bias = {writable(w.down_bias), 1};
  return g;
}

}  // namespace

Gradients::Gradients(const LayerSpec& spec, GradientType type, const Weights& weights)
    : shared_gate_{writable(weights.shared_gate), 1}, dtype_(spec.dtype), fp32_(type == GradientType::fp32) {
  for (const auto* list : {&weights.experts, &weights.shared})
    for (const ExpertWeights& w : *list) experts_.push_back(expert_gradients(spec, fp32_ ? 4 : 2, w));
}

void Gradients::put(const Kernels& kernels, void* base, std::int64_t first, std::int64_t step, float* values,
                    std::int64_t count, bool accumulate) const noexcept {
  if (fp32_) {
    float* to = static_cast<float*>(base) + first;
    for (std::int64_t i = 0; i < count; ++i) to[i * step] = accumulate ? to[i * step] + values[i] : values[i];
    return;
  }
  std::uint16_t* to = static_cast<std::uint16_t*>(base) + first;
  constexpr std::int64_t kPiece = 512;
  std::uint16_t bits[kPiece];
  float old[kPiece];
  for (std::int64_t done = 0; done < count; done += kPiece, to += kPiece * step, values += kPiece) {
    const std::int64_t n = std::min(kPiece, count - done);
    if (accumulate) {
      for (std::int64_t i = 0; i < n; ++i) bits[i] = to[i * step];
      kernels.widen(dtype_, bits, n, old);
      for (std::int64_t i = 0; i < n; ++i) values[i] = old[i] + values[i];
    }
    kernels.scale_round(dtype_, values, 1.0f, n, bits);
    for (std::int64_t i = 0; i < n; ++i) to[i * step] = bits[i];
  }
}

void Gradients::put_tile(const Kernels& kernels, const GradientMatrix& to, std::int64_t first_output,
                         int outputs, std::int64_t first_input, int inputs, float* sums,
                         bool accumulate) const noexcept {
  const std::int64_t first = first_output * to.output_step + first_input * to.input_step;
  if (to.input_step == 1) {
    for (int j = 0; j < outputs; ++j)
      put(kernels, to.base, first + j * to.output_step, 1, sums + j * kTileOutputs, inputs, accumulate);
    return;
  }
  float column[kTileRows];
  for (int i = 0; i < inputs; ++i) {  // along the outputs, which lie together
    for (int j = 0; j < outputs; ++j) column[j] = sums[j * kTileOutputs + i];
    put(kernels, to.base, first + i * to.input_step, to.output_step, column, outputs, accumulate);
  }
}

void Gradients::clear(const LayerSpec& spec, const Parts& parts) const noexcept {
  const auto zero = [&](void* base, std::int64_t first, std::int64_t step, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      if (fp32_)
        static_cast<float*>(base)[first + i * step] = 0;
      else
        static_cast<std::uint16_t*>(base)[first + i * step] = 0;
    }
  };
  const auto matrix = [&](const GradientMatrix& m, std::int64_t outputs, std::int64_t inputs) {
    if (m.base == nullptr) return;
    const bool along_inputs = m.input_step == 1;
    const std::int64_t lines = along_inputs ? outputs : inputs;
    for (std::int64_t l = 0; l < lines; ++l) {
      if (along_inputs)
        zero(m.base, l * m.output_step, 1, inputs);
      else
        zero(m.base, l * m.input_step, m.output_step, outputs);
    }
  };
  const auto vector = [&](const GradientVector& v, std::int64_t count) {
    if (v.base != nullptr) zero(v.base, 0, v.step, count);
  };
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const ExpertGradients& g = expert(e);
    const std::int64_t width = spec.width_of(e);
    if (parts.fc1) {
      matrix(g.gate, width, spec.hidden_size);
      matrix(g.up, width, spec.hidden_size);
      vector(g.gate_bias, width);
      vector(g.up_bias, width);
    }
    if (!parts.fc2) continue;
    matrix(g.down, spec.hidden_size, width);
    vector(g.down_bias, spec.hidden_size);
  }
  if (parts.shared_gate) vector(shared_gate_, spec.hidden_size);
}

}  // namespace varmoe::cpu
