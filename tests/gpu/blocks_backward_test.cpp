#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/graph.hpp"
#include "gpu/device_blocks.hpp"
#include "oracle/blocks_backward_case.hpp"
#include "varmoe/blocks.hpp"

// The backward passes of up and down, each in memory of its own, on rows in every layout; each held against
// the oracle, fed with what the one before it left.

namespace {

using gpu::DeviceBlocks;
using gpu::DeviceMemory;
using gpu::kLayouts;
using gpu::mixed_spec;
using varmoe::RowLayout;

varmoe::BlocksOptions training(bool weighted, bool fp32, int sms = 0) {
  varmoe::BlocksOptions options;
  options.max_sms = sms;
  options.weighted_down = weighted;
  options.training = true;
  options.gradient_type = fp32 ? varmoe::GradientType::fp32 : varmoe::GradientType::layer_dtype;
  return options;
}

/// Both backward passes twice, on workspaces of other contents: right, and the same bits.
void check(DeviceBlocks& on, const oracle::RandomCase& c, RowLayout layout, std::int64_t multiple,
           bool index_64, const oracle::BlocksBackwardOptions& options, std::int64_t step) {
  CAPTURE(static_cast<int>(layout));
  CAPTURE(multiple);
  CAPTURE(options.from_z);
  CAPTURE(options.fp32);
  CAPTURE(options.accumulate);
  CAPTURE(on.blocks->options().weighted_down);
  CAPTURE(varmoe::kernel_signature(c.spec));
  const auto b = oracle::make_blocks_case(c, layout, multiple, index_64);
  oracle::GradientBuffers before(c.spec, options.storage, options.fp32);
  if (options.accumulate) before.fill(5);
  oracle::BlocksBackwardOutput outputs[2];
  for (int run = 0; run < 2; ++run) {
    DeviceMemory memory(on.stream.handle());
    outputs[run] =
        oracle::run_blocks_backward(*on.blocks, b, options, before, memory, run == 0 ? 0xff : 0x01);
  }
  const std::string problem = oracle::blocks_backward_problem(b, options, before, outputs[0],
                                                              on.blocks->options().weighted_down, step);
  CHECK_MESSAGE(problem.empty(), problem);
  CHECK_MESSAGE(outputs[0] == outputs[1], "two runs differ");
}

oracle::BlocksBackwardOptions options_of(bool from_z, bool fp32, bool accumulate) {
  oracle::BlocksBackwardOptions options;
  options.from_z = from_z;
  options.fp32 = fp32;
  options.accumulate = accumulate;
  return options;
}

}  // namespace

TEST_CASE("small: blocks' backward in every layout, of every kind of layer") {
  for (int kind = 0; kind < 5; ++kind) {
    varmoe::LayerSpec spec = mixed_spec(kind);
    if (kind == 4) {
      spec.fc1_layout = spec.fc2_layout = varmoe::WeightLayout::kn;
      spec.gate_order = varmoe::GateOrder::interleaved;
    }
    oracle::CaseOptions case_options;
    case_options.tokens = 150;
    case_options.routing = kind % 2 == 0 ? oracle::Routing::zipf : oracle::Routing::half_on_one;
    case_options.invalid_fraction = 0.2;
    case_options.empty_every = 4;
    const auto c = oracle::make_case(spec, case_options);
    for (const bool weighted : {false, true}) {
      if (weighted && spec.weight_on_input) continue;
      for (const bool from_z : {false, true}) {
        const bool fp32 = (kind % 2 == 0) != weighted;
        DeviceBlocks on(c, training(weighted, fp32));
        for (const RowLayout layout : kLayouts)
          check(on, c, layout, layout == RowLayout::offsets ? 1 : 16, from_z,
                options_of(from_z, fp32, layout == RowLayout::counts), 11);
        check(on, c, RowLayout::offsets, 64, true, options_of(from_z, fp32, true), 11);
      }
    }
  }
}

TEST_CASE("small: blocks' backward of runtime widths, with gaps between experts' rows, and on few SMs") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 24, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 24));
  const auto c =
      oracle::make_case(spec, {.tokens = 300, .routing = oracle::Routing::half_on_one, .empty_every = 5});
  for (const int sms : {0, 3}) {
    for (const bool from_z : {false, true}) {
      DeviceBlocks on(c, training(sms == 0, sms != 0, sms));
      for (const RowLayout layout : kLayouts)
        check(on, c, layout, 32, false, options_of(from_z, sms != 0, false), 30);
    }
  }
}

