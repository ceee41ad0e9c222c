// What the routing operations enqueue, argument by argument.
#include "plan/routing.hpp"

#include <algorithm>

#include "emit/routing.hpp"
#include "plan/router_gradient.hpp"
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
    const Status status = plan::run_route(context, {kernel, {}, {}}, spec, args);
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
                  "a router's product: its kernel and its partial sums follow the number of tokens") {
  plan::RouterKernels kernels;
  kernels.route = load(Stage::route, sizeof(abi::RouteParams), 128);
  kernels.gemv = load(Stage::router_gemv, sizeof(abi::RouterProductParams), 32);
  kernels.gemm = load(Stage::router_gemm, sizeof(abi::RouterProductParams), 128);
  spec.logit_type = LogitType::fp32;
  spec.num_experts = 256;
  spec.hidden_size = 7168;
  spec.logit_bias = true;
  args.logits = nullptr;
  args.x = reinterpret_cast<const void*>(0x70000);
  args.x_stride = 8192;
  args.weight = reinterpret_cast<const void*>(0x80000);
  args.logit_bias = reinterpret_cast<const float*>(0x90000);
  args.logits_out = reinterpret_cast<float*>(0xa0000);
  args.workspace = reinterpret_cast<void*>(0xb0000);
  std::size_t before = 0;
  for (const std::int64_t tokens : {1, 8, 16, 17, 64, 1472, 1473, 4096, 16384, 100000}) {
    CAPTURE(tokens);
    args.tokens = tokens;
    fake_cuda::clear_launches();
    const cuda::ContextScope current(*device);
    const Status status = plan::run_route(context, kernels, spec, args);
    REQUIRE_MESSAGE(status.ok(), (status.ok() ? "" : status.error().message()));
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == 2);
    const auto product = params_of<abi::RouterProductParams>(launches[0]);
    const auto route = params_of<abi::RouteParams>(launches[1]);
    const bool few = tokens <= 16, split = tokens <= 1472;
    CHECK(launches[0].name == (few ? "router_gemv" : "router_gemm"));
    CHECK(launches[1].name == "route");
    CHECK(launches[0].programmatic);
    CHECK(launches[0].grid[0] == static_cast<unsigned>((tokens + (few ? 7 : 63)) / (few ? 8 : 64)));
    CHECK(launches[0].grid[1] == (few ? 16u : 4u));
    CHECK(launches[0].grid[2] == (split ? 16u : 1u));  // 448 of K each
    CHECK(product.split == (split ? 1 : 0));
    CHECK(product.x == args.x);
    CHECK(product.weight == args.weight);
    CHECK(product.partials == args.workspace);
    CHECK(product.token_count == args.token_count);
    CHECK(product.x_stride == 8192);
    CHECK(product.weight_stride == 7168);
    CHECK(product.tokens == tokens);
    CHECK(route.logits == args.workspace);
    CHECK(route.logit_stride == 256);
    CHECK(route.partials == (split ? 16 : 1));
    CHECK(route.logit_bias == args.logit_bias);
    CHECK(route.logits_out == args.logits_out);
    CHECK(route.wide_loads == 1);
    // What serves so many tokens serves fewer, and holds the partial sums.
    const std::size_t bytes = plan::route_workspace_bytes(spec, tokens);
    CHECK(bytes >= static_cast<std::size_t>(tokens) * launches[0].grid[2] * 256 * 4);
    CHECK(bytes >= before);
    before = bytes;
  }
  spec.hidden_size = 0;
  CHECK(plan::route_workspace_bytes(spec, 4096) == 0);
}

