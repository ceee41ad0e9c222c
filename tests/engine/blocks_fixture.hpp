#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "engine_fixture.hpp"
#include "oracle/blocks_case.hpp"
#include "varmoe/blocks.hpp"

/// Building blocks on the CPU engine, and layers with experts of every kind of width.
namespace varmoe::test {

/// Host memory, 256-byte aligned.
class HostMemory {
 public:
  template <class T>
  T* put(const std::vector<T>& values) {
    const std::size_t bytes = values.size() * sizeof(T);
    buffers_.emplace_back(std::aligned_alloc(256, (bytes + 256) / 256 * 256), &std::free);
    std::memcpy(buffers_.back().get(), values.data(), bytes);
    return static_cast<T*>(buffers_.back().get());
  }
  template <class T>
  std::vector<T> get(const T* at, std::size_t count) const {
    return {at, at + count};
  }
  void* stream() const { return nullptr; }
  void synchronize() const {}

 private:
  std::vector<std::unique_ptr<void, decltype(&std::free)>> buffers_;
};

struct BlocksFixture : EngineFixture {
  BlocksFixture() {
    options.device = kCpuDevice;
    options.cpu_threads = 2;
  }
  static Blocks make(Engine& engine, const LayerSpec& spec, const BlocksOptions& blocks_options = {}) {
    auto blocks = engine.create_blocks(spec, blocks_options);
    REQUIRE_MESSAGE(blocks.ok(), (blocks.ok() ? "" : blocks.error().message()));
    return *std::move(blocks);
  }
};

inline constexpr RowLayout kLayouts[] = {RowLayout::offsets, RowLayout::counts, RowLayout::batched,
                                         RowLayout::aligned_blocks};

inline LayerSpec tail_spec(int kind) {
  LayerSpec spec = test::pruned_spec();
  spec.expert_widths[0] = 40;
  switch (kind) {
    case 1:
      spec.bias = true;
      spec.activation = Activation::swiglu_oai;
      spec.gate_order = GateOrder::interleaved;
      break;
    case 2:
      spec.shared_widths = {200, 24};
      spec.shared_gate = true;
      spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
      break;
    case 3:
      spec.weight_on_input = true;
      spec.activation = Activation::relu2;
      spec.dtype = DType::fp16;
      break;
    case 4:
      spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
      spec.gate_order = GateOrder::interleaved;
      break;
    default:
      break;
  }
  return spec;
}

}  // namespace varmoe::test
