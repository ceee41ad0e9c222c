// The device tables of a layer that trains.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "abi.cuh"
#include "model/backward_layer.hpp"
#include "plan/expert_table.hpp"
#include "plan/training.hpp"

using namespace varmoe;

namespace {

const void* at(std::uint64_t address) {
  return reinterpret_cast<const void*>(address);
}

template <class T>
T read(const std::vector<std::byte>& table, std::size_t offset) {
  T value;
  REQUIRE(offset + sizeof value <= table.size());
  std::memcpy(&value, table.data() + offset, sizeof value);
  return value;
}

LayerSpec spec_of(WeightLayout layout, GateOrder order, Activation activation = Activation::silu_mul) {
  LayerSpec spec;
  spec.hidden_size = 256;
  spec.expert_widths = {64, 128, 72};
  spec.top_k = 2;
  spec.fc1_layout = spec.fc2_layout = layout;
  spec.gate_order = order;
  spec.activation = activation;
  return spec;
}

}  // namespace

TEST_CASE("the backward table has W2 as an up-projection and W1 as a down-projection") {
  for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      const LayerSpec spec = spec_of(layout, order);
      const auto weights = Weights::blocks(spec, at(1 << 20), at(1 << 24));
      REQUIRE(weights.ok());
      const auto table = plan::make_backward_table(spec, *weights);
      REQUIRE(table.ok());
      const plan::ExpertTableLayout where(3);
      for (std::size_t e = 0; e < 3; ++e) {
        const ExpertWeights& w = weights->experts[e];
        const auto entry = read<abi::ExpertEntry>(*table, where.entries + e * sizeof(abi::ExpertEntry));
        CHECK(entry.up == reinterpret_cast<u64>(w.down));
        CHECK(entry.fc1_stride == w.fc2_stride);
        CHECK(entry.fc2_stride == w.fc1_stride);
        CHECK(entry.width == spec.expert_widths[e]);
        const bool one = layout == WeightLayout::kn && order == GateOrder::interleaved;
        CHECK(entry.gate == (one ? 0 : reinterpret_cast<u64>(w.gate)));
        CHECK(entry.down == reinterpret_cast<u64>(one ? w.gate : w.up));
        CHECK(entry.up_first == (!one && order == GateOrder::up_first ? 1 : 0));
      }
      // Widest first, as the sort wants it.
      CHECK(read<i32>(*table, where.order) == 1);
    }
  }
  const LayerSpec plain = spec_of(WeightLayout::nk, GateOrder::gate_first, Activation::relu2);
  const auto weights = Weights::blocks(plain, at(1 << 20), at(1 << 24));
  const auto table = plan::make_backward_table(plain, *weights);
  REQUIRE(table.ok());
  const auto entry = read<abi::ExpertEntry>(*table, 0);
  CHECK(entry.gate == 0);
  CHECK(entry.down == reinterpret_cast<u64>(weights->experts[0].up));
}

TEST_CASE("the gradient table has every destination, shared experts' and the shared gate's last") {
  LayerSpec spec = spec_of(WeightLayout::nk, GateOrder::gate_first);
  spec.shared_widths = {96};
  spec.shared_gate = true;
  auto gradients = Weights::blocks(spec, at(1 << 20), at(1 << 24));
  REQUIRE(gradients.ok());
  REQUIRE(gradients->set_shared_blocks(spec, at(1 << 26), at(1 << 27), at(1 << 28)).ok());
  const auto table = plan::make_gradient_table(spec, *gradients);
  REQUIRE(table.ok());
  REQUIRE(table->size() == 4 * sizeof(abi::GradientEntry) + sizeof(u64));
  for (std::size_t e = 0; e < 4; ++e) {
    const ExpertWeights& w = e < 3 ? gradients->experts[e] : gradients->shared[0];
    const auto entry = read<abi::GradientEntry>(*table, e * sizeof(abi::GradientEntry));
    CHECK(entry.gate == reinterpret_cast<u64>(w.gate));
    CHECK(entry.up == reinterpret_cast<u64>(w.up));
    CHECK(entry.down == reinterpret_cast<u64>(w.down));
    CHECK(entry.fc1_stride == w.fc1_stride);
    CHECK(entry.width == (e < 3 ? spec.expert_widths[e] : 96));
  }
  CHECK(read<u64>(*table, 4 * sizeof(abi::GradientEntry)) == 1 << 28);
  gradients->experts[1].down = nullptr;
  CHECK_FALSE(plan::make_gradient_table(spec, *gradients).ok());
}

TEST_CASE(
    "what is kept and the workspace grow with the tokens, and recomputing moves z from one to the other") {
  const LayerSpec spec = spec_of(WeightLayout::nk, GateOrder::gate_first);
  CHECK(plan::z_columns(spec, 128) == 256);
  CHECK(plan::training_saved_bytes(spec, 100, true) == 200 * 256 * 2);
  CHECK(plan::training_saved_bytes(spec, 100, false) == 0);
  std::size_t before = 0;
  for (const std::int64_t tokens : {1, 2, 7, 64, 1000}) {
    const std::size_t kept = plan::training_workspace_bytes(spec, tokens, true),
                      made = plan::training_workspace_bytes(spec, tokens, false);
    CHECK(kept > before);
    // Both layers' layouts in one place, then dz and at most a sum every 16 columns.
    const std::size_t layout =
        std::max(plan::workspace_layout(spec, nullptr, tokens).total_bytes,
                 plan::workspace_layout(model::backward_layer(spec), nullptr, tokens).total_bytes);
    CHECK(kept >= layout + static_cast<std::size_t>(tokens) * 2 * (256 * 2 + 128 / 16 * 4));
    CHECK(made >= kept + static_cast<std::size_t>(tokens) * 2 * 256 * 2);
    before = kept;
  }
}
