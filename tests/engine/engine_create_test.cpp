#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

TEST_CASE_FIXTURE(EngineFixture, "an engine says what it runs on") {
  CHECK(make_engine().device_description() == "Fake H200, sm_90a, 132 SMs, driver 13.0");
  options.device = kCpuDevice;
  options.cpu_threads = 8;
  CHECK(make_engine().device_description() == "CPU, 8 threads");
}

TEST_CASE("fault 30: without a driver a GPU engine says no_device, and the CPU engine works") {
  EngineOptions options;
  Environment environment;
  engine::EngineSeams seams;
  seams.driver_library = "libcuda-that-does-not-exist.so.1";
  seams.environment = &environment;
  auto gpu = EngineAccess::create(options, seams);
  REQUIRE_FALSE(gpu.ok());
  CHECK(gpu.error().code() == ErrorCode::no_device);
  CHECK(gpu.error().message().find("libcuda-that-does-not-exist.so.1") != std::string::npos);
  options.device = kCpuDevice;
  auto cpu = EngineAccess::create(options, seams);
  REQUIRE(cpu.ok());
  CHECK(cpu->create_layer(test::small_spec()).ok());
}

TEST_CASE_FIXTURE(EngineFixture, "fault 30: a driver without devices, and a device that is not there") {
  options.device = 3;
  CHECK(try_engine().error().code() == ErrorCode::no_device);
  fake_cuda::set_devices({});
  options.device = 0;
  CHECK(try_engine().error().code() == ErrorCode::no_device);
  options.device = -2;
  CHECK(try_engine().error().code() == ErrorCode::invalid_argument);
}

TEST_CASE_FIXTURE(EngineFixture, "a GPU older than sm_80 is unsupported, with the way out") {
  fake_cuda::FakeDevice old;
  old.name = "Fake T4";
  old.compute_major = 7;
  old.compute_minor = 5;
  fake_cuda::set_devices({old});
  const auto engine = try_engine();
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.error().code() == ErrorCode::unsupported);
  CHECK(engine.error().message().find("Fake T4") != std::string::npos);
  CHECK(engine.error().message().find("7.5") != std::string::npos);
}

TEST_CASE_FIXTURE(EngineFixture, "options out of range are refused by name") {
  options.compile_threads = -1;
  CHECK(try_engine().error().message().find("compile_threads = -1") != std::string::npos);
  options.compile_threads = 0;
  options.device = kCpuDevice;
  options.cpu_threads = -4;
  CHECK(try_engine().error().message().find("cpu_threads = -4") != std::string::npos);
}

TEST_CASE_FIXTURE(EngineFixture, "specs and layer options are checked when a layer is created") {
  Engine engine = make_engine();
  LayerSpec spec = test::small_spec();
  spec.hidden_size = 100;
  CHECK(engine.create_layer(spec).error().code() == ErrorCode::invalid_spec);
  LayerOptions layer_options;
  layer_options.max_sms = -1;
  CHECK(engine.create_layer(test::small_spec(), layer_options).error().code() == ErrorCode::invalid_argument);
  layer_options = {};
  layer_options.max_workspace_bytes = 16;
  CHECK(engine.create_layer(test::small_spec(), layer_options).error().code() ==
        ErrorCode::workspace_too_small);
}

TEST_CASE_FIXTURE(EngineFixture, "fault 42: a bad variable fails the engine, an unknown one is a warning") {
  const char* bad[] = {"VARMOE_JIT=sometimes", nullptr};
  CHECK(Environment::read(bad).error().code() == ErrorCode::invalid_environment);
  const char* unknown[] = {"VARMOE_CACHE_DIRR=/x", nullptr};
  auto read = Environment::read(unknown);
  REQUIRE(read.ok());
  environment = *read;
  make_engine();
  CHECK(said("VARMOE_CACHE_DIRR") == 1);
  environment = {};
  environment.fc1_config = "block_m=48,block_q=2";
  auto engine = try_engine();
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.error().code() == ErrorCode::invalid_environment);
  CHECK(engine.error().message().find("VARMOE_FC1_CONFIG") != std::string::npos);
  environment = {};
  environment.device_profile = "no-such-gpu";
  engine = try_engine();
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.error().code() == ErrorCode::invalid_environment);
  CHECK(engine.error().message().find("VARMOE_DEVICE_PROFILE") != std::string::npos);
}

