#include "engine_fixture.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

/// What each call answers in a child forked after use; 0 when all is as documented.
int use_in_child(Engine& engine, Layer& layer, const ForwardArgs& args) {
  const auto documented = [](const auto& result) {
    return !result.ok() && result.error().code() == ErrorCode::unsupported &&
           result.error().message().find("fork") != std::string::npos;
  };
  if (!documented(layer.forward(args))) return 1;
  if (!documented(layer.prepare({}))) return 2;
  if (!documented(layer.bind(test::fake_weights(layer.spec())))) return 3;
  if (!documented(engine.create_layer(layer.spec()))) return 4;
  { const Layer gone = std::move(layer); }
  { const Engine gone = std::move(engine); }
  return 0;
}

}  // namespace

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 40: a forked child gets the documented error, and may destroy what it inherited") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {8});
  test::Arena arena;
  const ForwardArgs args = test::make_args(arena, layer, 8);
  const test::ChildStatus status = test::run_child([&] { return use_in_child(engine, layer, args); });
  CHECK(status.exit_code() == 0);
  CHECK_MESSAGE(layer.forward(args).ok(), "the parent goes on");
}

TEST_CASE_FIXTURE(EngineFixture,
                  "fault 40: the same on the CPU, whose threads do not survive a fork either") {
  options.device = kCpuDevice;
  options.cpu_threads = 4;
  Engine engine = make_engine();
  const LayerSpec spec = test::small_spec();
  Layer layer = make_layer(engine, spec);
  test::Arena arena;
  const auto zeros = [&](std::size_t bytes) { return std::memset(arena.take(bytes), 0, bytes); };
  auto weights = Weights::blocks(spec, zeros(8 * 128 * 128 * 2), zeros(8 * 128 * 64 * 2));
  REQUIRE(weights.ok());
  require_ok(layer.bind(*weights));
  ForwardArgs args = test::make_args(arena, layer, 8);
  args.x = zeros(8 * 128 * 2);
  args.topk_ids = zeros(8 * 2 * 8);
  args.topk_weights = static_cast<const float*>(zeros(8 * 2 * 4));
  require_ok(layer.forward(args));
  const test::ChildStatus status = test::run_child([&] { return use_in_child(engine, layer, args); });
  CHECK(status.exit_code() == 0);
  CHECK(layer.forward(args).ok());
}
