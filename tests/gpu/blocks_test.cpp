#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/graph.hpp"
#include "gpu/device_blocks.hpp"
#include "gpu/device_layer.hpp"
#include "oracle/blocks_case.hpp"
#include "varmoe/blocks.hpp"

// The building blocks, each in memory of its own, on rows in every layout; each held against the oracle, fed
// with what the block before it left.

namespace {

using gpu::DeviceBlocks;
using gpu::DeviceMemory;
using gpu::kLayouts;
using gpu::mixed_spec;
using varmoe::RowLayout;

/// All blocks twice, on workspaces of other contents: right, and the same bits.
void check(DeviceBlocks& on, const oracle::RandomCase& c, RowLayout layout, std::int64_t multiple,
           bool index_64, std::int64_t step) {
  CAPTURE(static_cast<int>(layout));
  CAPTURE(multiple);
  CAPTURE(varmoe::kernel_signature(c.spec));
  const auto b = oracle::make_blocks_case(c, layout, multiple, index_64);
  oracle::BlocksOutput first;
  for (const std::uint8_t fill : {0xff, 0x01}) {
    DeviceMemory memory(on.stream.handle());
    const auto found = oracle::run_blocks(*on.blocks, b, memory, fill);
    if (fill == 0xff) {
      first = found;
      const std::string problem = oracle::blocks_problem(b, found, on.blocks->options().weighted_down, step);
      CHECK_MESSAGE(problem.empty(), problem);
    } else {
      CHECK_MESSAGE(found == first, "two runs differ");
    }
  }
}

}  // namespace

TEST_CASE("small: building blocks in every layout, of every kind of layer") {
  for (int kind = 0; kind < 4; ++kind) {
    const varmoe::LayerSpec spec = mixed_spec(kind);
    oracle::CaseOptions options;
    options.routing = kind % 2 == 0 ? oracle::Routing::zipf : oracle::Routing::half_on_one;
    options.invalid_fraction = 0.2;
    options.empty_every = 4;
    options.x_stride = spec.hidden_size + 8;
    for (const std::int64_t tokens : {1, 300}) {
      options.tokens = tokens;
      const auto c = oracle::make_case(spec, options);
      for (const bool weighted : {false, true}) {
        if (weighted && spec.weight_on_input) continue;
        DeviceBlocks on(c, {.weighted_down = weighted});
        for (const RowLayout layout : kLayouts)
          check(on, c, layout, layout == RowLayout::offsets ? 1 : 16, tokens == 1, 11);
        check(on, c, RowLayout::offsets, 64, true, 11);
      }
    }
  }
}

TEST_CASE("small: building blocks of runtime widths, with gaps between experts' rows, and on few SMs") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 24, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 24));
  const auto c =
      oracle::make_case(spec, {.tokens = 700, .routing = oracle::Routing::half_on_one, .empty_every = 5});
  for (const int sms : {0, 3}) {
    DeviceBlocks on(c, {.max_sms = sms, .weighted_down = sms == 0});
    for (const RowLayout layout : kLayouts) check(on, c, layout, 32, false, 60);
  }
}

TEST_CASE("small: building blocks of one expert with every row, and of batches without any") {
  const varmoe::LayerSpec spec = varmoe::uniform_spec(512, 8, 192, 2);
  const auto one = oracle::make_case(spec, {.tokens = 400, .routing = oracle::Routing::one_expert});
  DeviceBlocks on(one);
  for (const RowLayout layout : kLayouts) check(on, one, layout, 128, false, 100);
  oracle::CaseOptions none;
  none.tokens = 5;
  none.invalid_fraction = 1;
  const auto nothing = oracle::make_case(spec, none);
  DeviceBlocks idle(nothing);
  for (const RowLayout layout : kLayouts) check(idle, nothing, layout, 8, true, 1);
}

TEST_CASE("building blocks: with Hopper's loops, clusters and ping-pong, of tails and whole stages") {
  for (const char* config :
       {"schedule=wgmma,block_m=256,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1",
        "schedule=wgmma,block_m=128,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,"
        "cluster=2",
        "schedule=wgmma_pingpong,block_m=128,block_n=128,block_k=64,stages=4,warps_m=2,warps_n=4,ctas_per_sm="
        "1"}) {
    CAPTURE(config);
    varmoe::EngineOptions engine_options;
    engine_options.cache_dir = gpu::cache_dir();
    engine_options.fc1_config = engine_options.fc2_config = config;
    engine_options.log = [](varmoe::LogLevel, std::string_view) {};
    auto engine = varmoe::Engine::create(engine_options);
    REQUIRE(engine.ok());
    for (int kind = 0; kind < 2; ++kind) {
      auto spec = varmoe::uniform_spec(520, 8, 256, 2);
      if (kind == 1) spec.bias = true;
      spec.expert_widths[3] = kind == 0 ? 256 : 200;
      const auto c =
          oracle::make_case(spec, {.tokens = 900, .routing = oracle::Routing::zipf, .empty_every = 3});
      for (const bool weighted : {false, true}) {
        DeviceBlocks on(c, {.weighted_down = weighted}, &*engine);
        check(on, c, RowLayout::offsets, 1, false, 90);
        check(on, c, RowLayout::batched, 1, false, 90);
        check(on, c, RowLayout::aligned_blocks, 64, false, 90);
      }
    }
  }
}

