#include "cuda/launch.hpp"

#include <cuda.h>
#include <doctest/doctest.h>

#include <cstring>

#include "cuda/event.hpp"
#include "cuda/fake_gpu.hpp"
#include "cuda/memory.hpp"
#include "cuda/module.hpp"
#include "cuda/stream.hpp"

using namespace varmoe;
using namespace varmoe::test;
using cuda::launch;

namespace {

struct Fixture {
  std::shared_ptr<cuda::Device> device = fake_device();
  cuda::Module module = [this] {
    auto loaded = cuda::Module::load(device, fake_binary(), 4096);
    REQUIRE(loaded.ok());
    return std::move(*loaded);
  }();
  cuda::Stream stream = [this] {
    auto made = cuda::Stream::create(device);
    REQUIRE(made.ok());
    return std::move(*made);
  }();
  void* pointer = reinterpret_cast<void*>(0x1234500);
  int n = 77;
  void* params[2] = {&pointer, &n};
  const cuda::Driver& driver() { return device->driver(); }
};

}  // namespace

TEST_CASE("a launch arrives as it was made") {
  Fixture f;
  fake_cuda::clear_calls();
  CHECK(launch(f.driver(), f.module.function(), {10, 2, 3}, {128, 2, 1}, 4096, f.stream.handle(), f.params)
            .ok());
  CHECK(fake_cuda::call_log() == std::vector<std::string>{"cuLaunchKernelEx"});  // and nothing else is called
  REQUIRE(fake_cuda::launches().size() == 1);
  const auto made = fake_cuda::launches()[0];
  CHECK(made.name == "kernel");
  CHECK(made.grid[0] == 10);
  CHECK(made.grid[1] == 2);
  CHECK(made.grid[2] == 3);
  CHECK(made.block[0] == 128);
  CHECK(made.block[1] == 2);
  CHECK(made.dynamic_smem == 4096);
  CHECK(made.stream == f.stream.handle());
  CHECK(!made.programmatic);
  CHECK(made.cluster == 1);
  REQUIRE(made.arguments.size() == 2);
  CHECK(std::memcmp(made.arguments[0].data(), &f.pointer, 8) == 0);
  REQUIRE(made.arguments[1].size() == 4);
  CHECK(std::memcmp(made.arguments[1].data(), &f.n, 4) == 0);
}

TEST_CASE("launch attributes") {
  Fixture f;
  cuda::LaunchAttributes attributes;
  attributes.programmatic_dependent_launch = true;
  attributes.cluster = 2;
  CHECK(launch(f.driver(), f.module.function(), {4}, {128}, 0, f.stream.handle(), f.params, attributes).ok());
  CHECK(fake_cuda::launches()[0].programmatic);
  CHECK(fake_cuda::launches()[0].cluster == 2);
  CHECK(
      !launch(f.driver(), f.module.function(), {5}, {128}, 0, f.stream.handle(), f.params, attributes).ok());
}

TEST_CASE("a launch beyond the kernel's limits is an error with the call's name") {
  Fixture f;
  const auto failed = [&](cuda::Dim3 grid, cuda::Dim3 block, std::uint32_t smem) {
    const auto status =
        launch(f.driver(), f.module.function(), grid, block, smem, f.stream.handle(), f.params);
    REQUIRE(!status.ok());
    CHECK(status.error().code() == ErrorCode::device_error);
    CHECK(contains(status.error().message(), "cuLaunchKernelEx failed"));
  };
  failed({1}, {513}, 0);     // compiled for 512 threads
  failed({1}, {128}, 4097);  // 4096 bytes were allowed
  failed({0}, {128}, 0);
  CHECK(fake_cuda::launches().empty());
}

TEST_CASE("the null stream needs the context current, another stream does not") {
  Fixture f;
  CHECK(launch(f.driver(), f.module.function(), {1}, {32}, 0, f.stream.handle(), f.params).ok());
  CHECK(!launch(f.driver(), f.module.function(), {1}, {32}, 0, nullptr, f.params).ok());
  const cuda::ContextScope scope(*f.device);
  CHECK(launch(f.driver(), f.module.function(), {1}, {32}, 0, nullptr, f.params).ok());
}

TEST_CASE("kernels and streams of two devices do not mix") {
  fake_cuda::reset();
  fake_cuda::set_devices({{}, {}});
  const auto driver = load_fake_driver();
  const auto first = cuda::Device::open(driver, 0);
  const auto second = cuda::Device::open(driver, 1);
  REQUIRE(first.ok());
  REQUIRE(second.ok());
  const auto module_0 = cuda::Module::load(*first, fake_binary(), 0);
  const auto module_1 = cuda::Module::load(*second, fake_binary(), 0);
  const auto stream_1 = cuda::Stream::create(*second);
  REQUIRE(module_0.ok());
  REQUIRE(module_1.ok());
  REQUIRE(stream_1.ok());
  int x = 0;
  void* params[2] = {&x, &x};
  params[0] = params;
  CHECK(launch(*driver, module_1->function(), {1}, {32}, 0, stream_1->handle(), params).ok());
  CHECK(!launch(*driver, module_0->function(), {1}, {32}, 0, stream_1->handle(), params).ok());
  CHECK(fake_cuda::launches().back().device == 1);
}

TEST_CASE("a kernel body that a test supplies runs on the launch's arguments") {
  Fixture f;
  const auto buffer = cuda::DeviceBuffer::allocate(f.device, 4);
  REQUIRE(buffer.ok());
  fake_cuda::on_launch("ker", [](const fake_cuda::Launch& made) {
    std::uint64_t address = 0;
    std::memcpy(&address, made.arguments[0].data(), 8);
    std::memcpy(fake_cuda::host_pointer(address, 4), made.arguments[1].data(), 4);
  });
  std::uint64_t address = buffer->address();
  void* params[2] = {&address, &f.n};
  CHECK(launch(f.driver(), f.module.function(), {1}, {32}, 0, f.stream.handle(), params).ok());
  int back = 0;
  CHECK(cuda::copy_to_host(*f.device, &back, buffer->address(), 4).ok());
  CHECK(back == 77);
}

TEST_CASE("events measure and order") {
  Fixture f;
  const auto start = cuda::Event::create(f.device, true);
  const auto end = cuda::Event::create(f.device, true);
  REQUIRE(start.ok());
  REQUIRE(end.ok());
  CHECK(!cuda::elapsed_ms(*f.device, *start, *end).ok());  // not recorded
  CHECK(start->record(f.stream.handle()).ok());
  CHECK(end->record(f.stream.handle()).ok());
  CHECK(end->synchronize().ok());
  CHECK(*end->reached());
  CHECK(end->make_wait(nullptr).ok());
  const auto elapsed = cuda::elapsed_ms(*f.device, *start, *end);
  REQUIRE(elapsed.ok());
  CHECK(*elapsed > 0);
  fake_cuda::fail("cuEventQuery", CUDA_ERROR_NOT_READY);
  CHECK(!*end->reached());
  fake_cuda::fail("cuStreamQuery", CUDA_ERROR_NOT_READY);
  CHECK(!*f.stream.idle());
  CHECK(*f.stream.idle());
}

TEST_CASE("an error of the device's comes out of the next call with its name") {
  Fixture f;
  fake_cuda::fail("cuStreamSynchronize", CUDA_ERROR_ILLEGAL_ADDRESS);
  const auto status = f.stream.synchronize();
  REQUIRE(!status.ok());
  CHECK(status.error().code() == ErrorCode::device_error);
  CHECK(contains(status.error().message(), "cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
}
