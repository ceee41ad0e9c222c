// What the routing operations enqueue, argument by argument.
#include "plan/routing.hpp"

#include "emit/routing.hpp"
#include "run_fixture.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

struct RoutingFixture {
  std::shared_ptr<cuda::Device> device = fake_device();
  std::vector<cuda::Module> modules;
  plan::RoutingContext context{&device->driver(), true};
  RouterSpec spec;
  RouteArgs args;

  RoutingFixture() {
    spec.num_experts = 128;
    spec.top_k = 8;
    spec.logit_type = LogitType::bf16;  // four elements a load
    args.logits = reinterpret_cast<const void*>(0x10000);
    args.correction_bias = reinterpret_cast<const float*>(0x20000);
    args.topk_ids = reinterpret_cast<std::int32_t*>(0x30000);
    args.topk_weights = reinterpret_cast<float*>(0x40000);
    args.scores = reinterpret_cast<float*>(0x50000);
    args.token_count = reinterpret_cast<const std::int32_t*>(0x60000);
  }

  plan::LoadedKernel load(Stage stage, std::size_t parameter_bytes, std::int32_t threads) {
    FakeCubin cubin;
    cubin.kernels = {{emit::to_string(stage), 32, 0, 0, 1024, {static_cast<std::uint32_t>(parameter_bytes)}}};
    KernelBinary binary;
    binary.image = make_fake_cubin(cubin);
    binary.arch = "sm_90";
    binary.entry_name = emit::to_string(stage);
    binary.compiler = {13, 0, 88};
    auto module = cuda::Module::load(device, binary, 0);
    REQUIRE_MESSAGE(module.ok(), (module.ok() ? "" : module.error().message()));
    modules.push_back(*std::move(module));
    return {modules.back().function(), threads, 0, 1};
  }

  fake_cuda::Launch route(const plan::LoadedKernel& kernel, std::int64_t tokens) {
    fake_cuda::clear_launches();
    args.tokens = tokens;
    const cuda::ContextScope current(*device);
    const Status status = plan::run_route(context, kernel, spec, args);
    REQUIRE_MESSAGE(status.ok(), (status.ok() ? "" : status.error().message()));
    REQUIRE(fake_cuda::launches().size() == 1);
    return fake_cuda::launches()[0];
  }
};

}  // namespace

TEST_CASE_FIXTURE(RoutingFixture, "a route passes on what it was given, a warp a token") {
  const auto kernel = load(Stage::route, sizeof(abi::RouteParams), 128);
  for (const std::int64_t tokens : {1, 4, 5, 4096}) {
    const auto launch = route(kernel, tokens);
    CHECK(launch.grid[0] == static_cast<unsigned>((tokens + 3) / 4));
    CHECK(launch.block[0] == 128);
    CHECK(launch.programmatic);
    const auto p = params_of<abi::RouteParams>(launch);
    CHECK(p.logits == args.logits);
    CHECK(p.correction_bias == args.correction_bias);
    CHECK(p.topk_ids == args.topk_ids);
    CHECK(p.topk_weights == args.topk_weights);
    CHECK(p.scores == args.scores);
    CHECK(p.token_count == args.token_count);
    CHECK(p.logit_stride == 128);
    CHECK(p.tokens == tokens);
    CHECK(p.wide_loads == 1);
  }
}

TEST_CASE_FIXTURE(RoutingFixture, "rows that do not keep a load's alignment are read one by one") {
  const auto kernel = load(Stage::route, sizeof(abi::RouteParams), 128);
  const auto wide = [&](std::int64_t stride, std::uintptr_t base) {
    args.logit_stride = stride;
    args.logits = reinterpret_cast<const void*>(base);
    return params_of<abi::RouteParams>(route(kernel, 9)).wide_loads;
  };
  CHECK(wide(0, 0x10000) == 1);
  CHECK(wide(132, 0x10008) == 1);
  CHECK(wide(130, 0x10000) == 0);
  CHECK(wide(0, 0x10002) == 0);
  spec.num_experts = 61;  // one element a load
  CHECK(wide(0, 0x10002) == 1);
}

TEST_CASE_FIXTURE(RoutingFixture,
                  "an alignment: one launch for few rows, two for more, histograms in the workspace") {
  plan::AlignKernels kernels;
  kernels.single = load(Stage::align_single, sizeof(abi::AlignParams), 1024);
  kernels.count = load(Stage::align_count, sizeof(abi::AlignParams), 1024);
  kernels.scatter = load(Stage::align_scatter, sizeof(abi::AlignParams), 1024);
  const AlignSpec of{64, 128};
  AlignArgs align;
  align.topk_ids = reinterpret_cast<const void*>(0x10000);
  align.id_type = IdType::int64;
  align.sorted_token_ids = reinterpret_cast<std::int32_t*>(0x20000);
  align.expert_ids = reinterpret_cast<std::int32_t*>(0x30000);
  align.num_tokens_post_pad = reinterpret_cast<std::int32_t*>(0x40000);
  align.workspace = reinterpret_cast<void*>(0x50000);
  const auto run = [&](std::int64_t rows) {
    align.rows = rows;
    align.sorted_size = sorted_ids_size(of, rows);
    fake_cuda::clear_launches();
    const cuda::ContextScope current(*device);
    const Status status = plan::run_align(context, kernels, of, align);
    REQUIRE_MESSAGE(status.ok(), (status.ok() ? "" : status.error().message()));
    return fake_cuda::launches();
  };
  for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{1}, emit::kAlignSingleRows}) {
    CHECK(plan::align_workspace_bytes(of, rows) == 0);
    const auto launches = run(rows);
    REQUIRE(launches.size() == 1);
    CHECK(launches[0].name == "align_single");
    CHECK(launches[0].grid[0] == 1);
  }
  for (const std::int64_t rows : {emit::kAlignSingleRows + 1, std::int64_t{32768}, std::int64_t{1} << 22}) {
    const auto launches = run(rows);
    REQUIRE(launches.size() == 2);
    CHECK(launches[0].name == "align_count");
    CHECK(launches[1].name == "align_scatter");
    CHECK(launches[1].grid[0] == launches[0].grid[0] + 1);
    CHECK(plan::align_workspace_bytes(of, rows) == launches[0].grid[0] * 64 * sizeof(i32));
    const auto p = params_of<abi::AlignParams>(launches[1]);
    CHECK(p.rows == rows);
    CHECK(std::int64_t{p.slots_per_block} * launches[0].grid[0] >= rows);
    CHECK(p.topk_ids == align.topk_ids);
    CHECK(p.ids_are_64bit == 1);
    CHECK(p.sorted_token_ids == align.sorted_token_ids);
    CHECK(p.expert_ids == align.expert_ids);
    CHECK(p.num_tokens_post_pad == align.num_tokens_post_pad);
    CHECK(p.block_histogram == align.workspace);
    CHECK(p.block_size == 128);
    CHECK(p.sorted_size == align.sorted_size);
    CHECK(p.blocks == aligned_blocks(of, align.sorted_size));
  }
}
