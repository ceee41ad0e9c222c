#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "oracle/backward_oracle.hpp"
#include "oracle/random_case.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

/// Memory of weight gradients in every storage, with elements of 16 or 32 bits. Where each element lies is
/// worked out by random_case.hpp, without src/.
namespace oracle {

class GradientBuffers {
 public:
  /// fc1, up, fc2, fc1_bias, fc2_bias.
  static constexpr std::size_t kParts = 5;

  GradientBuffers() = default;
  GradientBuffers(const varmoe::LayerSpec& spec, Storage storage, bool fp32, std::uint64_t seed = 1)
      : spec_(spec), fp32_(fp32) {
    std::int64_t padded = 0;
    for (const std::int64_t w : spec.expert_widths) padded = std::max(padded, w + 16);
    plan_ = plan_storage(spec, storage, padded, seed);
    if (spec.bias) plan_biases(spec, storage, padded, plan_);
    const std::int64_t sizes[kParts] = {plan_.size[0], plan_.size[1], plan_.size[2], plan_.bias_size[0],
                                        plan_.bias_size[1]};
    for (std::size_t i = 0; i < kParts; ++i) {
      parts_[i] = Buffer16(sizes[i] * (fp32 ? 2 : 1));
      std::fill_n(parts_[i].data(), parts_[i].size(), kPoison);  // in pairs a NaN of fp32 too
    }
  }
  GradientBuffers(GradientBuffers&&) = default;
  GradientBuffers& operator=(GradientBuffers&&) = default;

  GradientBuffers clone() const {
    GradientBuffers copy;
    copy.spec_ = spec_;
    copy.plan_ = plan_;
    copy.fp32_ = fp32_;
    for (std::size_t i = 0; i < kParts; ++i) {
      copy.parts_[i] = Buffer16(parts_[i].size());
      std::copy_n(parts_[i].data(), parts_[i].size(), copy.parts_[i].data());
    }
    return copy;
  }

  /// Numbers where gradients go: what accumulation adds to. Gaps stay poison.
  void fill(std::uint64_t seed) {
    visit(shape(), [&](std::size_t part, std::int64_t at, double&, std::uint64_t number) {
      write(part, at, 2 * detail::unit(detail::mix(seed, number)) - 1);
    });
  }

  Buffer16& part(std::size_t i) { return parts_[i]; }
  const Buffer16& part(std::size_t i) const { return parts_[i]; }
  bool fp32() const { return fp32_; }

  /// The library's description when the parts lie at these addresses.
  varmoe::Weights weights(const std::array<const void*, kParts>& at) const {
    const bool gated = is_gated(spec_.activation);
    const std::int64_t bytes = fp32_ ? 4 : 2;
    const auto address = [&](std::size_t part, std::int64_t offset) -> const void* {
      return static_cast<const std::byte*>(at[part]) + offset * bytes;
    };
    const auto fill = [&](const std::vector<ExpertPlaces>& places, bool biases,
                          std::vector<varmoe::ExpertWeights>& to) {
      for (const ExpertPlaces& p : places) {
        varmoe::ExpertWeights w;
        const auto matrix = [&](const Place& m) {
          return address(static_cast<std::size_t>(m.part), m.offset);
        };
        if (gated) w.gate = matrix(p.gate);
        w.up = matrix(p.up);
        w.down = matrix(p.down);
        w.fc1_stride = std::max(p.up.out_stride, p.up.k_stride);
        w.fc2_stride = std::max(p.down.out_stride, p.down.k_stride);
        if (biases) {
          if (gated) w.gate_bias = address(3, p.gate_bias.offset);
          w.up_bias = address(3, p.up_bias.offset);
          w.down_bias = address(4, p.down_bias.offset);
          w.fc1_bias_stride = p.up_bias.stride;
        }
        to.push_back(w);
      }
    };
    varmoe::Weights w;
    fill(plan_.experts, spec_.bias, w.experts);
    fill(plan_.shared, false, w.shared);
    if (spec_.shared_gate) w.shared_gate = address(2, plan_.shared_gate);
    return w;
  }
  varmoe::Weights weights() const {
    std::array<const void*, kParts> at{};
    for (std::size_t i = 0; i < kParts; ++i) at[i] = parts_[i].data();
    return weights(at);
  }

  /// What lies there, poison as NaN.
  RealLayer read() const {
    RealLayer layer = shape();
    visit(layer,
          [&](std::size_t part, std::int64_t at, double& value, std::uint64_t) { value = number(part, at); });
    return layer;
  }

