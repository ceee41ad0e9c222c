#include <filesystem>
#include <thread>

#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

TEST_CASE_FIXTURE(EngineFixture, "prepare compiles, loads and reports; once more is all hits") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  const PrepareReport cold = prepare(layer, {1, 64});
  CHECK(cold.total_ms > 0);
  REQUIRE(cold.kernels.size() >= 4);
  for (const auto& kernel : cold.kernels) {
    CHECK_FALSE(kernel.hit);
    CHECK(kernel.error.empty());
    CHECK(kernel.origin == "compiled");
    CHECK(kernel.config_source == ConfigSource::predicted);
  }
  const Counters after = engine.counters();
  CHECK(after.compiles == cold.kernels.size());
  CHECK(after.cache_misses == cold.kernels.size());
  CHECK(after.cache_hits == 0);
  CHECK(after.kernels_loaded == cold.kernels.size());
  CHECK(after.kernels_loaded == fake_cuda::live_libraries());
  CHECK(after.module_bytes > 0);
  CHECK(after.configs_predicted == 2);

  const std::size_t compiles = fake_nvrtc::compiles();
  const PrepareReport warm = prepare(layer, {1, 64});
  for (const auto& kernel : warm.kernels) {
    CHECK(kernel.hit);
    CHECK(kernel.origin == "memory");
  }
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(engine.counters().kernels_loaded == after.kernels_loaded);
  CHECK(engine.counters().cache_hits == warm.kernels.size());
}

TEST_CASE_FIXTURE(EngineFixture, "48 layers with one class set share their kernels") {
  Engine engine = make_engine();
  std::vector<Layer> layers;
  std::size_t kernels = 0;
  for (int i = 0; i < 48; ++i) {
    layers.push_back(make_layer(engine, test::pruned_spec(i)));
    const PrepareReport report = prepare(layers.back(), {1, 64, 4096});
    if (i == 0) kernels = report.kernels.size();
    CHECK(report.kernels.size() == kernels);
  }
  CHECK(engine.counters().kernels_loaded == kernels);
  CHECK(engine.counters().compiles == kernels);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 36: a cache copied to another folder, or mounted read-only, gives only hits") {
  std::size_t kernels = 0;
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    kernels = prepare(layer, {1, 64}).kernels.size();
  }
  test::TempDir copy;
  std::filesystem::copy(folder.path(), copy.path(), std::filesystem::copy_options::recursive);
  const std::size_t compiles = fake_nvrtc::compiles();
  SUBCASE("as the user's own folder") {
    options.cache_dir = copy.path();
  }
  SUBCASE("as a read-only layer, without a writable cache") {
    options.cache_dir.clear();  // and no HOME: memory only
    options.cubin_path = {copy.path()};
  }
  SUBCASE("as a folder that is only read") {
    options.cache_dir = copy.path();
    options.cache_mode = CacheMode::ro;
  }
  SUBCASE("as a read-only layer where no NVRTC is installed and nothing may be compiled") {
    options.cache_dir.clear();  // and no HOME: memory only
    options.cubin_path = {copy.path()};
    options.nvrtc_lib = folder / "no-nvrtc.so";
    options.jit = JitMode::cached_only;
  }
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  const PrepareReport report = prepare(layer, {1, 64});
  CHECK(report.kernels.size() == kernels);
  for (const auto& kernel : report.kernels) CHECK_MESSAGE(kernel.hit, kernel.origin);
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(engine.counters().cache_hits == kernels);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "a cache filled without a GPU, for the device's profile, gives the engine only hits") {
  {
    auto toolchain = engine::Toolchain::open(options, environment);
    require_ok(toolchain);
    const auto profile = model::find_profile("h200");
    require_ok(profile);
    const auto chooser = toolchain->chooser(*profile);
    require_ok(chooser);
    engine::KernelBuilder builder(toolchain->builder_settings(profile->arch));
    PrepareOptions prepare_options;
    for (const LayerSpec& spec : {test::small_spec(), uniform_spec(2048, 128, 768, 8)})
      require_ok(engine::compile_layer(spec, prepare_options, *chooser, builder));
  }
  fake_cuda::FakeDevice h200;
  h200.name = "NVIDIA H200";
  h200.l2_bytes = 50 << 20;  // what drivers report need not be what the profile says
  fake_cuda::set_devices({h200});
  Engine engine = make_engine();
  for (const LayerSpec& spec : {test::small_spec(), uniform_spec(2048, 128, 768, 8)}) {
    Layer layer = make_layer(engine, spec);
    const auto report = layer.prepare({});
    require_ok(report);
    for (const auto& kernel : report->kernels) CHECK_MESSAGE(kernel.hit, kernel.name);
  }
  CHECK(engine.counters().cache_misses == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "prepare logs one line that says where each bucket's config came from") {
  options.fc1_config = "tokens=64-,raster=3";
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  const std::size_t kernels = prepare(layer, {1, 2, 64, 128}).kernels.size();
  CHECK(said("prepared hidden=") == 1);
  CHECK(said(std::to_string(kernels) + " kernels, " + std::to_string(kernels) + " compiled") == 1);
  CHECK(said("configs by tokens: 1-2 predicted; 64-128 override (EngineOptions::fc1_config "
             "\"tokens=64-,raster=3\") of predicted") == 1);
}

TEST_CASE_FIXTURE(EngineFixture, "cached_only: a miss is an error that names the kernel and loads nothing") {
  options.jit = JitMode::cached_only;
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  auto report = layer.prepare({});
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::not_prepared);
  CHECK(report.error().message().find("cached_only") != std::string::npos);
  CHECK(report.error().message().find("varmoe_") != std::string::npos);
  CHECK(fake_nvrtc::compiles() == 0);
  CHECK(engine.counters().kernels_loaded == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "cached_only: runtime-width kernels serve where those are cached") {
  // A layer with too many widths is compiled; it shares hidden size, experts, … with the one that is not.
  LayerSpec rich = uniform_spec(128, 40, 64, 2);
  for (std::size_t e = 0; e < rich.expert_widths.size(); ++e)
    rich.expert_widths[e] = 8 * static_cast<std::int64_t>(e % 20 + 1);
  LayerSpec poor = rich;
  for (auto& width : poor.expert_widths) width = width > 80 ? 160 : 80;
  options.fc1_config = options.fc2_config =
      "block_m=64,block_n=64,block_k=64,stages=3,warps_m=2,warps_n=2,ctas_per_sm=1,raster=8";
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, rich);
    prepare(layer, {64});
  }
  options.jit = JitMode::cached_only;
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, poor);
  const PrepareReport report = prepare(layer, {64});
  for (const auto& kernel : report.kernels) {
    CHECK(kernel.hit);
    if (kernel.stage == "fc1" || kernel.stage == "fc2") CHECK(kernel.runtime_width);
  }
  CHECK(said("runtime-width kernels serve instead") == 1);
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 64)).ok());
}

