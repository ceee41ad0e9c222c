#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "gpu/device_layer.hpp"

// What Hopper's GEMMs share between blocks and kernels: clusters on one expert's weights, fc2 beside fc1's
// end.

namespace {

constexpr const char* kCooperative =
    "schedule=wgmma,block_m=64,block_n=128,block_k=64,stages=4,warps_m=1,warps_n=8,ctas_per_sm=1,cluster=2";
constexpr const char* kPingPong =
    "schedule=wgmma_pingpong,block_m=48,block_n=128,block_k=64,stages=6,warps_m=2,warps_n=4,ctas_per_sm=1,"
    "cluster=2";

bool hopper() {
  if (gpu::device()->attributes().compute_major == 9) return true;
  MESSAGE("needs a Hopper GPU");
  return false;
}

varmoe::Engine engine_of(const std::string& fc1, const std::string& fc2) {
  varmoe::EngineOptions options;
  options.cache_dir = gpu::cache_dir();
  options.fc1_config = fc1;
  options.fc2_config = fc2;
  return gpu::must(varmoe::Engine::create(options), "Engine::create");
}

/// More widths than can be compiled in.
varmoe::LayerSpec any_width_spec() {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 40, 8, 3);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 8 * (1 + static_cast<std::int64_t>(e * 7 % 40));
  return spec;
}

}  // namespace

TEST_CASE("small: clusters with runtime widths, empty experts and experts of one row") {
  if (!hopper()) return;
  oracle::CaseOptions options;
  options.tokens = 700;
  options.routing = oracle::Routing::zipf;
  const auto c = oracle::make_case(any_width_spec(), options);
  for (const auto& [fc1, fc2] : {std::pair{kCooperative, kPingPong}, std::pair{kPingPong, kCooperative}}) {
    auto engine = engine_of(fc1, fc2);
    gpu::DeviceLayer layer(c, {}, &engine);
    for (const std::int64_t tokens : {1, 40, 700}) {
      gpu::RunOptions run;
      run.tokens = tokens;
      gpu::check_case("clusters, runtime widths", layer, run);
    }
  }
}

TEST_CASE("small: clusters held to an odd number of SMs") {
  if (!hopper()) return;
  oracle::CaseOptions options;
  options.tokens = 300;
  auto spec = varmoe::uniform_spec(256, 6, 192, 2);
  spec.expert_widths = {192, 64, 128, 64, 192, 72};
  const auto c = oracle::make_case(spec, options);
  auto engine = engine_of(kCooperative, kPingPong);
  for (const std::int32_t sms : {1, 3}) {
    varmoe::LayerOptions limited;
    limited.max_sms = sms;
    gpu::DeviceLayer layer(c, limited, &engine);
    gpu::check_case("clusters, few SMs", layer);
  }
}

TEST_CASE("two streams of clustered GEMMs that overlap do not starve each other") {
  if (!hopper()) return;
  oracle::CaseOptions options;
  options.tokens = 2048;
  options.routing = oracle::Routing::zipf;
  const auto a = oracle::make_case(varmoe::uniform_spec(1024, 32, 320, 4), options);
  options.seed = 5;
  const auto b = oracle::make_case(varmoe::uniform_spec(768, 48, 448, 4), options);
  auto engine = engine_of(kCooperative, kPingPong);
  gpu::DeviceLayer one(a, {}, &engine), two(b, {}, &engine);
  gpu::RunOptions run;
  run.sample = 48;
  gpu::check_case("clusters, two streams", one, run);
  gpu::check_case("clusters, two streams", two, run);
  const auto expect_one = one.forward_twice(), expect_two = two.forward_twice();
  one.poison_out();
  two.poison_out();
  const auto args_one = one.args({}), args_two = two.args({});
  for (int round = 0; round < 300; ++round) {
    gpu::must(one.layer().forward(args_one), "forward");
    gpu::must(two.layer().forward(args_two), "forward");
    if (round % 7 == 0) gpu::must(two.layer().forward(args_two), "forward");
  }
  CHECK(one.download_out() == expect_one);
  CHECK(two.download_out() == expect_two);
}
