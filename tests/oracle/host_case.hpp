#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "oracle/buffer16.hpp"
#include "oracle/case_options.hpp"
#include "oracle/oracle.hpp"
#include "oracle/storage_plan.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace oracle {

/// A layer's weights, inputs and routing in host memory.
struct RandomCase {
  varmoe::LayerSpec spec;
  CaseOptions options;
  StoragePlan plan;
  Buffer16 fc1, up, fc2;        ///< the storage's buffers; `up` only where gate and up are apart
  Buffer16 fc1_bias, fc2_bias;  ///< of a layer with biases
  Buffer16 x;                   ///< [T, x_stride]
  Buffer16 out;                 ///< [T, out_stride]: poison, or numbers when accumulating
  std::int64_t x_stride = 0, out_stride = 0;
  std::vector<std::int64_t> ids64;  ///< [T, k]
  std::vector<std::int32_t> ids32;  ///< the same
  std::vector<float> topk_weights;  ///< [T, k]

  /// Views for the oracle. They point into this case.
  OracleLayer oracle_layer() const {
    OracleLayer layer;
    layer.hidden_size = spec.hidden_size;
    layer.top_k = spec.top_k;
    layer.activation = spec.activation;
    layer.params = spec.activation_params;
    layer.dtype = spec.dtype;
    layer.weight_on_input = spec.weight_on_input;
    const auto bias = [](const Buffer16& b, const BiasPlace& p) {
      return OracleVector{b.data() + p.offset, p.stride};
    };
    const auto matrix = [&](const Place& p) {
      const Buffer16& b = p.part == Part::fc1 ? fc1 : p.part == Part::up ? up : fc2;
      return OracleMatrix{b.data() + p.offset, p.out_stride, p.k_stride};
    };
    for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
      const ExpertPlaces& p = plan.experts[e];
      OracleExpert expert;
      expert.width = spec.expert_widths[e];
      if (is_gated(spec.activation)) expert.gate = matrix(p.gate);
      expert.up = matrix(p.up);
      expert.down = matrix(p.down);
      if (spec.bias) {
        if (is_gated(spec.activation)) expert.gate_bias = bias(fc1_bias, p.gate_bias);
        expert.up_bias = bias(fc1_bias, p.up_bias);
        expert.down_bias = bias(fc2_bias, p.down_bias);
      }
      layer.experts.push_back(expert);
    }
    for (std::size_t e = 0; e < spec.shared_widths.size(); ++e) {
      const ExpertPlaces& p = plan.shared[e];
      layer.shared.push_back({spec.shared_widths[e],
                              is_gated(spec.activation) ? matrix(p.gate) : OracleMatrix{}, matrix(p.up),
                              matrix(p.down)});
    }
    if (spec.shared_gate) layer.shared_gate = fc2.data() + plan.shared_gate;
    return layer;
  }
  OracleCall oracle_call() const {
    OracleCall call;
    call.x = x.data();
    call.x_stride = x_stride;
    call.ids = ids64.data();
    call.weights = topk_weights.data();
    call.old_out = options.accumulate ? out.data() : nullptr;
    call.out_stride = out_stride;
    return call;
  }
  std::vector<double> reference(int threads = 0) const {
    return oracle_forward(oracle_layer(), oracle_call(), options.tokens, threads);
  }
  std::vector<double> reference(std::span<const std::int64_t> tokens, int threads = 0) const {
    return oracle_forward(oracle_layer(), oracle_call(), tokens, threads);
  }

  /// The library's description of these weights when the buffers lie at these addresses (device copies of
  /// fc1, up and fc2, or the buffers themselves). Uses the library's own storage functions.
  varmoe::Result<varmoe::Weights> weights(const void* fc1_at, const void* up_at, const void* fc2_at,
                                          const void* fc1_bias_at = nullptr,
                                          const void* fc2_bias_at = nullptr) const {
    auto made = routed_weights(fc1_at, up_at, fc2_at, fc1_bias_at, fc2_bias_at);
    if (!made || spec.shared_widths.empty()) return made;
    const auto at = [](const void* base, std::int64_t offset) -> const void* {
      return static_cast<const std::uint16_t*>(base) + offset;
    };
    const bool gated = is_gated(spec.activation);
    std::vector<const void*> fc1_list, fc2_list;
    for (const ExpertPlaces& p : plan.shared) {
      fc1_list.push_back(at(fc1_at, gated ? std::min(p.gate.offset, p.up.offset) : p.up.offset));
      fc2_list.push_back(at(fc2_at, p.down.offset));
    }
    const void* gate = spec.shared_gate ? at(fc2_at, plan.shared_gate) : nullptr;
    const bool apart = options.storage == Storage::pointers || options.storage == Storage::strided ||
                       options.storage == Storage::by_hand;
    const varmoe::Status set = apart
                                   ? made->set_shared_pointers(spec, fc1_list, fc2_list, gate)
                                   : made->set_shared_blocks(spec, fc1_list.front(), fc2_list.front(), gate);
    if (!set) return set.error();
    return made;
  }
  varmoe::Result<varmoe::Weights> routed_weights(const void* fc1_at, const void* up_at, const void* fc2_at,
                                                 const void* fc1_bias_at, const void* fc2_bias_at) const {
    varmoe::Result<varmoe::Weights> matrices = weight_matrices(fc1_at, up_at, fc2_at);
    if (!matrices || !spec.bias) return matrices;
    const auto at = [](const void* base, const BiasPlace& p) -> const void* {
      return static_cast<const std::uint16_t*>(base) + p.offset;
    };
    const bool gated = is_gated(spec.activation);
    switch (options.storage) {
      case Storage::padded:
        return matrices->with_biases(spec, fc1_bias_at, fc2_bias_at, options.padded_width);
      case Storage::pointers:
      case Storage::strided: {
        std::vector<const void*> fc1_list, fc2_list;
        for (const ExpertPlaces& p : plan.experts) {
          const bool gate_first = gated && p.gate_bias.offset < p.up_bias.offset;
          fc1_list.push_back(at(fc1_bias_at, gate_first ? p.gate_bias : p.up_bias));
          fc2_list.push_back(at(fc2_bias_at, p.down_bias));
        }
        return matrices->with_biases(spec, fc1_list, fc2_list);
      }
      case Storage::by_hand:
        for (std::size_t e = 0; e < plan.experts.size(); ++e) {
          const ExpertPlaces& p = plan.experts[e];
          varmoe::ExpertWeights& w = matrices->experts[e];
          if (gated) w.gate_bias = at(fc1_bias_at, p.gate_bias);
          w.up_bias = at(fc1_bias_at, p.up_bias);
          w.down_bias = at(fc2_bias_at, p.down_bias);
          w.fc1_bias_stride = p.up_bias.stride;
        }
        return matrices;
      default:
        return matrices->with_biases(spec, fc1_bias_at, fc2_bias_at);
    }
  }
  varmoe::Result<varmoe::Weights> weight_matrices(const void* fc1_at, const void* up_at,
                                                  const void* fc2_at) const {
    const auto at = [](const void* base, std::int64_t offset) -> const void* {
      return static_cast<const std::uint16_t*>(base) + offset;
    };
    switch (options.storage) {
      case Storage::blocks:
        return varmoe::Weights::blocks(spec, fc1_at, fc2_at);
      case Storage::padded:
        return varmoe::Weights::padded(spec, fc1_at, fc2_at, options.padded_width);
      case Storage::packed:
        return is_gated(spec.activation) ? varmoe::Weights::packed(spec, fc1_at, up_at, fc2_at)
                                         : varmoe::Weights::packed(spec, nullptr, fc1_at, fc2_at);
      case Storage::packed_joint:
        return varmoe::Weights::packed_joint(spec, fc1_at, fc2_at);
      case Storage::pointers:
      case Storage::strided: {
        std::vector<const void*> fc1_list, fc2_list;
        const bool gated = is_gated(spec.activation);
        for (const ExpertPlaces& p : plan.experts) {
          fc1_list.push_back(at(fc1_at, gated ? std::min(p.gate.offset, p.up.offset) : p.up.offset));
          fc2_list.push_back(at(fc2_at, p.down.offset));
        }
        const bool strided = options.storage == Storage::strided;
        return varmoe::Weights::pointers(spec, fc1_list, fc2_list, strided ? plan.fc1_row : 0,
                                         strided ? plan.fc2_row : 0);
      }
      case Storage::by_hand: {
        varmoe::Weights w;
        for (const ExpertPlaces& p : plan.experts) {
          varmoe::ExpertWeights e;
          if (is_gated(spec.activation)) e.gate = at(fc1_at, p.gate.offset);
          e.up = at(p.up.part == Part::up ? up_at : fc1_at, p.up.offset);
          e.down = at(fc2_at, p.down.offset);
          e.fc1_stride = std::max(p.up.out_stride, p.up.k_stride);
          e.fc2_stride = std::max(p.down.out_stride, p.down.k_stride);
          w.experts.push_back(e);
        }
        return w;
      }
    }
    throw std::logic_error("oracle: unknown storage");
  }
  varmoe::Result<varmoe::Weights> host_weights() const {
    return weights(fc1.data(), up.data(), fc2.data(), fc1_bias.data(), fc2_bias.data());
  }
};

}  // namespace oracle
