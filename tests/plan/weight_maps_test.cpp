// Tensor maps of the weights: which element of which matrix each coordinate names, and what lies outside.
#include "plan/weight_maps.hpp"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/fake_gpu.hpp"
#include "plan/device_table.hpp"

using namespace varmoe;
using namespace varmoe::test;
using fake_cuda::TensorMap;

namespace {

constexpr std::uintptr_t kFc1 = 0x7000000000, kFc2 = 0x7100000000;

const void* pointer(std::uintptr_t address) {
  return reinterpret_cast<const void*>(address);
}
std::uint64_t address(const void* p) {
  return reinterpret_cast<std::uint64_t>(p);
}

LayerSpec layer_of(WeightLayout layout, GateOrder order, Activation activation = Activation::silu_mul) {
  LayerSpec spec = uniform_spec(136, 4, 8, 2, activation);
  spec.expert_widths = {72, 8, 264, 64};
  spec.fc1_layout = spec.fc2_layout = layout;
  spec.gate_order = order;
  return spec;
}

Weights must(Result<Weights> weights) {
  REQUIRE_MESSAGE(weights.ok(), (weights.ok() ? "" : weights.error().message()));
  return *std::move(weights);
}

struct Maps {
  std::vector<TensorMap> fc1, fc2;  ///< of each expert
};

struct Fixture {
  std::shared_ptr<cuda::Device> device = fake_device();
  cuda::ContextScope current{*device};

  Result<std::vector<std::byte>> table(const LayerSpec& spec, const Weights& weights) const {
    return plan::make_expert_table(spec, weights, &device->driver());
  }
  Maps maps(const LayerSpec& spec, const Weights& weights) const {
    const auto bytes = table(spec, weights);
    REQUIRE_MESSAGE(bytes.ok(), (bytes.ok() ? "" : bytes.error().message()));
    const plan::ExpertTableLayout at(spec.num_experts());
    REQUIRE(bytes->size() == at.bytes);
    Maps all;
    for (std::size_t e = 0; e < spec.expert_widths.size(); ++e) {
      for (const auto& [offset, list] :
           {std::pair{at.fc1_maps, &all.fc1}, std::pair{at.fc2_maps, &all.fc2}}) {
        const auto map = fake_cuda::read_tensor_map(bytes->data() + offset + e * sizeof(abi::TensorMap));
        REQUIRE(map.has_value());
        list->push_back(*map);
      }
    }
    return all;
  }
  Maps blocks(const LayerSpec& spec) const {
    return maps(spec, must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2))));
  }
};

/// The address that these coordinates name; 0 when they lie outside, where zero arrives.
std::uint64_t element(const TensorMap& map, std::vector<std::uint64_t> at) {
  REQUIRE(at.size() == map.size.size());
  std::uint64_t address = map.base + at[0] * 2;
  for (std::size_t d = 0; d < at.size(); ++d) {
    if (at[d] >= map.size[d]) return 0;
    if (d > 0) address += at[d] * map.stride[d - 1];
  }
  return address;
}

/// Where row j (one output) of a matrix has its element k; 0 beyond its ends.
std::uint64_t expected(const void* matrix, std::int64_t stride, WeightLayout layout, std::uint64_t rows,
                       std::uint64_t j, std::uint64_t depth, std::uint64_t k) {
  if (j >= rows || k >= depth) return 0;
  const auto apart = static_cast<std::uint64_t>(stride);
  return address(matrix) + 2 * (layout == WeightLayout::nk ? j * apart + k : k * apart + j);
}

constexpr std::uint64_t kHidden = 136;
/// Ends, and what lies on both sides of them and of whole boxes.
std::vector<std::uint64_t> samples(std::uint64_t n) {
  std::vector<std::uint64_t> all = {0, 1, 7, 8, 63, 64, n / 2, n - 1, n, n + 1, n + 63};
  std::sort(all.begin(), all.end());
  return all;
}

constexpr GateOrder kOrders[] = {GateOrder::gate_first, GateOrder::up_first, GateOrder::interleaved};

}  // namespace

