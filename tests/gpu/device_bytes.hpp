#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/memory.hpp"
#include "gpu/device_layer.hpp"

/// Device memory of the tests of routing operations.
namespace gpu {

/// Device memory filled with poison, and a copy of what lies there.
struct DeviceBytes {
  varmoe::cuda::DeviceBuffer buffer;
  explicit DeviceBytes(std::size_t bytes)
      : buffer(must(varmoe::cuda::DeviceBuffer::allocate(device(), bytes + 256), "allocate")) {}
  void poison(void* stream) const {
    must(varmoe::cuda::fill_async(*device(), buffer.address(), 0xfe, buffer.size(), stream), "fill");
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(buffer.data());
  }
  /// `count` elements and the guard after them.
  template <class T>
  std::vector<T> read(std::size_t count) const {
    std::vector<T> host(count + 256 / sizeof(T));
    must(varmoe::cuda::copy_to_host(*device(), host.data(), buffer.address(), host.size() * sizeof(T)),
         "download");
    const auto* guard = reinterpret_cast<const std::uint8_t*>(host.data() + count);
    CHECK_MESSAGE(std::all_of(guard, guard + 256, [](std::uint8_t b) { return b == 0xfe; }),
                  "wrote behind the end");
    host.resize(count);
    return host;
  }
};

template <class T>
varmoe::cuda::DeviceBuffer upload(const std::vector<T>& host) {
  auto buffer =
      must(varmoe::cuda::DeviceBuffer::allocate(device(), std::max<std::size_t>(host.size() * sizeof(T), 16)),
           "allocate");
  if (!host.empty())
    must(varmoe::cuda::copy_to_device(*device(), buffer.address(), host.data(), host.size() * sizeof(T)),
         "upload");
  return buffer;
}

}  // namespace gpu
