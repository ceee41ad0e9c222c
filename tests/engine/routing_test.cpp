// Router and BlockAligner on the fake driver and on the CPU.
#include <memory>
#include <vector>

#include "cuda/graph.hpp"
#include "engine_fixture.hpp"
#include "oracle/product_case.hpp"
#include "oracle/router_case.hpp"
#include "support/router_methods.hpp"
#include "varmoe/router.hpp"
#include "varmoe/router_statistics.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

RouterSpec qwen3() {
  RouterSpec spec;
  spec.num_experts = 128;
  spec.top_k = 8;
  spec.logit_type = LogitType::bf16;
  spec.renormalize = true;
  return spec;
}

struct RoutingFixture : EngineFixture {
  static Router make_router(Engine& engine, const RouterSpec& spec) {
    auto router = engine.create_router(spec);
    REQUIRE_MESSAGE(router.ok(), (router.ok() ? "" : router.error().message()));
    return *std::move(router);
  }
  static BlockAligner make_aligner(Engine& engine, const AlignSpec& spec) {
    auto aligner = engine.create_block_aligner(spec);
    REQUIRE_MESSAGE(aligner.ok(), (aligner.ok() ? "" : aligner.error().message()));
    return *std::move(aligner);
  }
  RouteArgs route_args(const RouterSpec& spec, std::int64_t tokens, void* stream = nullptr) {
    const auto t = static_cast<std::size_t>(tokens), e = static_cast<std::size_t>(spec.num_experts),
               k = static_cast<std::size_t>(spec.top_k);
    RouteArgs args;
    args.tokens = tokens;
    args.logits = arena.take(t * e * 4);
    args.correction_bias = static_cast<const float*>(arena.take(e * 4));
    args.topk_ids = static_cast<std::int32_t*>(arena.take(t * k * 4));
    args.topk_weights = static_cast<float*>(arena.take(t * k * 4));
    args.stream = stream;
    return args;
  }
  AlignArgs align_args(const BlockAligner& aligner, std::int64_t rows) {
    const auto places = static_cast<std::size_t>(sorted_ids_size(aligner.spec(), rows));
    AlignArgs args;
    args.rows = rows;
    args.topk_ids = arena.take(static_cast<std::size_t>(rows) * 4 + 4);
    args.sorted_token_ids = static_cast<std::int32_t*>(arena.take(places * 4 + 4));
    args.expert_ids = static_cast<std::int32_t*>(arena.take(places * 4 + 4));
    args.num_tokens_post_pad = static_cast<std::int32_t*>(arena.take(4));
    args.workspace_bytes = *aligner.workspace_bytes(rows);
    args.workspace = arena.take(args.workspace_bytes + 1);
    return args;
  }
  test::Arena arena;
};

struct CpuRoutingFixture : RoutingFixture {
  CpuRoutingFixture() {
    options.device = kCpuDevice;
    options.cpu_threads = 2;
  }
};

bool begins(const std::string& text, const char* with) {
  return text.rfind(with, 0) == 0;
}

}  // namespace

