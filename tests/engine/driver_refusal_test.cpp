#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

constexpr int kOutOfMemory = 2, kInvalidImage = 200, kNoBinaryForGpu = 209;

std::size_t entries_in(const std::string& folder) {
  std::size_t n = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    n += entry.path().extension().string().rfind(".vmc", 0) == 0 ? 1 : 0;
  return n;
}

}  // namespace

TEST_CASE_FIXTURE(EngineFixture, "fault 29: an image that the driver refuses is rebuilt once") {
  std::size_t kernels = 0;
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    kernels = prepare(layer, {64}).kernels.size();
  }
  const std::size_t compiles = fake_nvrtc::compiles();
  for (const int refusal : {kInvalidImage, kNoBinaryForGpu}) {
    const std::size_t before = fake_nvrtc::compiles();
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    fake_cuda::fail("cuLibraryLoadData", refusal);
    const PrepareReport report = prepare(layer, {64});
    CHECK(fake_nvrtc::compiles() == before + 1);
    std::size_t rebuilt = 0;
    for (const auto& kernel : report.kernels) rebuilt += kernel.hit ? 0 : 1;
    CHECK(rebuilt == 1);
    CHECK(entries_in(folder / "cubin") >= kernels);
  }
  CHECK(fake_nvrtc::compiles() == compiles + 2);
  CHECK(said("made again") == 2);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 29: an image that stays refused is an error after one rebuild, not a loop") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  fake_cuda::fail("cuLibraryLoadData", kInvalidImage, 0, -1);
  PrepareOptions prepare_options;
  prepare_options.tokens = {64};
  auto report = layer.prepare(prepare_options);
  REQUIRE_FALSE(report.ok());
  const std::size_t compiles = fake_nvrtc::compiles();
  CHECK(compiles > 0);
  CHECK(compiles % 2 == 0);  // every kernel twice
  test::Arena arena;
  const ForwardArgs args = test::make_args(arena, layer, 64);
  CHECK_FALSE(layer.forward(args).ok());
  const std::size_t after_first_use = fake_nvrtc::compiles();
  for (int i = 0; i < 5; ++i) CHECK_FALSE(layer.forward(args).ok());
  CHECK(fake_nvrtc::compiles() == after_first_use);
}

TEST_CASE_FIXTURE(
    EngineFixture,
    "fault 29: a sound cubin of a newer compiler is driver_too_old, said once, and stays cached") {
  std::size_t kernels = 0;
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    kernels = prepare(layer, {64}).kernels.size();
  }
  fake_cuda::set_version(12040);
  const std::size_t compiles = fake_nvrtc::compiles();
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  PrepareOptions prepare_options;
  prepare_options.tokens = {64};
  for (int i = 0; i < 3; ++i) {
    auto report = layer.prepare(prepare_options);
    REQUIRE_FALSE(report.ok());
    CHECK(report.error().code() == ErrorCode::driver_too_old);
    CHECK(report.error().message().find("12.4") != std::string::npos);
    CHECK(report.error().message().find("13.0") != std::string::npos);
  }
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(entries_in(folder / "cubin") == kernels);
  CHECK(said("update the driver") == 1);
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 64)).error().code() == ErrorCode::driver_too_old);
}

TEST_CASE_FIXTURE(EngineFixture, "fault 29: out of memory while loading is an error, and the entry is kept") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  fake_cuda::fail("cuLibraryLoadData", kOutOfMemory, 0, -1);
  PrepareOptions prepare_options;
  prepare_options.tokens = {64};
  auto report = layer.prepare(prepare_options);
  REQUIRE_FALSE(report.ok());
  CHECK(report.error().code() == ErrorCode::out_of_memory);
  const std::size_t compiles = fake_nvrtc::compiles();
  CHECK(entries_in(folder / "cubin") == compiles);
  fake_cuda::reset();
  const PrepareReport later = prepare(layer, {64});
  CHECK(later.kernels.size() == compiles);
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(
    EngineFixture,
    "whatever driver call fails during prepare, bind and forward: an error, and the next try works") {
  for (int skip = 0; skip < 400; ++skip) {
    fake_cuda::reset();
    bool done = false;
    {
      fake_cuda::fail_any(999 /* CUDA_ERROR_UNKNOWN */, skip);
      auto engine = try_engine();
      if (engine.ok()) {
        auto layer = engine->create_layer(test::small_spec());
        REQUIRE(layer.ok());
        PrepareOptions prepare_options;
        prepare_options.tokens = {8};
        const auto attempt = [&] {
          if (auto report = layer->prepare(prepare_options); !report) return false;
          if (!layer->bind(test::fake_weights(test::small_spec())).ok()) return false;
          test::Arena arena(1 << 20);
          return layer->forward(test::make_args(arena, *layer, 8)).ok();
        };
        const bool first = attempt();
        done = !fake_cuda::failed_any();
        if (done) {
          CHECK(first);
        } else {
          CHECK_MESSAGE(attempt(), "after call " << skip);
        }
      }
    }
    fake_cuda::reset();
    CHECK(fake_cuda::live_libraries() == 0);
    CHECK(fake_cuda::live_allocations() == 0);
    if (done) return;
  }
  FAIL("the sequence never ran without a failure");
}