TEST_CASE(
    "gated nk: groups of eight rows of the lower matrix and eight of the other, whichever is the gate") {
  const Fixture f;
  for (const GateOrder order : kOrders) {
    const LayerSpec spec = layer_of(WeightLayout::nk, order);
    const Weights weights = must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
    const Maps maps = f.maps(spec, weights);
    for (std::size_t e = 0; e < 4; ++e) {
      const TensorMap& map = maps.fc1[e];
      const ExpertWeights& w = weights.experts[e];
      const auto width = static_cast<std::uint64_t>(spec.expert_widths[e]);
      CHECK(map.base == std::min(address(w.gate), address(w.up)));
      CHECK(map.size == std::vector<std::uint64_t>{kHidden, 8, 2, width / 8});
      CHECK(map.box == std::vector<std::uint32_t>{64, 8, 2, 4});
      const bool up_first = order == GateOrder::up_first;
      const void* const first = up_first ? w.up : w.gate;
      const void* const second = up_first ? w.gate : w.up;
      for (const std::uint64_t j : samples(width)) {
        for (const std::uint64_t k : samples(kHidden)) {
          CHECK(element(map, {k, j % 8, 0, j / 8}) ==
                expected(first, w.fc1_stride, WeightLayout::nk, width, j, kHidden, k));
          CHECK(element(map, {k, j % 8, 1, j / 8}) ==
                expected(second, w.fc1_stride, WeightLayout::nk, width, j, kHidden, k));
        }
      }
    }
  }
}

TEST_CASE("gated kn, apart: 64 columns of the lower matrix and 64 of the other, whichever is the gate") {
  const Fixture f;
  for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first}) {
    const LayerSpec spec = layer_of(WeightLayout::kn, order);
    const Weights weights = must(Weights::packed_joint(spec, pointer(kFc1), pointer(kFc2)));
    const Maps maps = f.maps(spec, weights);
    for (std::size_t e = 0; e < 4; ++e) {
      const TensorMap& map = maps.fc1[e];
      const ExpertWeights& w = weights.experts[e];
      const auto width = static_cast<std::uint64_t>(spec.expert_widths[e]);
      CHECK(map.size == std::vector<std::uint64_t>{width, kHidden, 2});
      CHECK(map.box == std::vector<std::uint32_t>{64, 64, 2});
      const bool up_first = order == GateOrder::up_first;
      for (const std::uint64_t j : samples(width)) {
        for (const std::uint64_t k : samples(kHidden)) {
          CHECK(element(map, {j, k, 0}) ==
                expected(up_first ? w.up : w.gate, w.fc1_stride, WeightLayout::kn, width, j, kHidden, k));
          CHECK(element(map, {j, k, 1}) ==
                expected(up_first ? w.gate : w.up, w.fc1_stride, WeightLayout::kn, width, j, kHidden, k));
        }
      }
    }
  }
}

TEST_CASE("gated kn, interleaved: one matrix of twice the columns, whatever `up` holds") {
  const Fixture f;
  const LayerSpec spec = layer_of(WeightLayout::kn, GateOrder::interleaved);
  Weights weights = must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
  for (ExpertWeights& w : weights.experts) w.up = w.gate;
  const Maps maps = f.maps(spec, weights);
  for (std::size_t e = 0; e < 4; ++e) {
    const ExpertWeights& w = weights.experts[e];
    const auto columns = 2 * static_cast<std::uint64_t>(spec.expert_widths[e]);
    CHECK(maps.fc1[e].size == std::vector<std::uint64_t>{columns, kHidden});
    for (const std::uint64_t j : samples(columns)) {
      for (const std::uint64_t k : samples(kHidden))
        CHECK(element(maps.fc1[e], {j, k}) ==
              expected(w.gate, w.fc1_stride, WeightLayout::kn, columns, j, kHidden, k));
    }
  }
}

TEST_CASE("plain fc1 and fc2: matrices as they lie; beyond an expert's width its neighbour is not read") {
  const Fixture f;
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    const bool nk = layout == WeightLayout::nk;
    const LayerSpec spec = layer_of(layout, GateOrder::gate_first, Activation::relu2);
    const Weights weights = nk ? must(Weights::padded(spec, pointer(kFc1), pointer(kFc2), 280))
                               : must(Weights::packed(spec, nullptr, pointer(kFc1), pointer(kFc2)));
    const Maps maps = f.maps(spec, weights);
    for (std::size_t e = 0; e < 4; ++e) {
      const ExpertWeights& w = weights.experts[e];
      const auto width = static_cast<std::uint64_t>(spec.expert_widths[e]);
      CHECK(maps.fc1[e].box == std::vector<std::uint32_t>{64, 64});
      CHECK(maps.fc2[e].box == std::vector<std::uint32_t>{64, 64});
      for (const std::uint64_t a : samples(width)) {
        for (const std::uint64_t b : samples(kHidden)) {
          // fc1: output a, depth b. fc2: output b, depth a.
          CHECK(element(maps.fc1[e], nk ? std::vector{b, a} : std::vector{a, b}) ==
                expected(w.up, w.fc1_stride, layout, width, a, kHidden, b));
          CHECK(element(maps.fc2[e], nk ? std::vector{a, b} : std::vector{b, a}) ==
                expected(w.down, w.fc2_stride, layout, kHidden, b, width, a));
        }
      }
    }
  }
}

