#include "tools/gpu/reference_kernels.hpp"

#include <doctest/doctest.h>

#include "cuda/driver.hpp"
#include "cuda/stream.hpp"
#include "support/fake_cuda.hpp"
#include "tools/gpu/backward_reference.hpp"

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
      auto backward = BackwardReference::create(*device, **compiler, target.arch);
      REQUIRE_MESSAGE(backward.ok(), (backward.ok() ? "" : backward.error().message()));
      BackwardReferenceParams of;
      of.top_k = 2;
      of.num_experts = 5;
      of.columns = 4;
      of.rows = 100;
      of.hidden = 520;
      of.fc1_kn = 1;
      CHECK(backward->reference(of, 3, 128, stream->handle()).ok());
      BackwardPickParams pick;
      pick.hidden = 520;
      pick.experts = 5;
      pick.columns = 4;
      CHECK(backward->pick(pick, 3, stream->handle()).ok());
      CHECK(backward->compare({}, 3, stream->handle()).ok());
      CHECK(backward->scan({}, stream->handle()).ok());
    }
    // The real cubins say how many bytes each takes: as many as the host passes.
    const std::size_t of_backward = sizeof(BackwardReferenceParams);
    const std::size_t bytes[] = {sizeof(FillParams),
                                 sizeof(ReferenceParams),
                                 sizeof(ReferenceParams),
                                 sizeof(CompareParams),
                                 sizeof(ScanParams),
                                 of_backward,
                                 of_backward,
                                 of_backward,
                                 of_backward,
                                 of_backward,
                                 of_backward,
                                 sizeof(BackwardPickParams),
                                 sizeof(BackwardPickParams),
                                 sizeof(BackwardCompareParams),
                                 sizeof(FloatScanParams)};
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == std::size(bytes));
    for (std::size_t i = 0; i < std::size(bytes); ++i) {
      CAPTURE(launches[i].name);
      REQUIRE(launches[i].arguments.size() == 1);
      CHECK(launches[i].arguments[0].size() == bytes[i]);
    }
    CHECK(launches[1].grid[0] == 16);  // a warp an output, eight a block
    CHECK(launches[1].grid[1] == 6);
    CHECK(launches[2].grid[0] == 32);
    CHECK(launches[2].grid[1] == 3);
    const unsigned grids[][2] = {{1, 6}, {1, 6}, {6, 1}, {65, 3}, {13, 4}, {3, 20}, {3, 3}, {3, 20}, {3, 1}};
    for (std::size_t i = 0; i < std::size(grids); ++i) {
      CAPTURE(launches[5 + i].name);
      CHECK(launches[5 + i].grid[0] == grids[i][0]);
      CHECK(launches[5 + i].grid[1] == grids[i][1]);
    }
  }
  fake_cuda::reset();
}