TEST_CASE("small: blocks' backward of one expert with every row, and of batches without any") {
  const varmoe::LayerSpec spec = varmoe::uniform_spec(256, 8, 192, 2);
  const auto one = oracle::make_case(spec, {.tokens = 700, .routing = oracle::Routing::one_expert});
  DeviceBlocks on(one, training(false, true));
  for (const RowLayout layout : kLayouts)
    check(on, one, layout, 128, false, options_of(layout == RowLayout::batched, true, false), 100);
  oracle::CaseOptions none;
  none.tokens = 5;
  none.invalid_fraction = 1;
  const auto nothing = oracle::make_case(spec, none);
  DeviceBlocks idle(nothing, training(true, false));
  for (const RowLayout layout : kLayouts)
    for (const bool accumulate : {false, true})
      check(idle, nothing, layout, 8, true, options_of(false, false, accumulate), 1);
}

TEST_CASE("small: blocks' backward without a gate, in fp16, of every activation that has none") {
  for (const auto activation :
       {varmoe::Activation::relu2, varmoe::Activation::gelu_erf, varmoe::Activation::identity}) {
    varmoe::LayerSpec spec = varmoe::uniform_spec(192, 6, 136, 2);
    spec.activation = activation;
    spec.dtype = varmoe::DType::fp16;
    spec.bias = true;
    const auto c = oracle::make_case(spec, {.tokens = 120, .routing = oracle::Routing::zipf});
    for (const bool from_z : {false, true}) {
      DeviceBlocks on(c, training(true, false));
      check(on, c, RowLayout::aligned_blocks, 32, false, options_of(from_z, false, true), 9);
    }
  }
}

TEST_CASE("blocks' backward: with Hopper's loops, clusters and ping-pong, and with the portable ones") {
  const struct {
    const char *products, *gradients;
  } configs[] = {
      {"schedule=wgmma,block_m=128,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,"
       "cluster=1",
       "schedule=wgmma,block_m=128,block_n=256,stages=4,gather=fused"},
      {"schedule=wgmma,block_m=128,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,"
       "cluster=2",
       "schedule=wgmma,block_m=256,block_n=128,stages=4,gather=copy"},
      {"schedule=wgmma_pingpong,block_m=128,block_n=128,block_k=64,stages=4,warps_m=2,warps_n=4,"
       "ctas_per_sm=1,cluster=1",
       "schedule=wgmma,block_m=128,block_n=64,stages=6,gather=copy"},
      {"schedule=mma_sync,block_m=64,block_n=128,block_k=32,stages=3,warps_m=2,warps_n=2,ctas_per_sm=1,"
       "cluster=1,row_step=16",
       "schedule=mma_sync,block_m=64,block_n=128,stages=3,gather=fused"}};
  for (const auto& [config, gradients] : configs) {
    CAPTURE(config);
    varmoe::EngineOptions engine_options;
    engine_options.cache_dir = gpu::cache_dir();
    engine_options.dh_config = engine_options.dx_config = config;
    engine_options.dw1_config = engine_options.dw2_config = gradients;
    engine_options.log = [](varmoe::LogLevel, std::string_view) {};
    auto engine = varmoe::Engine::create(engine_options);
    REQUIRE(engine.ok());
    for (int kind = 0; kind < 2; ++kind) {
      auto spec = varmoe::uniform_spec(520, 8, 256, 2);
      if (kind == 1) spec.bias = true;
      spec.expert_widths[3] = kind == 0 ? 256 : 200;
      const auto c =
          oracle::make_case(spec, {.tokens = 500, .routing = oracle::Routing::zipf, .empty_every = 3});
      for (const bool weighted : {false, true}) {
        DeviceBlocks on(c, training(weighted, kind == 1), &*engine);
        check(on, c, RowLayout::offsets, 1, false, options_of(weighted, kind == 1, false), 90);
        check(on, c, RowLayout::aligned_blocks, 64, false, options_of(!weighted, kind == 1, true), 90);
      }
    }
  }
}

