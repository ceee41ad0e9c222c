#include <cstring>
#include <vector>

#include "engine_fixture.hpp"
#include "oracle/compare.hpp"
#include "oracle/oracle.hpp"
#include "oracle/random_case.hpp"

using namespace varmoe;
using test::EngineFixture;

namespace {

struct CpuFixture : EngineFixture {
  CpuFixture() {
    options.device = kCpuDevice;
    options.cpu_threads = 2;
  }
};

}  // namespace

TEST_CASE_FIXTURE(CpuFixture,
                  "the CPU engine computes what the oracle computes, through the same calls as a GPU one") {
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    LayerSpec spec = test::pruned_spec();
    spec.dtype = dtype;
    oracle::CaseOptions case_options;
    case_options.tokens = 37;
    case_options.seed = 5;
    auto c = oracle::make_case(spec, case_options);
    Engine engine = make_engine();
    Layer layer = make_layer(engine, spec);
    CHECK(prepare(layer, {1, 64}).kernels.empty());
    const auto weights = c.host_weights();
    REQUIRE(weights.ok());
    require_ok(layer.bind(*weights));
    test::Arena arena;
    ForwardArgs args = test::make_args(arena, layer, 37);
    std::memset(args.workspace, 0xff, args.workspace_bytes);
    args.x = c.x.data();
    args.topk_ids = c.ids32.data();
    args.topk_weights = c.topk_weights.data();
    args.out = c.out.data();
    require_ok(layer.forward(args));
    const auto reference = c.reference();
    const auto all = oracle::sample_tokens(37, 37);
    const auto result =
        oracle::compare_rows(dtype, reference, c.out.data(), c.out_stride, spec.hidden_size, all);
    CHECK_MESSAGE(result.pass, result.text());
    CHECK(engine.counters().forwards == 1);
    CHECK(engine.counters().compiles == 0);
  }
}

TEST_CASE_FIXTURE(CpuFixture, "a workspace bound makes the CPU work in chunks, with the same bits") {
  const LayerSpec spec = test::pruned_spec();
  oracle::CaseOptions case_options;
  case_options.tokens = 200;
  auto c = oracle::make_case(spec, case_options);
  Engine engine = make_engine();
  Layer whole = make_layer(engine, spec);
  LayerOptions layer_options;
  layer_options.max_workspace_bytes = *whole.workspace_bytes(30);
  Layer chunked = make_layer(engine, spec, layer_options);
  CHECK(*chunked.workspace_bytes(200) <= layer_options.max_workspace_bytes);
  std::vector<std::vector<std::uint16_t>> outs;
  for (Layer* layer : {&whole, &chunked}) {
    const auto weights = c.host_weights();
    REQUIRE(weights.ok());
    require_ok(layer->bind(*weights));
    test::Arena arena;
    ForwardArgs args = test::make_args(arena, *layer, 200);
    args.x = c.x.data();
    args.topk_ids = c.ids64.data();
    args.id_type = IdType::int64;
    args.topk_weights = c.topk_weights.data();
    require_ok(layer->forward(args));
    const auto* out = static_cast<const std::uint16_t*>(args.out);
    outs.emplace_back(out, out + 200 * spec.hidden_size);
  }
  CHECK(outs[0] == outs[1]);
}

TEST_CASE_FIXTURE(CpuFixture, "the CPU engine checks its arguments like a GPU one") {
  Engine engine = make_engine();
  Layer layer = make_layer(engine, test::small_spec());
  test::Arena arena;
  ForwardArgs args = test::make_args(arena, layer, 4);
  CHECK(layer.forward(args).error().code() == ErrorCode::not_bound);
  args.workspace_bytes = 0;
  CHECK(layer.forward(args).error().code() == ErrorCode::workspace_too_small);
  args.x = nullptr;
  CHECK(layer.forward(args).error().code() == ErrorCode::invalid_argument);
  CHECK(layer.forward({}).ok());
}
