// What depends on the GPU's generation: tensor maps of the weights, dependent launches.
#include "engine/engine_fixture.hpp"

#include <string>

using namespace varmoe;
using test::EngineFixture;

namespace {

/// sm_<arch>.
fake_cuda::FakeDevice device_of(int arch) {
  fake_cuda::FakeDevice device;
  device.name = "Fake GPU";
  device.compute_major = arch / 10;
  device.compute_minor = arch % 10;
  return device;
}

bool uses_wgmma(const std::string& kernel) {
  return kernel.find("_wgmma") != std::string::npos;
}

}  // namespace

TEST_CASE_FIXTURE(EngineFixture, "bind encodes two tensor maps an expert on Hopper, and none elsewhere") {
  for (const int arch : {80, 89, 90, 100}) {
    CAPTURE(arch);
    fake_cuda::reset();
    fake_cuda::set_devices({device_of(arch)});
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    fake_cuda::clear_calls();
    require_ok(layer.bind(test::fake_weights(layer.spec())));
    CHECK(fake_cuda::calls("cuTensorMapEncodeTiled") == (arch == 90 ? 2 * 8 : 0));
    // Binding anew follows the weights.
    require_ok(layer.bind(test::fake_weights(layer.spec(), 0x40000)));
    const auto maps = fake_cuda::tensor_maps();
    if (arch == 90) CHECK(maps.at(16).base == maps.at(0).base + 0x40000 - 0x10000);
  }
}

TEST_CASE_FIXTURE(EngineFixture, "no dependent launches before CUDA 12.3: a capture could not hold them") {
  for (const int version : {12020, 12030}) {
    CAPTURE(version);
    fake_cuda::reset();
    fake_cuda::set_devices({device_of(90)});
    fake_cuda::set_version(version);
    fake_nvrtc::set_version(12, 4, 99);  // a newer one's cubins are beyond this driver
    Engine engine = make_engine();
    Layer layer = make_bound_layer(engine, test::small_spec());
    prepare(layer, {64});
    test::Arena arena;
    fake_cuda::clear_launches();
    require_ok(layer.forward(test::make_args(arena, layer, 64)));
    REQUIRE_FALSE(fake_cuda::launches().empty());
    for (const auto& launch : fake_cuda::launches()) CHECK(launch.programmatic == (version >= 12030));
  }
}

TEST_CASE_FIXTURE(EngineFixture, "kernels are launched as dependents from sm_90 on") {
  for (const int arch : {80, 90, 100}) {
    CAPTURE(arch);
    fake_cuda::reset();
    fake_cuda::set_devices({device_of(arch)});
    Engine engine = make_engine();
    Layer layer = make_bound_layer(engine, test::small_spec());
    prepare(layer, {64, 4096});
    test::Arena arena;
    fake_cuda::clear_launches();
    for (const std::int64_t tokens : {64, 4096})
      require_ok(layer.forward(test::make_args(arena, layer, tokens)));
    CHECK(fake_cuda::launches().size() >= 8);
    for (const auto& launch : fake_cuda::launches()) {
      CAPTURE(launch.name);
      CHECK(launch.programmatic == (arch >= 90));
      if (arch != 90) CHECK_FALSE(uses_wgmma(launch.name));
    }
  }
}

TEST_CASE_FIXTURE(EngineFixture,
                  "an override chooses Hopper's schedules, and the forward runs them on what bind encoded") {
  options.fc1_config =
      "schedule=wgmma,block_m=64,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,gather="
      "fused";
  options.fc2_config =
      "schedule=wgmma_pingpong,block_m=96,block_n=128,block_k=64,stages=4,warps_m=2,warps_n=4,ctas_per_sm=1,"
      "row_step=32,cluster=2";
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::pruned_spec());
  prepare(layer, {64});
  test::Arena arena;
  fake_cuda::clear_launches();
  require_ok(layer.forward(test::make_args(arena, layer, 64)));
  int seen = 0;
  for (const auto& launch : fake_cuda::launches()) {
    if (!uses_wgmma(launch.name)) continue;
    ++seen;
    CHECK(launch.block[0] == 384);
    const bool fc1 = launch.name.rfind("varmoe_fc1_wgmma_m64n128s4", 0) == 0;
    const bool fc2 = launch.name.rfind("varmoe_fc2_wgmma_pingpong_m96n128s4r", 0) == 0;
    CHECK((fc1 || fc2));
    if (fc2) {
      CHECK(launch.name.find("t32c2_") != std::string::npos);
      CHECK(launch.grid[0] % 2 == 0);
    }
  }
  CHECK(seen == 2);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 24: Hopper's schedules are refused elsewhere before anything is compiled") {
  fake_cuda::set_devices({device_of(80)});
  options.fc2_config = "schedule=wgmma,block_m=64,block_n=128,block_k=64,warps_m=1,warps_n=8,ctas_per_sm=1";
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  const auto report = layer.prepare({});
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::invalid_config);
  CHECK_MESSAGE(report.error().message().find("needs a Hopper GPU") != std::string::npos,
                report.error().message());
  CHECK(fake_nvrtc::compiles() == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "a bind that no tensor map serves is refused, and the one before it stays") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {64});
  Weights apart = test::fake_weights(layer.spec());
  apart.experts[3].up = reinterpret_cast<const void*>(
      reinterpret_cast<std::uintptr_t>(apart.experts[3].gate) + (std::uintptr_t{1} << 40));
  const Status refused = layer.bind(apart);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code() == ErrorCode::unsupported);
  CHECK(refused.error().message().find("expert 3") != std::string::npos);
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 64)).ok());
}