TEST_CASE("blocks' backward: of a layer with thousands of rows an expert, some of whose sums go in parts") {
  const auto spec = varmoe::uniform_spec(512, 4, 384, 2);
  const auto c = oracle::make_case(spec, {.tokens = 3000, .routing = oracle::Routing::half_on_one});
  DeviceBlocks on(c, training(true, false));
  for (const bool from_z : {false, true})
    check(on, c, RowLayout::counts, 128, false, options_of(from_z, false, false), 500);
}

TEST_CASE("blocks' backward: captured in a graph, a replay leaves the same bits") {
  const auto spec = varmoe::uniform_spec(256, 6, 128, 2);
  const auto c = oracle::make_case(spec, {.tokens = 64});
  DeviceBlocks on(c, training(false, false));
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
  const oracle::GradientBuffers before(spec, oracle::Storage::blocks, false);
  std::array<const void*, oracle::GradientBuffers::kParts> at{};
  std::array<std::uint16_t*, oracle::GradientBuffers::kParts> parts{};
  for (std::size_t i = 0; i < parts.size(); ++i)
    at[i] = parts[i] = memory.put(
        std::vector<std::uint16_t>(before.part(i).data(), before.part(i).data() + before.part(i).size()));
  gpu::must(on.blocks->bind_gradients(before.weights(at)), "bind_gradients");
  auto* const offsets = memory.put(std::vector<std::int32_t>{0, 0, 50, 50, 51, 100, 128});
  varmoe::GroupedUpArgs up;
  up.by_expert.rows = kRows;
  up.by_expert.expert_offsets = offsets;
  up.x = memory.put(x);
  up.h = memory.put(poison(kRows * 128));
  up.z = memory.put(poison(kRows * 256));
  up.workspace_bytes = gpu::must(on.blocks->backward_workspace_bytes(kRows), "backward_workspace_bytes");
  up.workspace = memory.put(std::vector<std::uint8_t>(up.workspace_bytes, 0xff));
  up.stream = stream;
  varmoe::GroupedDownBackwardArgs down;
  down.by_expert = up.by_expert;
  down.dy = memory.put(x);
  down.h = up.h;
  auto* const dh = memory.put(poison(kRows * 128));
  down.dh = dh;
  down.workspace = up.workspace;
  down.workspace_bytes = up.workspace_bytes;
  down.stream = stream;
  varmoe::GroupedUpBackwardArgs back;
  back.by_expert = up.by_expert;
  back.x = up.x;
  back.z = up.z;
  back.dh = dh;
  back.dz = memory.put(poison(kRows * 256));
  auto* const dx = memory.put(poison(kRows * spec.hidden_size));
  back.dx = dx;
  back.workspace = up.workspace;
  back.workspace_bytes = up.workspace_bytes;
  back.stream = stream;
  const auto all = [&] {
    gpu::must(on.blocks->up(up), "up");
    gpu::must(on.blocks->down_backward(down), "down_backward");
    gpu::must(on.blocks->up_backward(back), "up_backward");
  };
  const auto found = [&] {
    memory.synchronize();
    std::vector<std::uint16_t> bits = memory.get(dx, static_cast<std::size_t>(kRows * spec.hidden_size));
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto part = memory.get(parts[i], static_cast<std::size_t>(before.part(i).size()));
      bits.insert(bits.end(), part.begin(), part.end());
    }
    return bits;
  };
  all();
  const auto direct = found();
  CHECK(std::count(direct.begin(), direct.end(), oracle::kPoison) <
        static_cast<std::ptrdiff_t>(direct.size()) / 10);
  gpu::must(varmoe::cuda::begin_capture(*gpu::device(), stream), "begin");
  all();
  auto graph = gpu::must(varmoe::cuda::Graph::end_capture(gpu::device(), stream), "end");
  auto instance = gpu::must(varmoe::cuda::GraphExec::instantiate(graph), "instantiate");
  for (std::size_t i = 0; i < parts.size(); ++i)
    gpu::must(varmoe::cuda::copy_to_device(*gpu::device(), reinterpret_cast<std::uint64_t>(parts[i]),
                                           before.part(i).data(),
                                           static_cast<std::size_t>(before.part(i).size()) * 2),
              "upload");
  gpu::must(instance.launch(stream), "launch");
  CHECK(found() == direct);
}