TEST_CASE_FIXTURE(EngineFixture, "the API goes before the environment") {
  environment.jit = JitMode::cached_only;
  environment.cache_dir = folder / "of-the-environment";
  options.jit = JitMode::on;
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  prepare(layer, {1});
  CHECK(engine.counters().compiles > 0);
  CHECK_FALSE(std::filesystem::exists(folder / "of-the-environment"));
}

TEST_CASE_FIXTURE(EngineFixture, "objects that were moved from answer with an error") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  Engine taken = std::move(engine);
  Layer kept = std::move(layer);
  CHECK(engine.create_layer(test::small_spec()).error().code() == ErrorCode::invalid_argument);
  CHECK(engine.counters().forwards == 0);
  CHECK(engine.device_description().empty());
  CHECK(layer.prepare({}).error().code() == ErrorCode::invalid_argument);
  CHECK(layer.bind({}).error().code() == ErrorCode::invalid_argument);
  CHECK(layer.forward({}).error().code() == ErrorCode::invalid_argument);
  CHECK(layer.workspace_bytes(1).error().code() == ErrorCode::invalid_argument);
  CHECK(layer.spec().num_experts() == 0);
  CHECK(kept.spec() == test::small_spec());
}

TEST_CASE_FIXTURE(EngineFixture, "engine and layers may go in any order, and leave nothing on the device") {
  for (int order = 0; order < 2; ++order) {
    auto engine = std::make_unique<Engine>(make_engine());
    auto layer = std::make_unique<Layer>(make_bound_layer(*engine, test::small_spec()));
    prepare(*layer, {1, 64});
    CHECK(fake_cuda::live_libraries() > 0);
    if (order == 0) {
      layer.reset();
      CHECK_MESSAGE(fake_cuda::live_libraries() > 0, "kernels stay for graphs that hold them");
      CHECK_MESSAGE(fake_cuda::live_allocations() > 0, "so does the expert table");
      engine.reset();
    } else {
      engine.reset();
      Layer& still_there = *layer;
      test::Arena arena;
      require_ok(still_there.forward(test::make_args(arena, still_there, 3)));
      layer.reset();
    }
    CHECK(fake_cuda::live_libraries() == 0);
    CHECK(fake_cuda::live_allocations() == 0);
    CHECK(fake_cuda::context_retains(0) == 0);
  }
}

TEST_CASE_FIXTURE(EngineFixture, "several devices in one process") {
  fake_cuda::FakeDevice a, b;
  b.name = "Fake A100";
  b.compute_major = 8;
  b.sm_count = 108;
  b.smem_per_block = 166912;
  b.smem_per_sm = 167936;
  fake_cuda::set_devices({a, b});
  Engine first = make_engine();
  options.device = 1;
  Engine second = make_engine();
  CHECK(second.device_description() == "Fake A100, sm_80, 108 SMs, driver 13.0");
  Layer on_first = make_bound_layer(first, test::small_spec()),
        on_second = make_bound_layer(second, test::small_spec());
  prepare(on_first, {8});
  prepare(on_second, {8});
  test::Arena arena;
  const std::size_t depth = fake_cuda::context_depth();
  fake_cuda::clear_launches();
  require_ok(on_first.forward(test::make_args(arena, on_first, 8)));
  require_ok(on_second.forward(test::make_args(arena, on_second, 8)));
  bool seen[2] = {};
  for (const auto& launch : fake_cuda::launches()) seen[launch.device] = true;
  CHECK(seen[0]);
  CHECK(seen[1]);
  CHECK_MESSAGE(fake_cuda::context_depth() == depth, "forward restores the caller's context");
}

TEST_CASE_FIXTURE(EngineFixture, "fault 40: teardown after the driver's exit is quiet") {
  auto engine = std::make_unique<Engine>(make_engine());
  auto layer = std::make_unique<Layer>(make_bound_layer(*engine, test::small_spec()));
  prepare(*layer, {1});
  const std::size_t lines = lines_logged();
  fake_cuda::shut_down();
  test::Arena arena;
  CHECK_FALSE(layer->forward(test::make_args(arena, *layer, 1)).ok());
  layer.reset();
  engine.reset();
  CHECK(lines_logged() == lines);
}
