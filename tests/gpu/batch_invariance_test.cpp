#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gpu/device_layer.hpp"

// A batch_invariant layer: a token's output bits do not depend on how many tokens come with it, nor on which.

namespace {

/// The first token's row.
std::vector<std::uint16_t> first_row(const std::vector<std::uint16_t>& out, std::int64_t hidden) {
  return {out.begin(), out.begin() + hidden};
}

void check_alone_and_in_company(varmoe::LayerSpec spec, oracle::Routing routing) {
  spec.batch_invariant = true;
  oracle::CaseOptions options;
  options.tokens = 3000;
  options.routing = routing;
  const auto c = oracle::make_case(spec, options);
  gpu::DeviceLayer layer(c);
  std::vector<std::uint16_t> alone;
  for (const std::int64_t tokens : {1, 2, 7, 64, 300, 1000, 3000}) {
    CAPTURE(tokens);
    // Each bucket with a config of its own.
    gpu::must(layer.layer().prepare(gpu::buckets({tokens})), "prepare");
    gpu::RunOptions run;
    run.tokens = tokens;
    const auto row = first_row(layer.forward_twice(run), spec.hidden_size);
    if (alone.empty()) alone = row;
    CHECK(row == alone);
  }
  gpu::RunOptions all;
  all.sample = 32;
  gpu::check_case("batch invariant", layer, all);
}

}  // namespace

TEST_CASE("batch invariance: a token alone and among 2 to 3000, in every main loop and layout") {
  varmoe::LayerSpec spec = varmoe::uniform_spec(1024, 16, 320, 4);
  spec.expert_widths[3] = 72;
  spec.expert_widths[9] = 712;
  check_alone_and_in_company(spec, oracle::Routing::uniform);
  check_alone_and_in_company(spec, oracle::Routing::zipf);
  check_alone_and_in_company(spec, oracle::Routing::half_on_one);
  varmoe::LayerSpec kn = spec;
  kn.fc1_layout = kn.fc2_layout = varmoe::WeightLayout::kn;
  kn.gate_order = varmoe::GateOrder::interleaved;
  kn.dtype = varmoe::DType::fp16;
  check_alone_and_in_company(kn, oracle::Routing::uniform);
  kn.bias = kn.weight_on_input = true;
  check_alone_and_in_company(kn, oracle::Routing::zipf);
  check_alone_and_in_company(varmoe::uniform_spec(2048, 64, 256, 8, varmoe::Activation::relu2),
                             oracle::Routing::uniform);
}

TEST_CASE(
    "batch invariance: every width of the instruction and every tile height give a token the same bits") {
  if (gpu::device()->attributes().compute_major != 9) return;
  varmoe::LayerSpec spec = varmoe::uniform_spec(512, 8, 192, 2);
  spec.batch_invariant = true;
  oracle::CaseOptions options;
  options.tokens = 600;
  options.routing = oracle::Routing::zipf;
  const auto c = oracle::make_case(spec, options);
  std::vector<std::uint16_t> expected;
  for (const char* tiles :
       {"schedule=wgmma,block_m=256,block_n=128,stages=4,warps_m=1,warps_n=8",
        "schedule=wgmma,block_m=64,block_n=256,stages=4,warps_m=1,warps_n=8",
        "schedule=wgmma,block_m=16,block_n=128,stages=8,warps_m=1,warps_n=8",
        "schedule=wgmma_pingpong,block_m=160,block_n=128,stages=4,warps_m=2,warps_n=4",
        "schedule=wgmma_pingpong,block_m=48,block_n=128,stages=6,warps_m=2,warps_n=4,cluster=2",
        "schedule=wgmma,block_m=160,block_n=256,stages=4,warps_m=1,warps_n=8,cluster=2"}) {
    CAPTURE(tiles);
    varmoe::EngineOptions engine_options;
    engine_options.cache_dir = gpu::cache_dir();
    engine_options.fc1_config = engine_options.fc2_config = std::string(tiles) + ",block_k=64,ctas_per_sm=1";
    auto engine = gpu::must(varmoe::Engine::create(engine_options), "Engine::create");
    gpu::DeviceLayer layer(c, {}, &engine);
    const auto out = layer.forward_twice();
    if (expected.empty()) expected = out;
    CHECK(out == expected);
  }
}
