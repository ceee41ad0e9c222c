#include <thread>

#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

TEST_CASE_FIXTURE(EngineFixture, "first use of a bucket prepares it, with one line; the next is silent") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  test::Arena arena;
  const std::size_t lines = static_cast<std::size_t>(said("at first use"));
  CHECK(lines == 0);
  require_ok(layer.forward(test::make_args(arena, layer, 50)));
  CHECK(said("at first use") == 1);
  CHECK(said("for 64 tokens at first use") == 1);
  const std::size_t compiles = fake_nvrtc::compiles(), logged = lines_logged();
  CHECK(compiles > 0);
  require_ok(layer.forward(test::make_args(arena, layer, 64)));
  require_ok(layer.forward(test::make_args(arena, layer, 33)));
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(lines_logged() == logged);
  require_ok(layer.forward(test::make_args(arena, layer, 4000)));
  CHECK(said("for 4096 tokens at first use") == 1);
}

TEST_CASE_FIXTURE(EngineFixture, "threads that need one bucket first prepare it once") {
  fake_nvrtc::set_delay_ms(20);
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  std::vector<std::unique_ptr<test::Arena>> arenas;
  std::vector<ForwardArgs> args;
  for (int i = 0; i < 8; ++i) {
    arenas.push_back(std::make_unique<test::Arena>());
    args.push_back(test::make_args(*arenas.back(), layer, 64));
  }
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&, i] { good += layer.forward(args[static_cast<std::size_t>(i)]).ok() ? 1 : 0; });
  for (auto& thread : threads) thread.join();
  CHECK(good == 8);
  CHECK(said("at first use") == 1);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "cached_only: the first use of an uncached bucket is an error, of a cached one is not") {
  {
    Engine engine = make_engine();
    Layer layer = make_layer(engine, test::small_spec());
    prepare(layer, {64});
  }
  options.jit = JitMode::cached_only;
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  test::Arena arena;
  CHECK(layer.forward(test::make_args(arena, layer, 64)).ok());
  const std::size_t compiles = fake_nvrtc::compiles();
  LayerSpec other = test::small_spec();
  other.top_k = 3;
  Layer missing = make_bound_layer(engine, other);
  const Status status = missing.forward(test::make_args(arena, missing, 64));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::not_prepared);
  CHECK(fake_nvrtc::compiles() == compiles);
}

TEST_CASE_FIXTURE(EngineFixture,
                  "a first use that failed is not tried by every forward, but by the next prepare") {
  fake_nvrtc::set_mode(fake_nvrtc::Mode::error);
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  test::Arena arena;
  const ForwardArgs args = test::make_args(arena, layer, 64);
  CHECK(layer.forward(args).error().code() == ErrorCode::compile_failed);
  const std::size_t compiles = fake_nvrtc::compiles(), lines = lines_logged();
  CHECK(layer.forward(args).error().code() == ErrorCode::compile_failed);
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(lines_logged() == lines);
  fake_nvrtc::set_mode(fake_nvrtc::Mode::ok);
  prepare(layer, {64});
  CHECK(layer.forward(args).ok());
}