TEST_CASE_FIXTURE(RoutingFixture,
                  "a prepared route is one dependent launch, a warp a token, without a compile") {
  Engine engine = make_engine();
  Router router = make_router(engine, qwen3());
  const auto report = router.prepare();
  require_ok(report);
  REQUIRE(report->kernels.size() == 1);
  CHECK(report->kernels[0].stage == "route");
  CHECK(begins(report->kernels[0].name, "varmoe_route_t128_"));
  CHECK(engine.counters().compiles == 1);
  const std::size_t compiles = fake_nvrtc::compiles(), lines = lines_logged();
  for (const std::int64_t tokens : {1, 4, 5, 4096}) {
    fake_cuda::clear_launches();
    require_ok(router.route(route_args(router.spec(), tokens)));
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == 1);
    CHECK(launches[0].grid[0] == static_cast<unsigned>((tokens + 3) / 4));
    CHECK(launches[0].block[0] == 128);
    CHECK(launches[0].programmatic);
  }
  CHECK(fake_nvrtc::compiles() == compiles);
  CHECK(lines_logged() == lines);
  CHECK(router.route({}).ok());  // no tokens: nothing is enqueued, nothing is asked of the pointers
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "first use prepares once and says so; a capture that finds nothing is told") {
  Engine engine = make_engine();
  Router router = make_router(engine, qwen3());
  const auto device = EngineAccess::impl(engine).device;
  auto stream = cuda::Stream::create(device);
  REQUIRE(stream.ok());
  REQUIRE(cuda::begin_capture(*device, stream->handle()).ok());
  const RouteArgs captured = route_args(router.spec(), 8, stream->handle());
  const Status refused = router.route(captured);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code() == ErrorCode::not_prepared);
  CHECK(refused.error().message().find("router experts=128") != std::string::npos);
  CHECK(cuda::Graph::end_capture(device, stream->handle()).ok());

  require_ok(router.route(route_args(router.spec(), 8)));
  require_ok(router.route(route_args(router.spec(), 8)));
  CHECK(said("first use") == 1);
  CHECK(engine.counters().compiles == 1);
  // Another router of the same method finds the kernel.
  Router again = make_router(engine, qwen3());
  require_ok(again.prepare());
  CHECK(engine.counters().compiles == 1);

  REQUIRE(cuda::begin_capture(*device, stream->handle()).ok());
  require_ok(router.route(captured));
  auto graph = cuda::Graph::end_capture(device, stream->handle());
  REQUIRE(graph.ok());
  CHECK(*graph->node_count() == 1);
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "with JIT=cached_only an uncached router is an error, remembered until the next prepare") {
  options.jit = JitMode::cached_only;
  Engine engine = make_engine();
  Router router = make_router(engine, qwen3());
  CHECK(router.prepare().error().code() == ErrorCode::not_prepared);
  CHECK(router.route(route_args(router.spec(), 1)).error().code() == ErrorCode::not_prepared);
  CHECK(router.route(route_args(router.spec(), 1)).error().code() == ErrorCode::not_prepared);
  CHECK(said("first use") == 1);
}

TEST_CASE_FIXTURE(RoutingFixture, "arguments of a route that are wrong are named, and nothing is enqueued") {
  Engine engine = make_engine();
  RouterSpec spec = qwen3();
  spec.scoring = Scoring::sigmoid;
  spec.correction_bias = true;
  Router router = make_router(engine, spec);
  require_ok(router.prepare());
  const RouteArgs sound = route_args(spec, 4);
  fake_cuda::clear_launches();
  const auto refusal = [&](auto change) {
    RouteArgs args = sound;
    change(args);
    const Status status = router.route(args);
    if (status) return std::string("accepted");
    CHECK(status.error().code() == ErrorCode::invalid_argument);
    return status.error().message();
  };
  CHECK(refusal([](RouteArgs& a) { a.tokens = -1; }) ==
        "RouteArgs: tokens = -1: must be from 0 to 2147483647");
  CHECK(refusal([](RouteArgs& a) { a.logits = nullptr; }) == "RouteArgs: logits is null");
  CHECK(refusal([](RouteArgs& a) { a.correction_bias = nullptr; }) == "RouteArgs: correction_bias is null");
  CHECK(refusal([](RouteArgs& a) { a.topk_ids = nullptr; }) == "RouteArgs: topk_ids is null");
  CHECK(refusal([](RouteArgs& a) { a.topk_weights = nullptr; }) == "RouteArgs: topk_weights is null");
  CHECK(refusal([](RouteArgs& a) { a.logit_stride = 127; }).find("logit_stride = 127") != std::string::npos);
  CHECK(refusal([](RouteArgs& a) {
          a.logits = static_cast<const char*>(a.logits) + 1;
        }).find("must be 2-byte aligned") != std::string::npos);
  CHECK(fake_cuda::launches().empty());
  CHECK(engine.create_router({}).error().code() == ErrorCode::invalid_spec);
  CHECK(engine.create_block_aligner({}).error().code() == ErrorCode::invalid_spec);
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "route_and_forward enqueues the router before the layer, and refuses what does not fit") {
  Engine engine = make_engine();
  Layer layer = make_bound_layer(engine, test::small_spec());
  prepare(layer, {64});
  RouterSpec spec;
  spec.num_experts = 8;
  spec.top_k = 2;
  Router router = make_router(engine, spec);
  require_ok(router.prepare());
  RouteArgs r = route_args(spec, 64);
  ForwardArgs f = test::make_args(arena, layer, 64);
  f.topk_ids = r.topk_ids;
  f.topk_weights = r.topk_weights;
  fake_cuda::clear_launches();
  require_ok(route_and_forward(router, r, layer, f));
  const auto names = test::launched_kernels();
  REQUIRE(names.size() >= 5);
  CHECK(begins(names[0], "varmoe_route_"));
  CHECK(begins(names[1], "varmoe_sort_"));
  CHECK(begins(names.back(), "varmoe_combine_"));

  const auto code = [&](Router& with, const RouteArgs& ra, const ForwardArgs& fa) {
    const Status status = route_and_forward(with, ra, layer, fa);
    return status ? ErrorCode::ok : status.error().code();
  };
  ForwardArgs other = f;
  other.topk_weights = static_cast<const float*>(arena.take(64 * 2 * 4));
  CHECK(code(router, r, other) == ErrorCode::invalid_argument);
  other = f;
  other.id_type = IdType::int64;
  CHECK(code(router, r, other) == ErrorCode::invalid_argument);
  other = f;
  other.tokens = 32;
  CHECK(code(router, r, other) == ErrorCode::invalid_argument);
  RouterSpec wide = spec;
  wide.num_experts = 16;
  Router mismatched = make_router(engine, wide);
  CHECK(code(mismatched, r, f) == ErrorCode::invalid_argument);
  RouterSpec llama = spec;
  llama.scoring = Scoring::sigmoid;
  llama.weight_on_input = true;
  Router on_input = make_router(engine, llama);
  CHECK(code(on_input, r, f) == ErrorCode::invalid_argument);

  // An expert map: the router's experts are the map's entries.
  static const std::int32_t map[16] = {};
  ForwardArgs mapped = f;
  mapped.expert_map = map;
  mapped.num_global_experts = 16;
  CHECK(code(router, r, mapped) == ErrorCode::invalid_argument);
  CHECK(code(mismatched, r, mapped) == ErrorCode::ok);
}

