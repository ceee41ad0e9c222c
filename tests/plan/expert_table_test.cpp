#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "plan/device_table.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

const void* pointer(std::uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}

LayerSpec uneven(WeightLayout layout = WeightLayout::nk) {
  LayerSpec spec = uniform_spec(64, 6, 8, 2);
  spec.expert_widths = {16, 8, 32, 16, 32, 8};
  spec.fc1_layout = spec.fc2_layout = layout;
  return spec;
}

DeviceTable table_of(const LayerSpec& spec, const Result<Weights>& weights) {
  REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
  const auto bytes = plan::make_expert_table(spec, *weights);
  REQUIRE(bytes.ok());
  return take_apart(*bytes, spec.num_experts());
}

constexpr std::uintptr_t kFc1 = 0x7000000000, kFc2 = 0x7100000000;

}  // namespace

TEST_CASE(
    "the order lists experts widest first, equal widths by index, and classes begin where widths change") {
  const DeviceTable table = device_table(uneven());
  CHECK(table.order == std::vector<i32>{2, 4, 0, 3, 1, 5});
  std::vector<i32> begin(17, 6);
  begin[0] = 0;
  begin[1] = 2;
  begin[2] = 4;
  CHECK(table.class_begin == begin);
  CHECK(table.one_class == std::vector<i32>{0, 6});
  const i32 classes[] = {1, 2, 0, 1, 0, 2};
  const i32 widths[] = {16, 8, 32, 16, 32, 8};
  for (std::size_t e = 0; e < 6; ++e) {
    CHECK(table.entries[e].width_class == classes[e]);
    CHECK(table.entries[e].width == widths[e]);
  }
}

TEST_CASE("random layers: the order is a permutation, and each class holds its experts and no others") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    LayerSpec spec = uniform_spec(64, 1 + static_cast<int>(random() % 80), 8, 1);
    const int kinds = 1 + static_cast<int>(random() % 16);
    for (auto& width : spec.expert_widths) width = 8 * (1 + static_cast<int>(random() % kinds));
    const auto classes = width_classes(spec);
    const DeviceTable table = device_table(spec);
    std::vector<i32> sorted = table.order, all(spec.expert_widths.size());
    std::sort(sorted.begin(), sorted.end());
    std::iota(all.begin(), all.end(), 0);
    REQUIRE(sorted == all);
    for (std::size_t c = 0; c < classes.size(); ++c) {
      const WidthClass& expected = classes[classes.size() - 1 - c];
      REQUIRE(table.class_begin[c + 1] - table.class_begin[c] == expected.count);
      for (i32 i = table.class_begin[c]; i < table.class_begin[c + 1]; ++i) {
        const auto e = static_cast<std::size_t>(table.order[static_cast<std::size_t>(i)]);
        REQUIRE(spec.expert_widths[e] == expected.width);
        REQUIRE(table.entries[e].width_class == static_cast<i32>(c));
        if (i > table.class_begin[c])
          REQUIRE(table.order[static_cast<std::size_t>(i) - 1] < table.order[static_cast<std::size_t>(i)]);
      }
    }
    // Behind the last class the list is at its end.
    for (std::size_t c = classes.size(); c <= 16; ++c) REQUIRE(table.class_begin[c] == spec.num_experts());
  }
}

TEST_CASE("more widths than classes: one class of all, still widest first") {
  LayerSpec spec = uniform_spec(64, 40, 8, 1);
  for (std::size_t e = 0; e < 40; ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 3 % 17));
  const DeviceTable table = device_table(spec);
  for (std::size_t e = 0; e < 40; ++e) {
    CHECK(table.entries[e].width_class == 0);
    CHECK(table.entries[e].width == spec.expert_widths[e]);
  }
  for (std::size_t i = 1; i < 40; ++i) {
    const auto width = [&](std::size_t p) {
      return spec.expert_widths[static_cast<std::size_t>(table.order[p])];
    };
    const bool in_order =
        width(i - 1) > width(i) || (width(i - 1) == width(i) && table.order[i - 1] < table.order[i]);
    CHECK(in_order);
  }
  CHECK(table.one_class == std::vector<i32>{0, 40});
}

