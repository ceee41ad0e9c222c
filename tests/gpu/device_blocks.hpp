#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/device_bytes.hpp"
#include "gpu/device_layer.hpp"
#include "oracle/blocks_case.hpp"
#include "varmoe/blocks.hpp"

/// Building blocks on the device, and layers with experts of every kind of width.
namespace gpu {

/// Device memory with a guard behind every array.
class DeviceMemory {
 public:
  explicit DeviceMemory(void* stream) : stream_(stream) {}
  template <class T>
  T* put(const std::vector<T>& values) {
    constexpr std::size_t kGuard = 4096;
    const std::size_t bytes = (values.size() * sizeof(T) + 255) / 256 * 256;
    auto buffer = must(varmoe::cuda::DeviceBuffer::allocate(device(), bytes + kGuard), "allocate");
    must(varmoe::cuda::fill_async(*device(), buffer.address(), 0xa5, buffer.size(), nullptr), "fill");
    if (!values.empty())
      must(
          varmoe::cuda::copy_to_device(*device(), buffer.address(), values.data(), values.size() * sizeof(T)),
          "upload");
    buffers_.push_back(std::move(buffer));
    return static_cast<T*>(buffers_.back().data());
  }
  template <class T>
  std::vector<T> get(const T* at, std::size_t count) const {
    std::vector<T> host(count);
    must(varmoe::cuda::copy_to_host(*device(), host.data(), reinterpret_cast<std::uint64_t>(at),
                                    count * sizeof(T)),
         "download");
    for (const varmoe::cuda::DeviceBuffer& buffer : buffers_) {
      if (buffer.data() != at) continue;
      std::vector<std::uint8_t> all(buffer.size());
      must(varmoe::cuda::copy_to_host(*device(), all.data(), buffer.address(), all.size()), "download");
      CHECK_MESSAGE(std::all_of(all.begin() + static_cast<std::ptrdiff_t>(count * sizeof(T)), all.end(),
                                [](std::uint8_t b) { return b == 0xa5; }),
                    "wrote behind the end");
    }
    return host;
  }
  void* stream() const { return stream_; }
  void synchronize() const { must(varmoe::cuda::synchronize_stream(*device(), stream_), "synchronize"); }

 private:
  void* stream_;
  std::vector<varmoe::cuda::DeviceBuffer> buffers_;
};

/// A case's weights on the device and blocks bound to them.
struct DeviceBlocks {
  varmoe::cuda::DeviceBuffer fc1, up, fc2, fc1_bias, fc2_bias;
  std::unique_ptr<varmoe::Blocks> blocks;
  varmoe::cuda::Stream stream;

  explicit DeviceBlocks(const oracle::RandomCase& c, varmoe::BlocksOptions options = {},
                        varmoe::Engine* on = nullptr)
      : stream(must(varmoe::cuda::Stream::create(device()), "stream")) {
    const auto upload = [](const oracle::Buffer16& b) {
      return gpu::upload(std::vector<std::uint16_t>(b.data(), b.data() + b.size()));
    };
    fc1 = upload(c.fc1);
    up = upload(c.up);
    fc2 = upload(c.fc2);
    fc1_bias = upload(c.fc1_bias);
    fc2_bias = upload(c.fc2_bias);
    varmoe::Engine& engine = on != nullptr ? *on : gpu::engine();
    blocks = std::make_unique<varmoe::Blocks>(must(engine.create_blocks(c.spec, options), "create_blocks"));
    must(blocks->bind(
             must(c.weights(fc1.data(), up.data(), fc2.data(), fc1_bias.data(), fc2_bias.data()), "weights")),
         "bind");
  }
};

inline constexpr varmoe::RowLayout kLayouts[] = {varmoe::RowLayout::offsets, varmoe::RowLayout::counts,
                                                 varmoe::RowLayout::batched,
                                                 varmoe::RowLayout::aligned_blocks};

inline varmoe::LayerSpec mixed_spec(int kind) {
  varmoe::LayerSpec spec = varmoe::uniform_spec(264, 12, 96, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = e % 3 == 0 ? 40 : e % 3 == 1 ? 96 : 136;
  switch (kind) {
    case 1:
      spec.bias = true;
      spec.activation = varmoe::Activation::swiglu_oai;
      spec.gate_order = varmoe::GateOrder::interleaved;
      break;
    case 2:
      spec.shared_widths = {200, 72};
      spec.shared_gate = true;
      spec.fc1_layout = spec.fc2_layout = varmoe::WeightLayout::kn;
      break;
    case 3:
      spec.weight_on_input = true;
      spec.activation = varmoe::Activation::relu2;
      spec.dtype = varmoe::DType::fp16;
      break;
    default:
      break;
  }
  return spec;
}

}  // namespace gpu
