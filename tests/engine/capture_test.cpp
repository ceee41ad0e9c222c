#include <thread>

#include "cuda/graph.hpp"
#include "engine_fixture.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct Captured {
  explicit Captured(Engine& engine, cuda::CaptureMode mode = cuda::CaptureMode::thread_local_)
      : device(EngineAccess::impl(engine).device) {
    auto made = cuda::Stream::create(device);
    REQUIRE(made.ok());
    stream = std::make_unique<cuda::Stream>(*std::move(made));
    REQUIRE(cuda::begin_capture(*device, stream->handle(), mode).ok());
  }
  /// The number of nodes, or −1 when the capture was broken.
  int end() {
    auto ended = cuda::Graph::end_capture(device, stream->handle());
    if (!ended) return -1;
    graph = std::make_unique<cuda::Graph>(*std::move(ended));
    return static_cast<int>(*graph->node_count());
  }
  std::shared_ptr<cuda::Device> device;
  std::unique_ptr<cuda::Stream> stream;
  std::unique_ptr<cuda::Graph> graph;
};

}  // namespace

TEST_CASE_FIXTURE(EngineFixture, "a prepared forward is captured, and the graph outlives the layer") {
  Engine engine = make_engine();
  auto layer = std::make_unique<Layer>(make_bound_layer(engine, test::small_spec()));
  prepare(*layer, {64});
  test::Arena arena;
  Captured capture(engine);
  require_ok(layer->forward(test::make_args(arena, *layer, 64, capture.stream->handle())));
  const int nodes = capture.end();
  CHECK(nodes >= 4);
  layer.reset();
  auto exec = cuda::GraphExec::instantiate(*capture.graph);
  REQUIRE(exec.ok());
  fake_cuda::clear_launches();
  CHECK(exec->launch(capture.stream->handle()).ok());
  CHECK(fake_cuda::launches().size() == static_cast<std::size_t>(nodes));
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 39: capture with nothing prepared is not_prepared, and the capture stays intact") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  test::Arena arena;
  Captured capture(engine);
  const Status status = layer.forward(test::make_args(arena, layer, 64, capture.stream->handle()));
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code() == ErrorCode::not_prepared);
  CHECK(fake_nvrtc::compiles() == 0);
  CHECK(capture.end() == 0);
}

TEST_CASE_FIXTURE(EngineFixture, "fault 39: capture with another bucket prepared takes that one") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  test::Arena arena;
  // Prepared by first use, so that the exact bucket would be asked for outside of a capture.
  require_ok(layer.forward(test::make_args(arena, layer, 4)));
  const std::size_t compiles = fake_nvrtc::compiles();
  Captured capture(engine);
  require_ok(layer.forward(test::make_args(arena, layer, 64, capture.stream->handle())));
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(capture.end() >= 4);
}

TEST_CASE_FIXTURE(EngineFixture, "fault 39: another thread prepares while a stream is captured") {
  for (const auto mode :
       {cuda::CaptureMode::global, cuda::CaptureMode::thread_local_, cuda::CaptureMode::relaxed}) {
    test::TempDir cold;
    options.cache_dir = cold.path();
    Engine engine = make_engine();
    Layer layer = make_bound_layer(engine, test::small_spec());
    test::Arena arena;
    Captured capture(engine, mode);
    const ForwardArgs args = test::make_args(arena, layer, 64, capture.stream->handle());
    std::atomic<bool> prepared{false};
    std::thread other([&] {
      PrepareOptions prepare_options;
      prepare_options.tokens = {1, 64, 1024};
      prepared = layer.prepare(prepare_options).ok();
    });
    int refused = 0, taken = 0;
    const auto attempt = [&] {
      const Status status = layer.forward(args);
      if (status.ok())
        ++taken;
      else if (status.error().code() == ErrorCode::not_prepared)
        ++refused;
      else
        FAIL(status.error().message());
    };
    for (int i = 0; i < 50; ++i) attempt();
    other.join();
    attempt();
    CHECK(prepared);
    CHECK(taken >= 1);
    CHECK(refused + taken == 51);
    const int nodes = capture.end();
    CHECK(nodes > 0);
    CHECK(nodes % taken == 0);
  }
}

TEST_CASE_FIXTURE(EngineFixture, "fault 39: bind and create_layer beside another thread's capture") {
  Engine engine = make_engine();
  Captured capture(engine, cuda::CaptureMode::global);
  std::thread other([&] {
    auto layer = engine.create_layer(test::small_spec());
    CHECK(layer.ok());
    CHECK(layer->bind(test::fake_weights(test::small_spec())).ok());
    CHECK(layer->bind(test::fake_weights(test::small_spec(), 0x40000)).ok());
  });
  other.join();
  CHECK(capture.end() == 0);
}
