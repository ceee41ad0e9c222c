#include "cuda/device.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include <thread>

#include "cuda/fake_gpu.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::ContextScope;
using cuda::Device;

TEST_CASE("attributes are the device's") {
  fake_cuda::reset();
  fake_cuda::FakeDevice a100;
  a100.name = "Fake A100";
  a100.compute_major = 8;
  a100.sm_count = 108;
  a100.smem_per_block = 166912;
  a100.memory_bytes = 40ULL << 30;
  fake_cuda::set_devices({{}, a100});
  const auto driver = load_fake_driver();
  const auto device = Device::open(driver, 1);
  REQUIRE(device.ok());
  const auto& attributes = (*device)->attributes();
  CHECK((*device)->ordinal() == 1);
  CHECK(attributes.name == "Fake A100");
  CHECK(attributes.compute_major == 8);
  CHECK(attributes.compute_minor == 0);
  CHECK(attributes.sm_count == 108);
  CHECK(attributes.smem_per_block == 166912);
  CHECK(attributes.smem_per_sm == 233472);
  CHECK(attributes.regs_per_sm == 65536);
  CHECK(attributes.threads_per_sm == 2048);
  CHECK(attributes.l2_bytes == 60 << 20);
  CHECK(attributes.total_memory == std::int64_t{40} << 30);
  CHECK(attributes.pci_bus_id == "0000:02:00.0");
}

TEST_CASE("fault 30: a device that is not there is no_device, with how many there are") {
  fake_cuda::reset();
  const auto driver = load_fake_driver();
  for (const int ordinal : {-1, 1, 100}) {
    const auto device = Device::open(driver, ordinal);
    REQUIRE(!device.ok());
    CHECK(device.error().code() == ErrorCode::no_device);
    CHECK(contains(device.error().message(), "device " + std::to_string(ordinal)));
    CHECK(contains(device.error().message(), "sees 1"));
  }
}

TEST_CASE("primary contexts are retained and released, one device apart from another") {
  fake_cuda::reset();
  fake_cuda::set_devices({{}, {}});
  const auto driver = load_fake_driver();
  {
    const auto first = Device::open(driver, 0);
    const auto again = Device::open(driver, 0);
    const auto second = Device::open(driver, 1);
    REQUIRE(first.ok());
    REQUIRE(again.ok());
    REQUIRE(second.ok());
    CHECK((*first)->context() == (*again)->context());
    CHECK((*first)->context() != (*second)->context());
    CHECK(fake_cuda::context_retains(0) == 2);
    CHECK(fake_cuda::context_retains(1) == 1);
    CHECK(fake_cuda::context_depth() == 0);  // opening makes nothing current
  }
  CHECK(fake_cuda::context_retains(0) == 0);
  CHECK(fake_cuda::context_retains(1) == 0);
}

TEST_CASE("opening that fails at any call leaves nothing behind") {
  fake_cuda::reset();
  const auto driver = load_fake_driver();
  int failures = 0;
  for (int n = 0;; ++n) {
    fake_cuda::fail_any(CUDA_ERROR_UNKNOWN, n);
    const auto device = Device::open(driver, 0);
    if (device.ok()) break;
    ++failures;
    CHECK(device.error().code() == ErrorCode::device_error);
    CHECK(contains(device.error().message(), "CUDA_ERROR_UNKNOWN"));
    CHECK(fake_cuda::context_retains(0) == 0);
  }
  CHECK(failures > 10);
}

TEST_CASE("a scope makes the context current and restores the caller's") {
  const auto device = fake_device();
  CHECK(fake_cuda::current_context() == nullptr);
  {
    const ContextScope scope(*device);
    CHECK(scope.ok());
    CHECK(scope.status().ok());
    CHECK(fake_cuda::current_context() == device->context());
    const auto pushes = fake_cuda::calls("cuCtxPushCurrent");
    const ContextScope nested(*device);
    CHECK(fake_cuda::calls("cuCtxPushCurrent") == pushes);  // current already
  }
  CHECK(fake_cuda::current_context() == nullptr);
  CHECK(fake_cuda::context_depth() == 0);

  void* foreign = fake_cuda::push_foreign_context();
  {
    const ContextScope scope(*device);
    CHECK(fake_cuda::current_context() == device->context());
  }
  CHECK(fake_cuda::current_context() == foreign);
  CHECK(fake_cuda::context_depth() == 1);
  fake_cuda::pop_foreign_context();
}

TEST_CASE("a scope that cannot be made says why and pops nothing") {
  const auto device = fake_device();
  fake_cuda::fail("cuCtxPushCurrent", CUDA_ERROR_INVALID_CONTEXT);
  {
    const ContextScope scope(*device);
    CHECK(!scope.ok());
    CHECK(contains(scope.status().error().message(), "CUDA_ERROR_INVALID_CONTEXT"));
  }
  CHECK(fake_cuda::calls("cuCtxPopCurrent") == 0);
  CHECK(fake_cuda::context_depth() == 0);
}

TEST_CASE("threads have their own current context") {
  const auto device = fake_device();
  const ContextScope scope(*device);
  std::thread([&] {
    CHECK(fake_cuda::current_context() == nullptr);
    CHECK(device->synchronize().ok());
    CHECK(fake_cuda::current_context() == nullptr);
  }).join();
}