TEST_CASE("blocks: entries hold where each expert's matrices begin") {
  const LayerSpec spec = uneven();
  const DeviceTable table = table_of(spec, Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
  std::uint64_t before = 0;
  for (std::size_t e = 0; e < 6; ++e) {
    const auto width = static_cast<std::uint64_t>(spec.expert_widths[e]);
    CHECK(table.entries[e].gate == kFc1 + before * 2 * 64 * 2);
    CHECK(table.entries[e].up == kFc1 + (before * 2 + width) * 64 * 2);
    CHECK(table.entries[e].down == kFc2 + before * 64 * 2);
    CHECK(table.entries[e].fc1_stride == 64);
    CHECK(table.entries[e].fc2_stride == spec.expert_widths[e]);
    before += width;
  }
}

TEST_CASE("padded, with the up half first: distances are the padded ones, widths the true ones") {
  LayerSpec spec = uneven();
  spec.gate_order = GateOrder::up_first;
  const DeviceTable table = table_of(spec, Weights::padded(spec, pointer(kFc1), pointer(kFc2), 40));
  for (std::size_t e = 0; e < 6; ++e) {
    CHECK(table.entries[e].up == kFc1 + e * 80 * 64 * 2);
    CHECK(table.entries[e].gate == kFc1 + (e * 80 + 40) * 64 * 2);
    CHECK(table.entries[e].down == kFc2 + e * 40 * 64 * 2);
    CHECK(table.entries[e].fc2_stride == 40);
    CHECK(table.entries[e].width == spec.expert_widths[e]);
  }
}

TEST_CASE("packed kn, ungated: no gate, columns side by side") {
  LayerSpec spec = uneven(WeightLayout::kn);
  spec.activation = Activation::relu2;
  const DeviceTable table = table_of(spec, Weights::packed(spec, nullptr, pointer(kFc1), pointer(kFc2)));
  std::uint64_t before = 0;
  for (std::size_t e = 0; e < 6; ++e) {
    CHECK(table.entries[e].gate == 0);
    CHECK(table.entries[e].up == kFc1 + before * 2);
    CHECK(table.entries[e].down == kFc2 + before * 64 * 2);
    CHECK(table.entries[e].fc1_stride == 112);
    CHECK(table.entries[e].fc2_stride == 64);
    before += static_cast<std::uint64_t>(spec.expert_widths[e]);
  }
}

TEST_CASE("packed_joint, interleaved: the gate is the whole matrix") {
  LayerSpec spec = uneven(WeightLayout::kn);
  spec.gate_order = GateOrder::interleaved;
  const DeviceTable table = table_of(spec, Weights::packed_joint(spec, pointer(kFc1), pointer(kFc2)));
  std::uint64_t before = 0;
  for (std::size_t e = 0; e < 6; ++e) {
    CHECK(table.entries[e].gate == kFc1 + 2 * before * 2);
    CHECK(table.entries[e].down == kFc2 + before * 64 * 2);
    CHECK(table.entries[e].fc1_stride == 224);
    before += static_cast<std::uint64_t>(spec.expert_widths[e]);
  }
}

TEST_CASE("up_first says which of gate and up has the lower address, whatever the spec calls it") {
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved}) {
      LayerSpec spec = uneven(layout);
      spec.gate_order = order;
      for (const auto& entry : table_of(spec, Weights::blocks(spec, pointer(kFc1), pointer(kFc2))).entries)
        CHECK(entry.up_first == (order == GateOrder::up_first ? 1 : 0));
      spec.activation = Activation::relu2;
      for (const auto& entry : table_of(spec, Weights::blocks(spec, pointer(kFc1), pointer(kFc2))).entries)
        CHECK(entry.up_first == 0);
    }
  }
  // Matrices that lie apart: address by address.
  const LayerSpec spec = uneven();
  auto weights = Weights::blocks(spec, pointer(kFc1), pointer(kFc2));
  REQUIRE(weights.ok());
  std::swap(weights->experts[2].gate, weights->experts[2].up);
  weights->experts[4].up = pointer(kFc1 - 0x100000);
  const DeviceTable table = table_of(spec, weights);
  for (std::size_t e = 0; e < 6; ++e) CHECK(table.entries[e].up_first == (e == 2 || e == 4 ? 1 : 0));
}