TEST_CASE_FIXTURE(EngineFixture, "tile overrides are taken, and counted") {
  options.fc1_config = "raster=1";
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  for (const auto& kernel : prepare(layer, {64}).kernels) {
    if (kernel.stage != "fc1") continue;
    CHECK(kernel.config_source == ConfigSource::override_);
    CHECK(kernel.config.find("raster=1,") != std::string::npos);
  }
  CHECK(engine.counters().configs_override == 1);
}

TEST_CASE_FIXTURE(EngineFixture, "fault 24: a tile override outside the space is refused before compiling") {
  environment.config = "block_m=16,warps_m=4";
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  auto report = layer.prepare({});
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::invalid_config);
  CHECK(report.error().message().find("VARMOE_CONFIG") != std::string::npos);
  CHECK(fake_nvrtc::compiles() == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "a cancelled prepare keeps what is done") {
  options.compile_threads = 1;
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  std::atomic<bool> cancel{false};
  PrepareOptions prepare_options;
  prepare_options.tokens = {64};
  prepare_options.cancel = &cancel;
  prepare_options.progress = [&](std::size_t done, std::size_t) { cancel = done >= 2; };
  auto report = layer.prepare(prepare_options);
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::cancelled);
  CHECK(engine.counters().kernels_loaded == 2);
  const std::size_t compiles = fake_nvrtc::compiles();
  const PrepareReport rest = prepare(layer, {64});
  CHECK(fake_nvrtc::compiles() == compiles + rest.kernels.size() - 2);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 28: a failed compile fails prepare with the log, and the next one tries again") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  fake_nvrtc::set_mode(fake_nvrtc::Mode::error);
  PrepareOptions prepare_options;
  prepare_options.tokens = {64};
  auto report = layer.prepare(prepare_options);
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::compile_failed);
  CHECK(report.error().message().find("undefined") != std::string::npos);
  fake_nvrtc::set_mode(fake_nvrtc::Mode::ok);
  CHECK(layer.prepare(prepare_options).ok());
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 05: engines in several threads on one folder compile each kernel once") {
  constexpr int kEngines = 8;
  std::vector<Engine> engines;
  for (int i = 0; i < kEngines; ++i) engines.push_back(make_engine());
  std::atomic<int> good{0};
  std::atomic<std::size_t> kernels{0};
  std::vector<std::thread> threads;
  for (auto& engine : engines)
    threads.emplace_back([&] {
      auto layer = engine.create_layer(test::small_spec());
      PrepareOptions prepare_options;
      prepare_options.tokens = {1, 256};
      auto report = layer->prepare(prepare_options);
      if (report.ok()) ++good, kernels = report->kernels.size();
    });
  for (auto& thread : threads) thread.join();
  CHECK(good == kEngines);
  CHECK(fake_nvrtc::compiles() == kernels);
  CHECK(fake_cuda::live_libraries() == kEngines * kernels);
}

TEST_CASE_FIXTURE(EngineFixture, "a full cache is served without loading NVRTC") {
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    prepare(layer, {64});
  }
  // With a compiler that cannot be loaded, any attempt to load one would show as a changed counter of the
  // finder.
  int loads = 0;
  engine::EngineSeams with_counting = seams();
  with_counting.finder = [&](const std::string& path) {
    engine::CompilerFinder finder = engine::nvrtc_finder(path);
    finder.load = [&loads]() -> Result<std::shared_ptr<compile::Compiler>> {
      ++loads;
      return Error(ErrorCode::no_compiler, "must not be asked");
    };
    return finder;
  };
  auto engine = EngineAccess::create(options, with_counting);
  REQUIRE(engine.ok());
  Layer layer = make_layer(*engine, test::small_spec());
  for (const auto& kernel : prepare(layer, {64}).kernels) CHECK(kernel.hit);
  CHECK(loads == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "prepare runs beside a layer's forwards") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {1});
  test::Arena arena;
  const ForwardArgs args = test::make_args(arena, layer, 1);
  std::atomic<bool> stop{false}, failed{false};
  std::thread runner([&] {
    while (!stop) {
      if (!layer.forward(args).ok()) failed = true;
    }
  });
  for (const std::int64_t tokens : {2, 8, 64, 1024}) prepare(layer, {tokens});
  stop = true;
  runner.join();
  CHECK_FALSE(failed);
}