TEST_CASE_FIXTURE(RoutingFixture, "router statistics: a block per 64 tokens up to 128 and then one block") {
  plan::StatisticsKernels kernels;
  kernels.blocks = load(Stage::statistics_blocks, sizeof(abi::RouterStatisticsParams), 256);
  kernels.total = load(Stage::statistics_total, sizeof(abi::RouterStatisticsParams), 1024);
  const RouterStatisticsSpec of{128, 8, LogitType::bf16, Scoring::softmax};
  RouterStatisticsArgs a;
  a.logits = args.logits;
  a.topk_ids = reinterpret_cast<const void*>(0x70000);
  a.id_type = IdType::int64;
  a.losses = reinterpret_cast<float*>(0x80000);
  a.workspace = reinterpret_cast<void*>(0x90000);
  for (const std::int64_t tokens : {0, 1, 64, 65, 8192, 100000}) {
    CAPTURE(tokens);
    a.tokens = tokens;
    fake_cuda::clear_launches();
    const cuda::ContextScope current(*device);
    REQUIRE(plan::run_statistics(context, kernels, of, a).ok());
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == 2);
    const auto blocks = static_cast<std::int64_t>(launches[0].grid[0]);
    CHECK(blocks == std::clamp<std::int64_t>((tokens + 63) / 64, 1, 128));
    CHECK(launches[1].grid[0] == 1);
    const auto p = params_of<abi::RouterStatisticsParams>(launches[1]);
    CHECK(p.blocks == blocks);
    CHECK(p.tokens_per_block * blocks >= tokens);
    CHECK(p.ids_are_64bit == 1);
    CHECK(p.losses == a.losses);
    CHECK(reinterpret_cast<std::uintptr_t>(p.block_z + blocks) ==
          0x90000 + plan::statistics_workspace_bytes(of, tokens));
  }
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
    // One places the rows, the others write what is not a row.
    CHECK(launches[0].grid[0] == 1 + std::clamp<std::int64_t>((align.sorted_size + 2047) / 2048, 1, 16));
  }
  for (const std::int64_t rows : {emit::kAlignSingleRows + 1, std::int64_t{32768}, std::int64_t{1} << 22}) {
    const auto launches = run(rows);
    REQUIRE(launches.size() == 2);
    CHECK(launches[0].name == "align_count");
    CHECK(launches[1].name == "align_scatter");
    CHECK(launches[1].grid[0] > launches[0].grid[0]);
    CHECK(launches[1].grid[0] <= launches[0].grid[0] + 16);
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

TEST_CASE_FIXTURE(RoutingFixture, "a router's gradient passes on what it was given") {
  plan::GradientKernels kernels;
  kernels.dlogits = load(Stage::router_dlogits, sizeof(abi::RouterGradientParams), 128);
  kernels.loss_terms = load(Stage::router_loss_terms, sizeof(abi::RouterGradientParams), 128);
  kernels.dx = load(Stage::router_dx, sizeof(abi::RouterProductGradientParams), 128);
  kernels.dweight = load(Stage::router_dweight, sizeof(abi::RouterProductGradientParams), 128);
  RouterGradientSpec of{spec, 15};
  CHECK(plan::gradient_workspace_bytes(of) == 512);
  RouterGradientArgs a;
  a.tokens = 10;
  a.logits = reinterpret_cast<const void*>(0x10000);
  a.logit_stride = 129;
  a.topk_ids = reinterpret_cast<const void*>(0x20000);
  a.id_type = IdType::int64;
  a.dtopk_weights = reinterpret_cast<const float*>(0x30000);
  a.dlogits = reinterpret_cast<void*>(0x40000);
  a.tokens_per_expert = reinterpret_cast<const std::int32_t*>(0x50000);
  a.mean_scores = reinterpret_cast<const float*>(0x60000);
  a.expert_widths = reinterpret_cast<const std::int32_t*>(0x70000);
  a.token_count = reinterpret_cast<const std::int32_t*>(0x80000);
  a.workspace = reinterpret_cast<void*>(0x90000);
  a.loss_tokens = 77;
  for (int i = 0; i < 4; ++i) a.coefficients[i] = static_cast<float>(i) + 0.5f;
  const cuda::ContextScope current(*device);
  for (const bool shares : {true, false}) {
    if (!shares) std::fill_n(a.coefficients + 1, 3, 0.0f);
    fake_cuda::clear_launches();
    REQUIRE(plan::run_gradient(context, kernels, of, a).ok());
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == (shares ? 2 : 1));
    const auto p = params_of<abi::RouterGradientParams>(launches.back());
    CHECK(p.logits == a.logits);
    CHECK(p.topk_ids == a.topk_ids);
    CHECK(p.dtopk_weights == a.dtopk_weights);
    CHECK(p.dlogits == a.dlogits);
    CHECK(p.tokens_per_expert == a.tokens_per_expert);
    CHECK(p.mean_scores == a.mean_scores);
    CHECK(p.expert_widths == a.expert_widths);
    CHECK(p.token_count == a.token_count);
    CHECK(p.terms == (shares ? a.workspace : nullptr));
    CHECK(p.logit_stride == 129);
    CHECK(p.dlogit_stride == 128);
    CHECK(p.loss_tokens == 77);
    CHECK(std::equal(a.coefficients, a.coefficients + 4, p.coefficients));
    CHECK(p.tokens == 10);
    CHECK(p.ids_are_64bit == 1);
    CHECK(p.wide_loads == 0);  // rows of 258 bytes
  }
  of.router.hidden_size = 256;
  RouterProductGradientArgs b;
  b.tokens = 65;
  b.dlogits = reinterpret_cast<const float*>(0x10000);
  b.x = reinterpret_cast<const void*>(0x20000);
  b.weight = reinterpret_cast<const void*>(0x30000);
  b.weight_stride = 264;
  b.dx = reinterpret_cast<void*>(0x40000);
  b.dweight = reinterpret_cast<void*>(0x50000);
  b.dlogit_bias = reinterpret_cast<float*>(0x60000);
  b.token_count = a.token_count;
  for (const bool dx : {false, true}) {
    b.accumulate_dx = dx;
    b.accumulate_weight = !dx;
    fake_cuda::clear_launches();
    REQUIRE(plan::run_product_gradient(context, kernels, of, b).ok());
    const auto launches = fake_cuda::launches();
    REQUIRE(launches.size() == 2);
    CHECK(launches[0].grid[0] == 2);
    CHECK(launches[0].grid[1] == 4);
    CHECK(launches[1].grid[0] == 4);
    CHECK(launches[1].grid[1] == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto p = params_of<abi::RouterProductGradientParams>(launches[i]);
      CHECK(p.dlogits == b.dlogits);
      CHECK(p.x == b.x);
      CHECK(p.weight == b.weight);
      CHECK(p.dx == b.dx);
      CHECK(p.dweight == b.dweight);
      CHECK(p.dlogit_bias == b.dlogit_bias);
      CHECK(p.token_count == b.token_count);
      CHECK(p.dlogit_stride == 128);
      CHECK(p.x_stride == 256);
      CHECK(p.weight_stride == 264);
      CHECK(p.dx_stride == 256);
      CHECK(p.dweight_stride == 256);
      CHECK(p.tokens == 65);
      CHECK(p.accumulate == (dx == (i == 0) ? 1 : 0));
    }
  }
}
