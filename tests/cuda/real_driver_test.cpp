// The GPU of this machine, where there is one; else these cases say why not and end. The GPU suite proper is
// tests/gpu.
#include <doctest/doctest.h>

#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "compile/compiler.hpp"
#include "cuda/event.hpp"
#include "cuda/fake_gpu.hpp"
#include "cuda/graph.hpp"
#include "cuda/launch.hpp"
#include "cuda/memory.hpp"
#include "cuda/module.hpp"
#include "cuda/stream.hpp"

using namespace varmoe;

namespace {

std::shared_ptr<cuda::Device> real_device() {
  const auto driver = cuda::Driver::load();
  if (!driver) {
    MESSAGE("skipped: " << driver.error().message());
    return nullptr;
  }
  const auto device = cuda::Device::open(*driver, 0);
  REQUIRE_MESSAGE(device.ok(), (device.ok() ? "" : device.error().message()));
  return *device;
}

std::optional<KernelBinary> add_kernel(const cuda::Device& device, bool ptx, const char* arch = nullptr) {
  const char* path = std::getenv("VARMOE_NVRTC_LIB");
  const auto compiler = compile::load_nvrtc(path ? path : "");
  if (!compiler) {
    MESSAGE("skipped: " << compiler.error().message());
    return {};
  }
  compile::CompileRequest request;
  request.text =
      "extern \"C\" __global__ void __launch_bounds__(128) add(float* p, float x, int n) {\n"
      "  extern __shared__ float s[];\n"
      "  int i = blockIdx.x * 128 + threadIdx.x;\n"
      "  s[threadIdx.x] = x; __syncthreads();\n"
      "  if (i < n) p[i] += s[127 - threadIdx.x];\n}\n";
  request.arch = (ptx ? "compute_" : "sm_") +
                 std::to_string(device.attributes().compute_major * 10 + device.attributes().compute_minor);
  if (arch) request.arch = arch;
  request.entry_name = "add";
  auto binary = (*compiler)->compile(request);
  REQUIRE_MESSAGE(binary.ok(), (binary.ok() ? "" : binary.error().message()));
  return std::move(*binary);
}

}  // namespace

TEST_CASE("GPU: load, launch on the null stream and another, capture, replay, and read back") {
  const auto device = real_device();
  if (!device) return;
  MESSAGE(device->attributes().name << ", CUDA " << cuda::version_text(device->driver().version()));
  const auto binary = add_kernel(*device, false);
  if (!binary) return;
  // A capture of another thread in the strictest mode must survive all of this thread's loading.
  const auto captured = cuda::Stream::create(device);
  REQUIRE(captured.ok());
  REQUIRE(cuda::begin_capture(*device, captured->handle(), cuda::CaptureMode::global).ok());

  std::optional<cuda::Module> module;
  std::optional<cuda::DeviceBuffer> buffer;
  constexpr int kCount = 1000;
  std::vector<float> host(kCount);
  std::iota(host.begin(), host.end(), 0.0F);
  std::thread([&] {
    auto loaded = cuda::Module::load(device, *binary, 65536);
    REQUIRE_MESSAGE(loaded.ok(), (loaded.ok() ? "" : loaded.error().message()));
    module.emplace(std::move(*loaded));
    buffer.emplace(std::move(*cuda::DeviceBuffer::allocate(device, kCount * 4)));
    const auto copied = cuda::copy_to_device(*device, buffer->address(), host.data(), kCount * 4);
    CHECK_MESSAGE(copied.ok(), (copied.ok() ? "" : copied.error().message()));
  }).join();
  CHECK(*cuda::capture_status(device->driver(), captured->handle()) == cuda::CaptureStatus::active);
  REQUIRE(module);
  REQUIRE(buffer);
  CHECK(module->attributes().registers > 0);
  CHECK(module->attributes().local_bytes == 0);
  CHECK(*module->blocks_per_sm(128, 65536) >= 1);

  std::uint64_t address = buffer->address();
  float x = 1.0F;
  int n = kCount;
  void* params[] = {&address, &x, &n};
  const auto go = [&](void* stream) {
    return cuda::launch(device->driver(), module->function(), {8}, {128}, 65536, stream, params);
  };
  CHECK(go(captured->handle()).ok());
  const auto graph = cuda::Graph::end_capture(device, captured->handle());
  REQUIRE_MESSAGE(graph.ok(), (graph.ok() ? "" : graph.error().message()));
  CHECK(*graph->node_count() == 1);
  const auto exec = cuda::GraphExec::instantiate(*graph);
  REQUIRE(exec.ok());
  CHECK(exec->launch(captured->handle()).ok());
  CHECK(exec->launch(captured->handle()).ok());
  CHECK(captured->synchronize().ok());
  {
    const cuda::ContextScope scope(*device);
    CHECK(*cuda::capture_status(device->driver(), nullptr) == cuda::CaptureStatus::none);
    CHECK(go(nullptr).ok());
  }
  cuda::LaunchAttributes attributes;
  attributes.programmatic_dependent_launch = device->attributes().compute_major >= 9;
  CHECK(cuda::launch(device->driver(), module->function(), {8}, {128}, 65536, captured->handle(), params,
                     attributes)
            .ok());
  CHECK(device->synchronize().ok());
  std::vector<float> back(kCount);
  CHECK(cuda::copy_to_host(*device, back.data(), buffer->address(), kCount * 4).ok());
  for (int i = 0; i < kCount; ++i)
    CHECK(back[static_cast<std::size_t>(i)] == host[static_cast<std::size_t>(i)] + 4.0F);
}

TEST_CASE(
    "GPU: the legacy stream is blocked while a blocking stream is captured, and asking breaks nothing") {
  const auto device = real_device();
  if (!device) return;
  const auto stream = cuda::Stream::create(device, true);
  REQUIRE(stream.ok());
  const cuda::ContextScope scope(*device);
  REQUIRE(cuda::begin_capture(*device, stream->handle(), cuda::CaptureMode::relaxed).ok());
  CHECK(*cuda::capture_status(device->driver(), nullptr) == cuda::CaptureStatus::blocked);
  CHECK(*cuda::capture_status(device->driver(), stream->handle()) == cuda::CaptureStatus::active);
  CHECK(cuda::Graph::end_capture(device, stream->handle()).ok());
}

TEST_CASE("GPU: PTX of this GPU's architecture loads") {
  const auto device = real_device();
  if (!device) return;
  const auto binary = add_kernel(*device, true);
  if (!binary) return;
  cuda::LoadFailure why = cuda::LoadFailure::none;
  const auto module = cuda::Module::load(device, *binary, 0, &why);
  if (!module) CHECK(why == cuda::LoadFailure::too_new);  // NVRTC newer than the driver
}

TEST_CASE("fault 29: GPU: an unknown entry and code for another GPU are refused as the fake driver does") {
  const auto device = real_device();
  if (!device) return;
  const auto binary = add_kernel(*device, false);
  if (!binary) return;
  cuda::LoadFailure why = cuda::LoadFailure::none;
  auto unnamed = *binary;
  unnamed.entry_name = "subtract";
  CHECK(!cuda::Module::load(device, unnamed, 0, &why).ok());
  CHECK(why == cuda::LoadFailure::damaged);
  const auto other = add_kernel(*device, false, device->attributes().compute_major == 9 ? "sm_80" : "sm_90");
  REQUIRE(other);
  const auto refused = cuda::Module::load(device, *other, 0, &why);
  REQUIRE(!refused.ok());
  CHECK_MESSAGE(why == cuda::LoadFailure::wrong_device, refused.error().message());
  CHECK(refused.error().code() == ErrorCode::unsupported);
}
