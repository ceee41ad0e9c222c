#include <cuda.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <thread>
#include <vector>

#include "cuda/event.hpp"
#include "cuda/fake_gpu.hpp"
#include "cuda/graph.hpp"
#include "cuda/launch.hpp"
#include "cuda/memory.hpp"
#include "cuda/module.hpp"
#include "cuda/stream.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

/// One of everything.
struct Everything {
  explicit Everything(const std::shared_ptr<cuda::Device>& d) : device(d) {
    module.emplace(std::move(*cuda::Module::load(device, fake_binary(), 0)));
    stream.emplace(std::move(*cuda::Stream::create(device)));
    event.emplace(std::move(*cuda::Event::create(device, false)));
    buffer.emplace(std::move(*cuda::DeviceBuffer::allocate(device, 64)));
    pinned.emplace(std::move(*cuda::PinnedBuffer::allocate(device, 64)));
    REQUIRE(cuda::begin_capture(*device, stream->handle()).ok());
    graph.emplace(std::move(*cuda::Graph::end_capture(device, stream->handle())));
    exec.emplace(std::move(*cuda::GraphExec::instantiate(*graph)));
  }
  std::shared_ptr<cuda::Device> device;
  std::optional<cuda::Module> module;
  std::optional<cuda::Stream> stream;
  std::optional<cuda::Event> event;
  std::optional<cuda::DeviceBuffer> buffer;
  std::optional<cuda::PinnedBuffer> pinned;
  std::optional<cuda::Graph> graph;
  std::optional<cuda::GraphExec> exec;
};

/// Runs `body` in a forked child; its exit status.
template <class F>
int in_child(F&& body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(body());
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("fault 40: teardown after the driver's exit is quiet") {
  auto device = fake_device();
  {
    Everything all(device);
    fake_cuda::shut_down();
    const auto status = all.stream->synchronize();
    REQUIRE(!status.ok());
    CHECK(contains(status.error().message(), "CUDA_ERROR_DEINITIALIZED"));
    device.reset();
  }  // every destructor runs against a driver that refuses all
  fake_cuda::reset();
}

TEST_CASE("fault 40: after fork every call returns the documented error and reaches no driver") {
  const auto device = fake_device();
  const int status = in_child([&] {
    fake_cuda::clear_calls();
    int wrong = 0;
    const auto expect = [&](const auto& result) {
      if (result.ok() || result.error().code() != ErrorCode::device_error ||
          !contains(result.error().message(), "fork"))
        ++wrong;
    };
    expect(cuda::Device::open(device->shared_driver(), 0));
    expect(cuda::Module::load(device, fake_binary(), 0));
    expect(cuda::DeviceBuffer::allocate(device, 64));
    expect(cuda::PinnedBuffer::allocate(device, 64));
    expect(cuda::copy_to_device(*device, 256, &wrong, 4));
    expect(cuda::fill_async(*device, 256, 0, 4, nullptr));
    expect(cuda::Stream::create(device));
    expect(cuda::Event::create(device, true));
    expect(cuda::synchronize_stream(*device, nullptr));
    expect(cuda::capture_status(device->driver(), nullptr));
    expect(cuda::begin_capture(*device, nullptr));
    expect(cuda::memory_info(*device));
    expect(device->synchronize());
    expect(cuda::launch(device->driver(), device.get(), {1}, {32}, 0, nullptr, nullptr));
    expect(cuda::ContextScope(*device).status());
    return wrong + (fake_cuda::total_calls() == 0 ? 0 : 100);
  });
  CHECK(status == 0);
  CHECK(device->synchronize().ok());  // the parent goes on
}

TEST_CASE("fault 40: a forked child that destroys its parent's objects leaves them alone") {
  const auto device = fake_device();
  std::optional<Everything> all(std::in_place, device);
  const int status = in_child([&] {
    fake_cuda::clear_calls();
    all.reset();
    return fake_cuda::total_calls() == 0 ? 0 : 1;
  });
  CHECK(status == 0);
  CHECK(fake_cuda::live_libraries() == 1);
}

TEST_CASE("fault 40: a child that loads the driver after fork may use it") {
  fake_cuda::reset();
  const int status = in_child([] {
    const auto driver = cuda::Driver::load(VARMOE_FAKE_CUDA);
    if (!driver.ok()) return 1;
    const auto device = cuda::Device::open(*driver, 0);
    if (!device.ok()) return 2;
    return (*device)->synchronize().ok() ? 0 : 3;
  });
  CHECK(status == 0);
}

TEST_CASE("fault 40: threads load, launch and free at once") {
  const auto device = fake_device();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const auto module = cuda::Module::load(device, fake_binary("k" + std::to_string(t)), 0);
        const auto buffer = cuda::DeviceBuffer::allocate(device, 64);
        const auto stream = cuda::Stream::create(device);
        if (!module.ok() || !buffer.ok() || !stream.ok()) return;
        std::uint64_t address = buffer->address();
        void* params[2] = {&address, &i};
        static_cast<void>(
            cuda::launch(device->driver(), module->function(), {1}, {32}, 0, stream->handle(), params));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(fake_cuda::launches().size() == 160);
  CHECK(fake_cuda::live_libraries() == 0);
  CHECK(fake_cuda::live_allocations() == 0);
  CHECK(fake_cuda::live_streams() == 0);
}