TEST_CASE("building blocks: of a real layer, prefill and decode, give what forward gives") {
  const auto spec = varmoe::uniform_spec(2048, 64, 1408, 6);
  for (const std::int64_t tokens : {1, 64, 4096}) {
    const auto c = oracle::make_case(spec, {.tokens = tokens, .routing = oracle::Routing::zipf});
    DeviceBlocks on(c);
    const auto b = oracle::make_blocks_case(c, RowLayout::aligned_blocks, 128, false);
    DeviceMemory memory(on.stream.handle());
    const auto found = oracle::run_blocks(*on.blocks, b, memory, 0xff);
    const std::string problem =
        oracle::blocks_problem(b, found, false, std::max<std::int64_t>(1, b.rows / 24));
    CHECK_MESSAGE(problem.empty(), problem);
    gpu::DeviceLayer layer(c);
    const auto forward = layer.forward_twice();
    std::vector<double> reference;
    std::vector<std::int64_t> all;
    for (std::int64_t t = 0; t < tokens; ++t) {
      all.push_back(t);
      for (std::int64_t i = 0; i < spec.hidden_size; ++i)
        reference.push_back(
            oracle::decode(spec.dtype, forward[static_cast<std::size_t>(t * spec.hidden_size + i)]));
    }
    const auto compared = oracle::compare_rows(spec.dtype, reference, found.out.data(), spec.hidden_size,
                                               spec.hidden_size, all);
    CHECK_MESSAGE(compared.pass, compared.text());
  }
}

TEST_CASE("building blocks: captured in a graph, replays follow other offsets and rows") {
  const auto spec = varmoe::uniform_spec(256, 6, 128, 2);
  const auto c = oracle::make_case(spec, {.tokens = 64});
  DeviceBlocks on(c);
  gpu::must(on.blocks->prepare(gpu::buckets({64})), "prepare");
  const auto stream = on.stream.handle();
  constexpr std::int64_t kRows = 128;
  DeviceMemory memory(stream);
  std::vector<std::uint16_t> x(static_cast<std::size_t>(kRows * spec.hidden_size));
  std::copy_n(c.x.data(), static_cast<std::size_t>(64 * spec.hidden_size), x.begin());
  std::copy_n(c.x.data(), static_cast<std::size_t>(64 * spec.hidden_size), x.begin() + 64 * spec.hidden_size);
  const auto poison = [](std::int64_t n) {
    return std::vector<std::uint16_t>(static_cast<std::size_t>(n), oracle::kPoison);
  };
  auto* offsets = memory.put(std::vector<std::int32_t>(7, 0));
  varmoe::GroupedUpArgs up;
  up.by_expert.rows = kRows;
  up.by_expert.expert_offsets = offsets;
  up.x = memory.put(x);
  auto* h = memory.put(poison(kRows * 128));
  up.h = h;
  up.workspace_bytes = gpu::must(on.blocks->workspace_bytes(kRows), "workspace_bytes");
  up.workspace = memory.put(std::vector<std::uint8_t>(up.workspace_bytes, 0xff));
  up.stream = stream;
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), stream), "begin");
  gpu::must(on.blocks->up(up), "up");
  auto graph = gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), stream), "end");
  auto instance = gpu::must(varmoe::cuda::GraphExec::instantiate(graph), "instantiate");
  for (const std::vector<std::int32_t>& at : {std::vector<std::int32_t>{0, 0, 50, 50, 51, 100, 128},
                                              std::vector<std::int32_t>{0, 128, 128, 128, 128, 128, 128}}) {
    gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), reinterpret_cast<std::uint64_t>(offsets),
                                           at.data(), at.size() * 4),
              "upload");
    gpu::must(instance.launch(stream), "launch");
    memory.synchronize();
    const auto replayed = memory.get(h, static_cast<std::size_t>(kRows * 128));
    varmoe::GroupedUpArgs again = up;
    auto* other = memory.put(poison(kRows * 128));
    again.h = other;
    gpu::must(on.blocks->up(again), "up");
    memory.synchronize();
    CHECK(replayed == memory.get(other, static_cast<std::size_t>(kRows * 128)));
    CHECK(
        std::none_of(replayed.begin(), replayed.end(), [](std::uint16_t v) { return v == oracle::kPoison; }));
  }
}
