#include "cuda/memory.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "cuda/fake_gpu.hpp"
#include "cuda/stream.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::DeviceBuffer;
using cuda::PinnedBuffer;

TEST_CASE("a buffer is allocated, moved and freed once") {
  const auto device = fake_device();
  {
    auto buffer = DeviceBuffer::allocate(device, 1000);
    REQUIRE(buffer.ok());
    CHECK(buffer->address() % 256 == 0);
    CHECK(buffer->size() == 1000);
    CHECK(fake_cuda::live_bytes() == 1000);
    DeviceBuffer moved = std::move(*buffer);
    CHECK(!*buffer);
    CHECK(moved.address() != 0);
    moved = DeviceBuffer();
    CHECK(fake_cuda::live_allocations() == 0);
  }
  CHECK(fake_cuda::calls("cuMemFree") == 1);
  CHECK(fake_cuda::context_depth() == 0);
}

TEST_CASE("zero bytes are no allocation") {
  const auto device = fake_device();
  const auto buffer = DeviceBuffer::allocate(device, 0);
  REQUIRE(buffer.ok());
  CHECK(buffer->address() == 0);
  CHECK(fake_cuda::calls("cuMemAlloc") == 0);
  CHECK(cuda::copy_to_device(*device, 0, nullptr, 0).ok());
}

TEST_CASE("fault 29: out of device memory says how much was asked for and what is free") {
  fake_cuda::reset();
  fake_cuda::FakeDevice small;
  small.memory_bytes = 4096;
  fake_cuda::set_devices({small});
  const auto device = cuda::Device::open(load_fake_driver(), 0);
  REQUIRE(device.ok());
  const auto first = DeviceBuffer::allocate(*device, 4000);
  CHECK(first.ok());
  const auto second = DeviceBuffer::allocate(*device, 500);
  REQUIRE(!second.ok());
  CHECK(second.error().code() == ErrorCode::out_of_memory);
  CHECK(contains(second.error().message(), "500 bytes"));
  CHECK(contains(second.error().message(), "96 of 4096 bytes"));
  CHECK(contains(second.error().message(), "Fake H200"));
}

TEST_CASE("a blocking copy to the device waits until the bytes are there") {
  const auto device = fake_device();
  const auto buffer = DeviceBuffer::allocate(device, 64);
  REQUIRE(buffer.ok());
  const std::array<unsigned char, 64> bytes{};
  const auto waits = fake_cuda::calls("cuStreamSynchronize");
  CHECK(cuda::copy_to_device(*device, buffer->address(), bytes.data(), 64).ok());
  // A driver returns from cuMemcpyHtoD when pageable bytes are staged.
  CHECK(fake_cuda::calls("cuStreamSynchronize") == waits + 1);
}

TEST_CASE("bytes go there and back, blocking and on a stream") {
  const auto device = fake_device();
  const auto stream = cuda::Stream::create(device);
  REQUIRE(stream.ok());
  const auto a = DeviceBuffer::allocate(device, 64);
  const auto b = DeviceBuffer::allocate(device, 64);
  const auto pinned = PinnedBuffer::allocate(device, 64);
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  REQUIRE(pinned.ok());
  std::array<unsigned char, 64> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 3);
  CHECK(cuda::copy_to_device(*device, a->address(), bytes.data(), 64).ok());
  CHECK(cuda::copy_on_device_async(*device, b->address(), a->address(), 64, stream->handle()).ok());
  CHECK(cuda::copy_to_host_async(*device, pinned->data(), b->address(), 64, stream->handle()).ok());
  CHECK(stream->synchronize().ok());
  CHECK(std::equal(bytes.begin(), bytes.end(), static_cast<unsigned char*>(pinned->data())));
  CHECK(cuda::fill_async(*device, a->address() + 8, 0xee, 8, stream->handle()).ok());
  CHECK(cuda::copy_to_device_async(*device, a->address(), pinned->data(), 4, stream->handle()).ok());
  std::array<unsigned char, 64> back{};
  CHECK(cuda::copy_to_host(*device, back.data(), a->address(), 64).ok());
  CHECK(back[7] == bytes[7]);
  CHECK(back[8] == 0xee);
  CHECK(back[15] == 0xee);
  CHECK(back[16] == bytes[16]);
}

TEST_CASE("a copy beyond a buffer is an error with the call's name") {
  const auto device = fake_device();
  const auto buffer = DeviceBuffer::allocate(device, 64);
  REQUIRE(buffer.ok());
  std::array<char, 128> host{};
  const auto status = cuda::copy_to_host(*device, host.data(), buffer->address(), 65);
  REQUIRE(!status.ok());
  CHECK(status.error().code() == ErrorCode::device_error);
  CHECK(contains(status.error().message(), "cuMemcpyDtoH failed: CUDA_ERROR_INVALID_VALUE"));
}

TEST_CASE("buffers belong to their device, whatever context is current") {
  fake_cuda::reset();
  fake_cuda::set_devices({{}, {}});
  const auto driver = load_fake_driver();
  const auto first = cuda::Device::open(driver, 0);
  const auto second = cuda::Device::open(driver, 1);
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  const cuda::ContextScope scope(**first);
  const auto on_second = DeviceBuffer::allocate(*second, 100);
  REQUIRE(on_second.ok());
  CHECK(cuda::memory_info(**first)->free_bytes == cuda::memory_info(**first)->total_bytes);
  CHECK(cuda::memory_info(**second)->free_bytes == cuda::memory_info(**second)->total_bytes - 100);
  CHECK(fake_cuda::current_context() == (*first)->context());
}

TEST_CASE("a buffer keeps its device alive") {
  auto device = fake_device();
  auto buffer = DeviceBuffer::allocate(device, 16);
  REQUIRE(buffer.ok());
  device.reset();
  CHECK(fake_cuda::context_retains(0) == 1);
  *buffer = DeviceBuffer();
  CHECK(fake_cuda::context_retains(0) == 0);
  CHECK(fake_cuda::live_allocations() == 0);
}