TEST_CASE_FIXTURE(RoutingFixture, "a router and a layer that both weight the input go together") {
  Engine engine = make_engine();
  LayerSpec weighted = test::small_spec();
  weighted.weight_on_input = true;
  Layer layer = make_bound_layer(engine, weighted);
  prepare(layer, {64});
  RouterSpec spec;
  spec.num_experts = 8;
  spec.top_k = 2;
  spec.scoring = Scoring::sigmoid;
  spec.weight_on_input = true;
  Router router = make_router(engine, spec);
  require_ok(router.prepare());
  const RouteArgs r = route_args(spec, 64);
  ForwardArgs f = test::make_args(arena, layer, 64);
  f.topk_ids = r.topk_ids;
  f.topk_weights = r.topk_weights;
  require_ok(route_and_forward(router, r, layer, f));
  spec.weight_on_input = false;
  Router other = make_router(engine, spec);
  const Status refused = route_and_forward(other, r, layer, f);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("false of the router and true of the layer") != std::string::npos);
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "a router with hidden_size takes x and a workspace: what does not fit is named") {
  Engine engine = make_engine();
  RouterSpec spec = qwen3();
  spec.hidden_size = 2048;
  CHECK(engine.create_router(spec).error().message().find("logit_type is bf16") != std::string::npos);
  spec.logit_type = LogitType::fp32;
  spec.logit_bias = true;
  Router router = make_router(engine, spec);
  const auto report = router.prepare();
  require_ok(report);
  REQUIRE(report->kernels.size() == 3);
  CHECK(report->kernels[1].stage == "router_gemv");
  CHECK(report->kernels[2].stage == "router_gemm");
  CHECK_FALSE(router.workspace_bytes(-1).ok());
  RouteArgs sound = route_args(spec, 64);
  sound.logits = nullptr;
  sound.x = arena.take(64 * 2048 * 2);
  sound.weight = arena.take(128 * 2048 * 2);
  sound.logit_bias = static_cast<const float*>(arena.take(128 * 4));
  sound.workspace_bytes = *router.workspace_bytes(64);
  sound.workspace = arena.take(sound.workspace_bytes);
  fake_cuda::clear_launches();
  require_ok(router.route(sound));
  const auto launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  CHECK(begins(launches[0].name, "varmoe_router_gemm_"));
  CHECK(begins(launches[1].name, "varmoe_route_"));
  fake_cuda::clear_launches();
  const auto refusal = [&](auto change) {
    RouteArgs args = sound;
    change(args);
    const Status status = router.route(args);
    return status ? std::string("accepted") : status.error().message();
  };
  CHECK(refusal([](RouteArgs& a) { a.x = nullptr; }) == "RouteArgs: x is null");
  CHECK(refusal([](RouteArgs& a) { a.weight = nullptr; }) == "RouteArgs: weight is null");
  CHECK(refusal([](RouteArgs& a) { a.logit_bias = nullptr; }) == "RouteArgs: logit_bias is null");
  CHECK(refusal([](RouteArgs& a) { a.logits = a.x; }).find("logits must be null") != std::string::npos);
  CHECK(refusal([](RouteArgs& a) { a.x_stride = 2052; }).find("x_stride = 2052") != std::string::npos);
  CHECK(refusal([](RouteArgs& a) { a.weight_stride = 1024; }).find("weight_stride = 1024") !=
        std::string::npos);
  CHECK(refusal([](RouteArgs& a) { a.x = static_cast<const char*>(a.x) + 8; }).find("16-byte aligned") !=
        std::string::npos);
  CHECK(refusal([](RouteArgs& a) { a.workspace_bytes -= 1; }).find("Router::workspace_bytes") !=
        std::string::npos);
  CHECK(fake_cuda::launches().empty());
  Router given = make_router(engine, qwen3());
  CHECK(*given.workspace_bytes(64) == 0);
  RouteArgs foreign = route_args(qwen3(), 64);
  foreign.x = sound.x;
  CHECK(given.route(foreign).error().message().find("x must be null") != std::string::npos);
}

