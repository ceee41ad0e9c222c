#include "model/backward_layer.hpp"

#include "model/gradient_config.hpp"

namespace varmoe::model {
namespace {

WeightLayout other(WeightLayout layout) {
  return layout == WeightLayout::nk ? WeightLayout::kn : WeightLayout::nk;
}

}  // namespace

LayerSpec backward_layer(const LayerSpec& spec) {
  LayerSpec back = spec;
  back.activation = Activation::identity;
  back.activation_params = {};
  back.gate_order = GateOrder::gate_first;
  back.fc1_layout = other(spec.fc2_layout);
  back.fc2_layout = other(spec.fc1_layout);
  back.bias = false;
  back.shared_gate = false;
  back.batch_invariant = false;
  // dz carries the weights, wherever the layer has them: rows are summed as they are.
  back.weight_on_input = true;
  return back;
}

LayerSpec backward_down_layer(const LayerSpec& spec) {
  LayerSpec back = backward_layer(spec);
  if (!spec.gated()) return back;
  const bool alternate = gate_and_up_alternate(spec);
  const auto extent = [&](std::int64_t& width) { width = alternate ? 2 * width : h_columns(width) * 2; };
  for (std::int64_t& width : back.expert_widths) extent(width);
  for (std::int64_t& width : back.shared_widths) extent(width);
  return back;
}

}  // namespace varmoe::model