  /// Whether everything that is no gradient is still poison.
  bool gaps_are_poison() const {
    std::array<std::vector<bool>, kParts> used;
    for (std::size_t i = 0; i < kParts; ++i) used[i].resize(static_cast<std::size_t>(parts_[i].size()));
    visit(shape(), [&](std::size_t part, std::int64_t at, double&, std::uint64_t) {
      const auto first = static_cast<std::size_t>(fp32_ ? 2 * at : at);
      used[part][first] = true;
      if (fp32_) used[part][first + 1] = true;
    });
    for (std::size_t p = 0; p < kParts; ++p)
      for (std::int64_t i = 0; i < parts_[p].size(); ++i)
        if (!used[p][static_cast<std::size_t>(i)] && parts_[p][i] != kPoison) return false;
    return true;
  }
  bool operator==(const GradientBuffers& other) const {
    for (std::size_t i = 0; i < kParts; ++i)
      if (parts_[i].size() != other.parts_[i].size() ||
          !std::equal(parts_[i].data(), parts_[i].data() + parts_[i].size(), other.parts_[i].data()))
        return false;
    return true;
  }

 private:
  RealLayer shape() const {
    RealLayer layer;
    layer.hidden_size = spec_.hidden_size;
    layer.top_k = spec_.top_k;
    layer.activation = spec_.activation;
    const auto make = [&](const std::vector<std::int64_t>& widths, bool biases) {
      std::vector<RealExpert> experts;
      for (const std::int64_t width : widths) {
        RealExpert& e = experts.emplace_back();
        e.width = width;
        const auto matrix = static_cast<std::size_t>(width * spec_.hidden_size),
                   w = static_cast<std::size_t>(width);
        const bool gated = is_gated(spec_.activation);
        if (gated) e.gate.resize(matrix);
        e.up.resize(matrix);
        e.down.resize(matrix);
        if (!biases) continue;
        if (gated) e.gate_bias.resize(w);
        e.up_bias.resize(w);
        e.down_bias.resize(static_cast<std::size_t>(spec_.hidden_size));
      }
      return experts;
    };
    layer.experts = make(spec_.expert_widths, spec_.bias);
    layer.shared = make(spec_.shared_widths, false);
    if (spec_.shared_gate) layer.shared_gate.resize(static_cast<std::size_t>(spec_.hidden_size));
    return layer;
  }
  /// fn(part, element, the layer's number, its rank) for every element.
  template <class Layer, class Fn>
  void visit(Layer&& layer, const Fn& fn) const {
    std::uint64_t rank = 0;
    const auto matrix = [&](std::vector<double>& values, const Place& p, std::int64_t depth) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto o = static_cast<std::int64_t>(i) / depth, k = static_cast<std::int64_t>(i) % depth;
        fn(static_cast<std::size_t>(p.part), p.offset + o * p.out_stride + k * p.k_stride, values[i], rank++);
      }
    };
    const auto vector = [&](std::vector<double>& values, std::size_t part, const BiasPlace& p) {
      for (std::size_t i = 0; i < values.size(); ++i)
        fn(part, p.offset + static_cast<std::int64_t>(i) * p.stride, values[i], rank++);
    };
    const auto experts = [&](std::vector<RealExpert>& list, const std::vector<ExpertPlaces>& places) {
      for (std::size_t e = 0; e < list.size(); ++e) {
        matrix(list[e].gate, places[e].gate, spec_.hidden_size);
        matrix(list[e].up, places[e].up, spec_.hidden_size);
        matrix(list[e].down, places[e].down, list[e].width);
        vector(list[e].gate_bias, 3, places[e].gate_bias);
        vector(list[e].up_bias, 3, places[e].up_bias);
        vector(list[e].down_bias, 4, places[e].down_bias);
      }
    };
    experts(layer.experts, plan_.experts);
    experts(layer.shared, plan_.shared);
    vector(layer.shared_gate, 2, {plan_.shared_gate, 1});
  }
  double number(std::size_t part, std::int64_t at) const {
    if (!fp32_) return detail::decode_table(spec_.dtype)[parts_[part][at]];
    float value = 0;
    std::memcpy(&value, parts_[part].data() + 2 * at, 4);
    return static_cast<double>(value);
  }
  void write(std::size_t part, std::int64_t at, double number) {
    if (!fp32_) {
      parts_[part][at] = encode(spec_.dtype, number);
      return;
    }
    const auto value = static_cast<float>(number);
    std::memcpy(parts_[part].data() + 2 * at, &value, 4);
  }

  varmoe::LayerSpec spec_;
  StoragePlan plan_;
  bool fp32_ = false;
  std::array<Buffer16, kParts> parts_;
};

}  // namespace oracle