TEST_CASE_FIXTURE(RoutingFixture, "router statistics are two launches with a workspace: mistakes are named") {
  Engine engine = make_engine();
  auto created = engine.create_router_statistics({64, 6, LogitType::bf16, Scoring::softmax});
  require_ok(created);
  RouterStatistics statistics = *std::move(created);
  const auto report = statistics.prepare();
  require_ok(report);
  CHECK(report->kernels.size() == 2);
  RouterStatisticsArgs sound;
  sound.tokens = 100;
  sound.logits = arena.take(100 * 64 * 2);
  sound.topk_ids = arena.take(100 * 6 * 8);
  sound.losses = static_cast<float*>(arena.take(16));
  sound.workspace_bytes = *statistics.workspace_bytes(100);
  sound.workspace = arena.take(sound.workspace_bytes);
  fake_cuda::clear_launches();
  require_ok(statistics.compute(sound));
  const auto launches = fake_cuda::launches();
  REQUIRE(launches.size() == 2);
  CHECK(begins(launches[0].name, "varmoe_statistics_blocks_t256_"));
  CHECK(begins(launches[1].name, "varmoe_statistics_total_t1024_"));
  fake_cuda::clear_launches();
  const auto refusal = [&](auto change) {
    RouterStatisticsArgs args = sound;
    change(args);
    const Status status = statistics.compute(args);
    return status ? std::string("accepted") : status.error().message();
  };
  using Args = RouterStatisticsArgs;
  CHECK(refusal([](Args& a) { a.logits = nullptr; }) == "RouterStatisticsArgs: logits is null");
  CHECK(refusal([](Args& a) { a.tokens = INT32_MAX / 6 + 1; }).find("must be from 0 to") !=
        std::string::npos);
  CHECK(refusal([](Args& a) { a.logit_stride = 63; }).find("logit_stride = 63") != std::string::npos);
  CHECK(refusal([](Args& a) { a.id_type = static_cast<IdType>(7); }).find("id_type = 7") !=
        std::string::npos);
  CHECK(refusal([](Args& a) { a.workspace = nullptr; }).find("workspace_bytes = 0") != std::string::npos);
  CHECK(fake_cuda::launches().empty());
  CHECK(engine.create_router_statistics({}).error().code() == ErrorCode::invalid_spec);
}

