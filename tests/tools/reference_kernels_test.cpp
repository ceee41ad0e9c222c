#include "tools/gpu/reference_kernels.hpp"

#include <doctest/doctest.h>

#include "cuda/driver.hpp"
#include "cuda/stream.hpp"
#include "support/fake_cuda.hpp"

using namespace varmoe;
using namespace varmoe::tools;

TEST_CASE("the tuner's reference kernels compile for every architecture, and launch with what they declare") {
  auto compiler = compile::load_nvrtc("");
  REQUIRE_MESSAGE(compiler.ok(), (compiler.ok() ? "" : compiler.error().message()));
  const struct {
    int major, minor;
    const char* arch;
  } kTargets[] = {{8, 0, "sm_80"},  {8, 6, "sm_86"},   {8, 9, "sm_89"},
                  {9, 0, "sm_90a"}, {10, 0, "sm_100"}, {12, 0, "sm_120"}};
  for (const auto& target : kTargets) {
    CAPTURE(target.arch);
    fake_cuda::reset();
    fake_cuda::FakeDevice fake;
    fake.compute_major = target.major;
    fake.compute_minor = target.minor;
    fake_cuda::set_devices({fake});
    auto driver = cuda::Driver::load(VARMOE_FAKE_CUDA);
    REQUIRE(driver.ok());
    auto device = cuda::Device::open(*driver, 0);
    REQUIRE(device.ok());
    auto stream = cuda::Stream::create(*device);
    REQUIRE(stream.ok());
    {
      auto kernels = ReferenceKernels::create(*device, **compiler, target.arch);
      REQUIRE_MESSAGE(kernels.ok(), (kernels.ok() ? "" : kernels.error().message()));
      ReferenceParams reference;
      reference.top_k = 2;
      reference.hidden = 256;
      CHECK(kernels->fill({}, stream->handle()).ok());
      CHECK(kernels->reference(reference, 3, 128, stream->handle()).ok());
      CHECK(kernels->compare({}, 3, stream->handle()).ok());
      CHECK(kernels->scan({}, stream->handle()).ok());
    }
    // The real cubins say how many bytes each takes: as many as the host passes.
    const std::size_t bytes[] = {sizeof(FillParams), sizeof(ReferenceParams), sizeof(ReferenceParams),
                                 sizeof(CompareParams), sizeof(ScanParams)};
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == 5);
    for (std::size_t i = 0; i < 5; ++i) {
      REQUIRE(launches[i].arguments.size() == 1);
      CHECK(launches[i].arguments[0].size() == bytes[i]);
    }
    CHECK(launches[1].grid[0] == 16);  // a warp an output, eight a block
    CHECK(launches[1].grid[1] == 6);
    CHECK(launches[2].grid[0] == 32);
    CHECK(launches[2].grid[1] == 3);
  }
  fake_cuda::reset();
}
