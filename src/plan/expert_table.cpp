#include "plan/expert_table.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "plan/plan.hpp"
#include "plan/weight_maps.hpp"

namespace varmoe::plan {
namespace {

u64 address(const void* p) {
  return reinterpret_cast<u64>(p);
}

}  // namespace

Result<std::vector<std::byte>> make_expert_table(const LayerSpec& spec, const Weights& weights,
                                                 const cuda::Driver* tensor_maps) {
  if (auto ok = weights.validate(spec); !ok) return ok.error();
  const auto classes = width_classes(spec);  // ascending
  const bool compiled_in = classes.size() <= kMaxWidthClasses;
  // Widest first: the order in which kernels index their classes.
  const auto class_of = [&](std::int64_t width) {
    const auto at = std::lower_bound(classes.begin(), classes.end(), width,
                                     [](const WidthClass& c, std::int64_t w) { return c.width < w; });
    return static_cast<i32>(classes.end() - at - 1);
  };

  const ExpertTableLayout layout(spec.all_experts());
  std::vector<std::byte> table(layout.bytes);
  // Interleaved kn weights are one matrix, and what `up` holds is ignored.
  const bool apart =
      spec.gated() && !(spec.fc1_layout == WeightLayout::kn && spec.gate_order == GateOrder::interleaved);
  const auto up_first = [apart](const ExpertWeights& w) { return apart && address(w.up) < address(w.gate); };
  std::vector<abi::ExpertEntry> entries;
  const std::int64_t experts = spec.all_experts();
  entries.reserve(static_cast<std::size_t>(experts));
  for (std::int64_t e = 0; e < experts; ++e) {
    const ExpertWeights& w = weights_of(weights, e);
    entries.push_back({address(w.gate),
                       address(w.up),
                       address(w.down),
                       w.fc1_stride,
                       w.fc2_stride,
                       static_cast<i32>(spec.width_of(e)),
                       compiled_in ? class_of(spec.width_of(e)) : 0,
                       up_first(w) ? 1 : 0,
                       {}});
  }
  std::vector<abi::ExpertBias> biases;
  biases.reserve(weights.experts.size());
  for (const ExpertWeights& w : weights.experts) {
    biases.push_back({address(w.gate_bias), address(w.up_bias), address(w.down_bias),
                      static_cast<i32>(w.fc1_bias_stride), 0});
  }
  std::vector<i32> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](i32 a, i32 b) { return spec.width_of(a) > spec.width_of(b); });
  i32 class_begin[abi::kMaxClasses + 1] = {};
  if (compiled_in) {
    for (const auto& entry : entries) ++class_begin[entry.width_class + 1];
    std::partial_sum(std::begin(class_begin), std::end(class_begin), std::begin(class_begin));
  }
  const i32 one_class[2] = {0, static_cast<i32>(experts)};
  const u64 shared_gate = address(weights.shared_gate);

  std::memcpy(table.data() + layout.entries, entries.data(), entries.size() * sizeof(entries[0]));
  std::memcpy(table.data() + layout.order, order.data(), order.size() * sizeof(order[0]));
  std::memcpy(table.data() + layout.class_begin, class_begin, sizeof class_begin);
  std::memcpy(table.data() + layout.one_class, one_class, sizeof one_class);
  std::memcpy(table.data() + layout.shared_gate, &shared_gate, sizeof shared_gate);
  if (spec.bias) std::memcpy(table.data() + layout.biases, biases.data(), biases.size() * sizeof(biases[0]));
  if (tensor_maps != nullptr) {
    if (auto ok = encode_weight_maps(*tensor_maps, spec, weights, table.data() + layout.fc1_maps,
                                     table.data() + layout.fc2_maps);
        !ok)
      return ok.error();
  }
  return table;
}

}  // namespace varmoe::plan