TEST_CASE("pointers: each expert has its own") {
  const LayerSpec spec = uneven();
  std::vector<const void*> fc1, fc2;
  for (std::uintptr_t e = 0; e < 6; ++e) {
    fc1.push_back(pointer(0x8000000000 - e * 0x100000));
    fc2.push_back(pointer(0x9000000000 + e * 0x10));
  }
  const DeviceTable table = table_of(spec, Weights::pointers(spec, fc1, fc2, 72, 48));
  for (std::size_t e = 0; e < 6; ++e) {
    CHECK(table.entries[e].gate == 0x8000000000 - e * 0x100000);
    CHECK(table.entries[e].up ==
          table.entries[e].gate + static_cast<std::uint64_t>(spec.expert_widths[e]) * 72 * 2);
    CHECK(table.entries[e].down == 0x9000000000 + e * 0x10);
    CHECK(table.entries[e].fc1_stride == 72);
    CHECK(table.entries[e].fc2_stride == 48);
  }
}

TEST_CASE("weights that do not fit the layer make no table") {
  const LayerSpec spec = uneven();
  auto weights = Weights::blocks(spec, pointer(kFc1), pointer(kFc2));
  REQUIRE(weights.ok());
  const auto refused = [&](const std::function<void(Weights&)>& change) {
    Weights changed = *weights;
    change(changed);
    const auto table = plan::make_expert_table(spec, changed);
    REQUIRE_FALSE(table.ok());
    CHECK(table.error().code() == ErrorCode::invalid_argument);
    return table.error().message();
  };
  refused([](Weights& w) { w.experts.pop_back(); });
  CHECK(refused([](Weights& w) { w.experts[3].down = nullptr; }).find("expert 3") != std::string::npos);
  CHECK(refused([](Weights& w) { w.experts[5].up = pointer(kFc1 + 8); }).find("expert 5") !=
        std::string::npos);
  CHECK(refused([](Weights& w) { w.experts[1].fc1_stride = 32; }).find("fc1_stride") != std::string::npos);
}

TEST_CASE("biases: their addresses and stride by expert; zeroes of a layer without") {
  LayerSpec spec = uneven(WeightLayout::kn);
  spec.gate_order = GateOrder::interleaved;
  const auto biases_of = [](const LayerSpec& layer, const Weights& weights) {
    const auto bytes = plan::make_expert_table(layer, weights);
    REQUIRE(bytes.ok());
    const plan::ExpertTableLayout layout(layer.num_experts());
    REQUIRE(bytes->size() == layout.bytes);
    std::vector<abi::ExpertBias> biases(layer.expert_widths.size());
    std::memcpy(biases.data(), bytes->data() + layout.biases, biases.size() * sizeof(abi::ExpertBias));
    return biases;
  };
  const auto plain = Weights::blocks(spec, pointer(kFc1), pointer(kFc2));
  REQUIRE(plain.ok());
  for (const abi::ExpertBias& b : biases_of(spec, *plain)) CHECK((b.gate | b.up | b.down) == 0);
  spec.bias = true;
  const auto with = plain->with_biases(spec, pointer(0x5000), pointer(0x9000));
  REQUIRE(with.ok());
  const auto biases = biases_of(spec, *with);
  CHECK(biases[2].gate == 0x5000 + 2 * 2 * (16 + 8));
  CHECK(biases[2].up == biases[2].gate + 2);
  CHECK(biases[2].down == 0x9000 + 2 * 2 * 64);
  CHECK(biases[2].fc1_stride == 2);
  CHECK_FALSE(plan::make_expert_table(spec, *plain).ok());
}

TEST_CASE("the table's parts are aligned for what they hold and do not overlap") {
  for (std::int64_t experts = 1; experts <= kMaxExperts; ++experts) {
    const plan::ExpertTableLayout layout(experts);
    const auto n = static_cast<std::size_t>(experts);
    REQUIRE(layout.entries == 0);
    REQUIRE(layout.order >= n * sizeof(abi::ExpertEntry));
    REQUIRE(layout.class_begin >= layout.order + n * 4);
    REQUIRE(layout.one_class >= layout.class_begin + 17 * 4);
    REQUIRE(layout.fc1_maps >= layout.one_class + 8);
    REQUIRE(layout.fc2_maps >= layout.fc1_maps + n * sizeof(abi::TensorMap));
    REQUIRE(layout.biases >= layout.fc2_maps + n * sizeof(abi::TensorMap));
    REQUIRE(layout.bytes >= layout.biases + n * sizeof(abi::ExpertBias));
    REQUIRE(layout.biases % 16 == 0);
    REQUIRE((layout.order | layout.class_begin | layout.one_class) % 4 == 0);
    // The copy engine reads maps at multiples of 64 bytes; the table itself lies at one of 256.
    REQUIRE((layout.fc1_maps | layout.fc2_maps) % 64 == 0);
  }
}
