#pragma once

#include <cstdint>

#include "oracle/oracle.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace oracle {

/// The oracle's layer of a library's Weights (host pointers), read by the contract of varmoe/weights.hpp.
inline OracleLayer layer_of(const varmoe::LayerSpec& spec, const varmoe::Weights& weights) {
  OracleLayer layer;
  layer.hidden_size = spec.hidden_size;
  layer.top_k = spec.top_k;
  layer.activation = spec.activation;
  layer.params = spec.activation_params;
  layer.dtype = spec.dtype;
  layer.weight_on_input = spec.weight_on_input;
  const bool gated = is_gated(spec.activation);
  const bool nk1 = spec.fc1_layout == varmoe::WeightLayout::nk,
             nk2 = spec.fc2_layout == varmoe::WeightLayout::nk;
  const auto bits = [](const void* p) { return static_cast<const std::uint16_t*>(p); };
  const auto view = [&](const varmoe::ExpertWeights& w, std::int64_t width) {
    OracleExpert x;
    x.width = width;
    if (gated && !nk1 && spec.gate_order == varmoe::GateOrder::interleaved) {
      x.gate = {bits(w.gate), 2, w.fc1_stride};
      x.up = {bits(w.gate) + 1, 2, w.fc1_stride};
    } else {
      const std::int64_t out = nk1 ? w.fc1_stride : 1, k = nk1 ? 1 : w.fc1_stride;
      if (gated) x.gate = {bits(w.gate), out, k};
      x.up = {bits(w.up), out, k};
    }
    x.gate_bias = {bits(w.gate_bias), w.fc1_bias_stride};
    x.up_bias = {bits(w.up_bias), w.fc1_bias_stride};
    x.down_bias = {bits(w.down_bias), 1};
    x.down = {bits(w.down), nk2 ? w.fc2_stride : 1, nk2 ? 1 : w.fc2_stride};
    return x;
  };
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    layer.experts.push_back(view(weights.experts.at(e), spec.expert_widths[e]));
  for (std::size_t e = 0; e < spec.shared_widths.size(); ++e)
    layer.shared.push_back(view(weights.shared.at(e), spec.shared_widths[e]));
  if (spec.shared_gate) layer.shared_gate = bits(weights.shared_gate);
  return layer;
}

}  // namespace oracle
