#include <algorithm>
#include <cstring>

#include "abi.cuh"
#include "cuda/memory.hpp"
#include "cuda/tensor_map.hpp"
#include "model/backward_layer.hpp"
#include "model/gradient_config.hpp"
#include "plan/expert_table.hpp"
#include "plan/training.hpp"
#include "plan/weight_maps.hpp"

namespace varmoe::plan {
namespace {

u64 address(const void* p) {
  return reinterpret_cast<u64>(p);
}

/// Gate and up lie apart, so that a product with both walks two matrices.
bool two_matrices(const LayerSpec& spec) {
  return spec.gated() && !model::gate_and_up_alternate(spec);
}

/// dz·W1's weights: K is gate's columns, then up's, in the order of their addresses
/// (abi::ExpertEntry::up_first).
cuda::TensorBoxes fc1_as_down(const LayerSpec& spec, const ExpertWeights& w, std::uint64_t width) {
  const auto hidden = static_cast<std::uint64_t>(spec.hidden_size);
  const std::uint64_t row = static_cast<std::uint64_t>(w.fc1_stride) * 2;
  const bool kn = spec.fc1_layout == WeightLayout::kn;
  cuda::TensorBoxes t;
  t.bf16 = spec.dtype == DType::bf16;
  if (!two_matrices(spec)) {
    const std::uint64_t outputs = spec.gated() ? 2 * width : width;
    t.base = address(spec.gated() ? w.gate : w.up);
    t.rank = 2;
    t.size = {kn ? outputs : hidden, kn ? hidden : outputs};
    t.stride = {row};
    t.box = {64, 64};
    return t;
  }
  const u64 gate = address(w.gate), up = address(w.up);
  t.base = std::min(gate, up);
  t.rank = 3;
  t.size = {kn ? width : hidden, kn ? hidden : width, 2};
  t.stride = {row, std::max(gate, up) - t.base};
  t.box = {64, 64, 1};
  return t;
}

}  // namespace

Result<std::vector<std::byte>> make_backward_table(const LayerSpec& spec, const Weights& weights,
                                                   const cuda::Driver* tensor_maps) {
  if (auto ok = weights.validate(spec); !ok) return ok.error();
  const LayerSpec back = model::backward_layer(spec);
  const auto turned = [&](const ExpertWeights& w) {
    ExpertWeights t;
    t.up = w.down;
    t.down = spec.gated() && !two_matrices(spec) ? w.gate : w.up;
    t.fc1_stride = w.fc2_stride;
    t.fc2_stride = w.fc1_stride;
    return t;
  };
  Weights turned_weights;
  for (const ExpertWeights& w : weights.experts) turned_weights.experts.push_back(turned(w));
  for (const ExpertWeights& w : weights.shared) turned_weights.shared.push_back(turned(w));
  auto table = make_expert_table(back, turned_weights, tensor_maps);
  if (!table) return table;
  const ExpertTableLayout layout(spec.all_experts());
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const ExpertWeights& w = weights_of(weights, e);
    const auto i = static_cast<std::size_t>(e);
    if (two_matrices(spec)) {
      std::byte* const at = table->data() + layout.entries + i * sizeof(abi::ExpertEntry);
      abi::ExpertEntry entry;
      std::memcpy(&entry, at, sizeof entry);
      entry.gate = address(w.gate);
      entry.up_first = address(w.up) < address(w.gate) ? 1 : 0;
      std::memcpy(at, &entry, sizeof entry);
    }
    if (tensor_maps == nullptr || !spec.gated()) continue;
    abi::TensorMap map{};
    if (auto ok = cuda::encode_tensor_map(
            *tensor_maps, fc1_as_down(spec, w, static_cast<std::uint64_t>(spec.width_of(e))), &map);
        !ok)
      return ok.error();
    std::memcpy(table->data() + layout.fc2_maps + i * sizeof map, &map, sizeof map);
  }
  return table;
}

Result<std::vector<std::byte>> make_gradient_table(const LayerSpec& spec, const Weights& gradients) {
  if (auto ok = gradients.validate(spec); !ok) return ok.error();
  std::vector<abi::GradientEntry> entries;
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const ExpertWeights& w = weights_of(gradients, e);
    entries.push_back({address(w.gate),
                       address(w.up),
                       address(w.down),
                       w.fc1_stride,
                       w.fc2_stride,
                       address(w.gate_bias),
                       address(w.up_bias),
                       address(w.down_bias),
                       static_cast<i32>(w.fc1_bias_stride),
                       static_cast<i32>(spec.width_of(e)),
                       {}});
  }
  const u64 gate = address(gradients.shared_gate);
  std::vector<std::byte> table(entries.size() * sizeof(abi::GradientEntry) + sizeof gate);
  std::memcpy(table.data(), entries.data(), entries.size() * sizeof(abi::GradientEntry));
  std::memcpy(table.data() + entries.size() * sizeof(abi::GradientEntry), &gate, sizeof gate);
  return table;
}

Status clear_gradients(const cuda::Driver& driver, const LayerSpec& spec, GradientType type,
                       const Weights& gradients, void* stream, const GradientParts& parts) noexcept {
  const std::int64_t bytes = type == GradientType::fp32 ? 4 : 2;
  // Rows of `columns` elements, `stride` apart.
  const auto clear = [&](const void* base, std::int64_t rows, std::int64_t columns,
                         std::int64_t stride) -> Status {
    if (base == nullptr || rows == 0) return {};
    return cuda::fill_rows_async(driver, address(base), static_cast<std::size_t>(stride * bytes),
                                 static_cast<std::size_t>(columns * bytes), static_cast<std::size_t>(rows),
                                 stream);
  };
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const ExpertWeights& w = weights_of(gradients, e);
    const std::int64_t width = spec.width_of(e), hidden = spec.hidden_size;
    const bool alternate = model::gate_and_up_alternate(spec);
    const std::int64_t outputs = alternate ? 2 * width : width;
    const bool kn = spec.fc1_layout == WeightLayout::kn, down_kn = spec.fc2_layout == WeightLayout::kn;
    if (parts.fc1) {
      for (const void* matrix : {alternate ? nullptr : w.up, spec.gated() ? w.gate : nullptr})
        if (auto ok = clear(matrix, kn ? hidden : outputs, kn ? outputs : hidden, w.fc1_stride); !ok)
          return ok;
      for (const void* bias : {w.gate_bias, w.up_bias})
        if (auto ok = clear(spec.bias ? bias : nullptr, width, 1, w.fc1_bias_stride); !ok) return ok;
    }
    if (!parts.fc2) continue;
    if (auto ok = clear(w.down, down_kn ? width : hidden, down_kn ? hidden : width, w.fc2_stride); !ok)
      return ok;
    if (auto ok = clear(spec.bias ? w.down_bias : nullptr, 1, hidden, hidden); !ok) return ok;
  }
  return spec.shared_gate && parts.shared_gate
             ? clear(gradients.shared_gate, 1, spec.hidden_size, spec.hidden_size)
             : Status{};
}

}  // namespace varmoe::plan