TEST_CASE_FIXTURE(CpuRoutingFixture, "the CPU engine multiplies and counts through the same calls") {
  Engine engine = make_engine();
  RouterSpec spec = test::router_of(test::router_methods().at(1), 16, 2);
  spec.hidden_size = 64;
  Router router = make_router(engine, spec);
  CHECK(*router.workspace_bytes(1000) == 0);
  const auto c = oracle::make_product_case(spec, 5, 3);
  const auto copy = [&](const std::vector<std::byte>& bytes) {
    void* to = arena.take(bytes.size());
    std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(to));
    return to;
  };
  RouteArgs args = route_args(spec, 5);
  args.logits = nullptr;
  args.x = copy(c.x.bytes);
  args.weight = copy(c.weight.bytes);
  args.logits_out = static_cast<float*>(arena.take(5 * 16 * 4));
  require_ok(router.route(args));
  CHECK(c.problem({args.logits_out, args.logits_out + 5 * 16}) == "");
  auto statistics = engine.create_router_statistics({16, 2});
  require_ok(statistics);
  RouterStatisticsArgs count;
  count.tokens = 5;
  count.logits = args.logits_out;
  count.topk_ids = args.topk_ids;
  count.tokens_per_expert = static_cast<std::int32_t*>(arena.take(16 * 4));
  require_ok(statistics->compute(count));
  std::int32_t all = 0;
  for (int e = 0; e < 16; ++e) all += count.tokens_per_expert[e];
  CHECK(all == 10);
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "an alignment is one launch for few rows and two for more, with a workspace") {
  Engine engine = make_engine();
  BlockAligner aligner = make_aligner(engine, {64, 128});
  const auto report = aligner.prepare();
  require_ok(report);
  CHECK(report->kernels.size() == 3);
  fake_cuda::clear_launches();
  CHECK(*aligner.workspace_bytes(1024) == 0);
  AlignArgs few = align_args(aligner, 1024);
  few.workspace = nullptr;
  require_ok(aligner.align(few));
  require_ok(aligner.align(align_args(aligner, 0)));
  AlignArgs many = align_args(aligner, 32768);
  require_ok(aligner.align(many));
  const auto launches = fake_cuda::launches();
  REQUIRE(launches.size() == 4);
  CHECK(begins(launches[0].name, "varmoe_align_single_"));
  CHECK(launches[0].grid[0] > 1);  // one places the rows, the others write what is not a row
  CHECK(begins(launches[1].name, "varmoe_align_single_"));
  CHECK(begins(launches[2].name, "varmoe_align_count_"));
  CHECK(begins(launches[3].name, "varmoe_align_scatter_"));
  CHECK(launches[3].grid[0] > launches[2].grid[0]);
  CHECK(*aligner.workspace_bytes(32768) == launches[2].grid[0] * 64 * 4);

  many.workspace_bytes -= 1;
  CHECK(aligner.align(many).error().code() == ErrorCode::workspace_too_small);
  few.sorted_size = 4095;
  CHECK(aligner.align(few).error().message().find("sorted_size = 4095") != std::string::npos);
  few = align_args(aligner, 8);
  few.expert_ids = nullptr;
  CHECK(aligner.align(few).error().message() == "AlignArgs: expert_ids is null");
  CHECK_FALSE(aligner.workspace_bytes(-1).ok());
}

TEST_CASE_FIXTURE(CpuRoutingFixture, "the CPU engine routes and aligns through the same calls") {
  Engine engine = make_engine();
  const auto methods = test::router_methods();
  const RouterSpec spec = test::router_of(methods.at(11), 64, 6, LogitType::bf16);
  Router router = make_router(engine, spec);
  CHECK(router.prepare()->kernels.empty());
  const auto c = oracle::make_router_case(spec, 33, oracle::Logits::normal, 4);
  RouteArgs args = route_args(spec, 33);
  args.logits = c.logits.data();
  args.correction_bias = c.bias.data();
  require_ok(router.route(args));
  CHECK(c.problem(args.topk_ids, args.topk_weights, 33) == "");

  BlockAligner aligner = make_aligner(engine, {64, 16});
  AlignArgs align = align_args(aligner, 33 * 6);
  align.topk_ids = args.topk_ids;
  require_ok(aligner.align(align));
  const auto expected =
      oracle::align_rows(64, 16, std::vector<std::int64_t>(args.topk_ids, args.topk_ids + align.rows),
                         sorted_ids_size(aligner.spec(), align.rows));
  CHECK(*align.num_tokens_post_pad == expected.num_tokens_post_pad);
  CHECK(
      std::equal(expected.sorted_token_ids.begin(), expected.sorted_token_ids.end(), align.sorted_token_ids));
  CHECK(std::equal(expected.expert_ids.begin(), expected.expert_ids.end(), align.expert_ids));
}