TEST_CASE(
    "every box is 64 weight rows by 64 of K, 128 rows of apart kn weights, in the layer's type and 128-byte "
    "swizzled") {
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
      for (const GateOrder order : kOrders) {
        for (const Activation activation : {Activation::silu_mul, Activation::relu2}) {
          const Fixture f;
          LayerSpec spec = layer_of(layout, order, activation);
          spec.dtype = dtype;
          static_cast<void>(f.blocks(spec));
          const auto all = fake_cuda::tensor_maps();
          CHECK(all.size() == 2 * spec.expert_widths.size());
          const bool apart = layout == WeightLayout::kn && spec.gated() && order != GateOrder::interleaved;
          for (std::size_t i = 0; i < all.size(); ++i) {
            std::uint64_t elements = 1;
            for (const std::uint32_t n : all[i].box) elements *= n;
            CHECK(elements == (apart && i % 2 == 0 ? 128 * 64 : 64 * 64));
            CHECK(all[i].box[0] == 64);  // the swizzle's 128 bytes
            CHECK(all[i].data_type == static_cast<int>(dtype == DType::bf16
                                                           ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT16));
            CHECK(all[i].swizzle == static_cast<int>(CU_TENSOR_MAP_SWIZZLE_128B));
            CHECK(all[i].interleave == static_cast<int>(CU_TENSOR_MAP_INTERLEAVE_NONE));
            CHECK(all[i].fill == static_cast<int>(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
            CHECK(std::all_of(all[i].element_stride.begin(), all[i].element_stride.end(),
                              [](auto n) { return n == 1; }));
          }
        }
      }
    }
  }
}

TEST_CASE("gate and up of one expert may lie anywhere below 2^40 bytes apart, in either order") {
  const Fixture f;
  constexpr std::uint64_t kLimit = std::uint64_t{1} << 40;
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    const LayerSpec spec = layer_of(layout, GateOrder::gate_first);
    for (const bool up_lower : {false, true}) {
      for (const std::uint64_t apart : {kLimit - 16, kLimit, 3 * kLimit}) {
        Weights weights = must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
        ExpertWeights& w = weights.experts[2];
        (up_lower ? w.gate : w.up) = pointer(address(up_lower ? w.up : w.gate) + apart);
        const auto table = f.table(spec, weights);
        if (apart < kLimit) {
          REQUIRE(table.ok());
          CHECK(f.maps(spec, weights).fc1[2].stride[1] == apart);
          continue;
        }
        REQUIRE_FALSE(table.ok());
        CHECK(table.error().code() == ErrorCode::unsupported);
        CHECK(contains(table.error().message(), "expert 2"));
        CHECK(contains(table.error().message(), std::to_string(apart)));
        CHECK(contains(table.error().message(), "2^40"));
        // Without tensor maps such weights are as good as others.
        CHECK(plan::make_expert_table(spec, weights).ok());
      }
    }
  }
}

TEST_CASE("gate and up at one address have no map") {
  const Fixture f;
  const LayerSpec spec = layer_of(WeightLayout::nk, GateOrder::gate_first);
  Weights weights = must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
  weights.experts[1].up = weights.experts[1].gate;
  const auto table = f.table(spec, weights);
  REQUIRE_FALSE(table.ok());
  CHECK(table.error().code() == ErrorCode::unsupported);
  CHECK(contains(table.error().message(), "expert 1"));
}

TEST_CASE("without a driver the maps are zeroes, nothing is encoded, and all else is the same") {
  const Fixture f;
  const LayerSpec spec = layer_of(WeightLayout::nk, GateOrder::up_first);
  const Weights weights = must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2)));
  fake_cuda::clear_calls();
  const auto bare = plan::make_expert_table(spec, weights);
  CHECK(fake_cuda::total_calls() == 0);
  const auto full = f.table(spec, weights);
  REQUIRE(bare.ok());
  REQUIRE(full.ok());
  const plan::ExpertTableLayout at(4);
  REQUIRE(bare->size() == full->size());
  CHECK(std::memcmp(bare->data(), full->data(), at.one_class + 8) == 0);
  CHECK(std::all_of(bare->begin() + static_cast<std::ptrdiff_t>(at.fc1_maps), bare->end(),
                    [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("a driver that refuses a map fails the table with the call's name") {
  for (int skip = 0; skip < 8; ++skip) {
    const Fixture f;
    const LayerSpec spec = layer_of(WeightLayout::nk, GateOrder::gate_first);
    fake_cuda::fail("cuTensorMapEncodeTiled", CUDA_ERROR_INVALID_VALUE, skip);
    const auto table = f.table(spec, must(Weights::blocks(spec, pointer(kFc1), pointer(kFc2))));
    REQUIRE_FALSE(table.ok());
    CHECK(table.error().code() == ErrorCode::device_error);
    CHECK(contains(table.error().message(), "cuTensorMapEncodeTiled"));
  }
}
