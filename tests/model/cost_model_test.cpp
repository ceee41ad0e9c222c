#include "model/cost_model.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "model/named_sets.hpp"
#include "model/routing_stats.hpp"
#include "model/token_bucket.hpp"

using namespace varmoe;
using namespace varmoe::model;

namespace {

DeviceProfile device(const char* id) {
  auto profile = find_profile(id);
  REQUIRE(profile);
  return *profile;
}

const LayerSpec kMixtral = uniform_spec(4096, 8, 14336, 2);
const LayerSpec kQwen235 = uniform_spec(4096, 128, 1536, 8);

}  // namespace

TEST_CASE("the floor of measured layers") {
  const DeviceProfile h200 = device("h200");
  // One token hits two experts: 2 * 3 * 4096 * 14336 weights of two bytes at 4.6 TB/s.
  CHECK(layer_floor(kMixtral, 1, h200).seconds == doctest::Approx(153e-6).epsilon(0.01));
  CHECK(layer_floor(kMixtral, 4096, h200).seconds == doctest::Approx(3653e-6).epsilon(0.01));
  CHECK(layer_floor(kQwen235, 16384, h200).seconds == doctest::Approx(6263e-6).epsilon(0.01));
  CHECK(layer_floor(*named_set("8_variable", 256), 4096, h200).seconds ==
        doctest::Approx(4.1e-6).epsilon(0.02));
  CHECK(layer_floor(*named_set("gated_16_widths"), 4096, h200).seconds ==
        doctest::Approx(1109e-6).epsilon(0.01));
}

TEST_CASE("the floor of a given draw counts the experts hit and no others") {
  const DeviceProfile h200 = device("h200");
  LayerSpec spec = uniform_spec(1024, 4, 256, 1);
  spec.expert_widths = {256, 512, 64, 128};
  const Floor floor = layer_floor(spec, 10, h200, {0, 7, 0, 3});
  CHECK(floor.flops == doctest::Approx(6.0 * 1024 * (7 * 512 + 3 * 128)));
  CHECK(floor.bytes == doctest::Approx(2.0 * (3 * 1024 * (512 + 128) + 2 * 10 * 1024)));
  CHECK(layer_floor(spec, 0, h200, {0, 0, 0, 0}).seconds == 0);
  CHECK(layer_floor(spec, 0, h200).seconds == 0);
}

TEST_CASE("row statistics agree with drawn routings") {
  std::mt19937 random(7);
  struct Case {
    int experts, top_k, tokens;
  };
  for (const Case& drawn : {Case{8, 2, 64}, Case{128, 8, 32}, Case{16, 1, 500}, Case{2, 5, 40}}) {
    const int experts = drawn.experts, top_k = drawn.top_k, tokens = drawn.tokens;
    CAPTURE(experts);
    CAPTURE(tokens);
    const LayerSpec spec = uniform_spec(64, experts, 64, top_k);
    const RoutingStats stats(spec, tokens);
    double hit = 0, tiles16 = 0, tiles64 = 0, pairs16 = 0;
    constexpr int kDraws = 4000;
    std::vector<int> order(static_cast<std::size_t>(experts));
    for (int i = 0; i < experts; ++i) order[static_cast<std::size_t>(i)] = i;
    for (int draw = 0; draw < kDraws; ++draw) {
      int rows = 0;  // of expert 0
      for (int t = 0; t < tokens; ++t) {
        if (top_k > experts) {
          for (int k = 0; k < top_k; ++k)
            rows += std::uniform_int_distribution<>(0, experts - 1)(random) == 0;
        } else {
          rows += std::uniform_int_distribution<>(0, experts - 1)(random) < top_k;
        }
      }
      hit += rows > 0;
      tiles16 += (rows + 15) / 16;
      tiles64 += (rows + 63) / 64;
      pairs16 += (rows + 31) / 32;
    }
    CHECK(stats.mean() == doctest::Approx(static_cast<double>(tokens) * top_k / experts));
    CHECK(stats.hit_share() == doctest::Approx(hit / kDraws).epsilon(0.04));
    CHECK(stats.row_tiles(16).mean == doctest::Approx(tiles16 / kDraws).epsilon(0.04));
    CHECK(stats.row_tiles(64).mean == doctest::Approx(tiles64 / kDraws).epsilon(0.04));
    CHECK(stats.row_tiles(16, 2).mean == doctest::Approx(2 * pairs16 / kDraws).epsilon(0.04));
  }
}

TEST_CASE("row statistics at the ends") {
  const RoutingStats one(uniform_spec(64, 1, 64, 1), 1000);
  CHECK(one.hit_share() == 1);
  CHECK(one.row_tiles(128).mean == 8);
  CHECK(one.row_tiles(128).variance == 0);
  // Clusters of two: 8 tiles are four, 5 become 6, and one becomes two.
  CHECK(one.row_tiles(128, 2).mean == 8);
  CHECK(one.row_tiles(200, 2).mean == 6);
  CHECK(one.row_tiles(1024, 2).mean == 2);
  CHECK(one.row_tiles(200, 2).variance == 0);
  const RoutingStats none(uniform_spec(64, 8, 64, 2), 0);
  CHECK(none.hit_share() == 0);
  CHECK(none.row_tiles(16).mean == 0);
  CHECK(none.row_tiles(16, 2).mean == 0);
  const RoutingStats huge(uniform_spec(64, 1024, 64, 1), std::int64_t{1} << 60);
  CHECK(huge.hit_share() == doctest::Approx(1));
  CHECK(std::isfinite(huge.row_tiles(16).mean));
}

TEST_CASE("a config is always predicted, and always sound") {
  std::mt19937_64 random(1);
  const auto upto = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  std::vector<DeviceProfile> devices = shipped_profiles();
  devices.push_back(generic_profile(8, 0, 1, 0, 0, 0));
  devices.push_back(generic_profile(13, 0, 500, 1 << 19, 1 << 20, std::int64_t{1} << 30));
  for (int i = 0; i < 300; ++i) {
    LayerSpec spec;
    spec.hidden_size = 8 * (8 + upto(1000));
    for (std::int64_t e = 1 + upto(512); e > 0; --e)
      spec.expert_widths.push_back(8 * (1 + upto(i % 2 == 0 ? 3 : 512)));
    spec.top_k = 1 + upto(16);
    spec.activation = static_cast<Activation>(upto(10));
    spec.fc1_layout = static_cast<WeightLayout>(upto(2));
    spec.fc2_layout = static_cast<WeightLayout>(upto(2));
    spec.gate_order = static_cast<GateOrder>(upto(3));
    REQUIRE(spec.validate());
    const std::int64_t tokens = std::int64_t{1} << upto(20);
    const DeviceProfile& d =
        devices[static_cast<std::size_t>(upto(static_cast<std::int64_t>(devices.size())))];
    CAPTURE(d.id);
    CAPTURE(tuning_signature(spec));
    CAPTURE(tokens);
    const LayerConfig config = predict_layer_config(spec, tokens, d);
    CHECK(check_layer_config(spec, config, d));
    const double seconds = predict_gemm_seconds(spec, GemmStage::fc1, config.fc1, tokens, d) +
                           predict_gemm_seconds(spec, GemmStage::fc2, config.fc2, tokens, d);
    CHECK(std::isfinite(seconds));
    CHECK(seconds > 0);
  }
  CHECK(check_layer_config(kMixtral, predict_layer_config(kMixtral, 0, devices[0]), devices[0]));
  CHECK(check_layer_config(kMixtral, predict_layer_config(kMixtral, INT64_MAX, devices[0]), devices[0]));
}

TEST_CASE("the prediction is the best candidate, and does not depend on the order of experts") {
  const DeviceProfile h200 = device("h200");
  LayerSpec spec = *named_set("64_variable");
  const LayerConfig config = predict_layer_config(spec, 512, h200);
  const double chosen = predict_gemm_seconds(spec, GemmStage::fc1, config.fc1, 512, h200);
  for (const GemmConfig& other : gemm_candidates(spec, GemmStage::fc1, h200)) {
    CHECK(predict_gemm_seconds(spec, GemmStage::fc1, other, 512, h200) >= chosen);
  }
  std::mt19937 random(3);
  for (int i = 0; i < 5; ++i) {
    std::shuffle(spec.expert_widths.begin(), spec.expert_widths.end(), random);
    for (const std::int64_t tokens : buckets_between(1, 16384)) {
      CHECK(predict_layer_config(spec, tokens, h200) ==
            predict_layer_config(*named_set("64_variable"), tokens, h200));
    }
  }
}

TEST_CASE("tiles follow the rows per expert") {
  for (const char* id : {"h200", "a100-80gb", "rtx-4090", "b200"}) {
    const DeviceProfile d = device(id);
    CAPTURE(id);
    // A row or two per expert: the least tile height, and more than double-buffered streams of weights.
    const LayerConfig decode = predict_layer_config(kQwen235, 8, d);
    CHECK(decode.fc1.block_m == 16);
    CHECK(decode.fc2.block_m == 16);
    CHECK(decode.fc1.stages >= 3);
    // A thousand rows per expert: tall and wide.
    const LayerConfig prefill = predict_layer_config(kQwen235, 16384, d);
    CHECK(prefill.fc1.block_m * prefill.fc1.block_n >= 64 * 128);
    CHECK(prefill.fc2.block_m >= 64);
  }
  const DeviceProfile h200 = device("h200");
  const GemmConfig hopper = predict_layer_config(kQwen235, 16384, h200).fc1;
  CHECK(uses_wgmma(hopper));
  CHECK(hopper.block_m * hopper.block_n >= 128 * 256);
  // Where mma.sync is all there is, square warp tiles.
  const GemmConfig wide = predict_layer_config(kQwen235, 16384, device("b200")).fc1;
  CHECK(wide.block_m * wide.block_n == 128 * 256);
  CHECK(wide.block_m / wide.warps_m == 64);
  CHECK(wide.block_n / wide.warps_n == 64);
}

TEST_CASE("fewer than 64 routed rows keep to the portable path, more go to Hopper's, however many experts") {
  const DeviceProfile h200 = device("h200");
  const LayerSpec one = uniform_spec(2048, 1, 768, 1);
  for (const LayerSpec& spec : {kMixtral, kQwen235, *named_set("gated_4_widths"), one}) {
    CAPTURE(spec.num_experts());
    std::vector<std::int64_t> all = buckets_between(1, 16384);
    for (const std::int64_t rows : {62, 63, 64, 65}) all.push_back(rows / spec.top_k);
    for (const std::int64_t tokens : all) {
      CAPTURE(tokens);
      const LayerConfig config = predict_layer_config(spec, tokens, h200);
      const bool many = tokens * spec.top_k >= 64;
      CHECK(uses_wgmma(config.fc1) == many);
      CHECK(uses_wgmma(config.fc2) == many);
    }
  }
}

TEST_CASE("predictions respect physics: no faster than the floor, no slower for less work") {
  const DeviceProfile h200 = device("h200");
  for (const LayerSpec& spec :
       {kMixtral, kQwen235, *named_set("64_variable"), *named_set("gated_16_widths")}) {
    double last = 0;
    bool last_wgmma = false;
    for (const std::int64_t tokens : buckets_between(1, 65536)) {
      CAPTURE(tokens);
      const LayerConfig config = predict_layer_config(spec, tokens, h200);
      const double seconds = predict_gemm_seconds(spec, GemmStage::fc1, config.fc1, tokens, h200) +
                             predict_gemm_seconds(spec, GemmStage::fc2, config.fc2, tokens, h200);
      CHECK(seconds >= layer_floor(spec, tokens, h200).seconds);
      // The two main loops have constants of their own, each fitted where it is chosen.
      if (uses_wgmma(config.fc1) == last_wgmma) CHECK(seconds >= 0.98 * last);
      last = seconds;
      last_wgmma = uses_wgmma(config.fc1);
    }
  }
}

TEST_CASE("predictions see what a config wastes") {
  const DeviceProfile h200 = device("h200");
  const auto fc1 = [&](const LayerSpec& spec, GemmConfig config, std::int64_t tokens) {
    REQUIRE(check_gemm_config(spec, GemmStage::fc1, config, h200));
    return predict_gemm_seconds(spec, GemmStage::fc1, config, tokens, h200);
  };
  GemmConfig tall{.block_m = 128, .block_n = 128, .block_k = 64, .stages = 3, .warps_m = 2, .warps_n = 4};
  GemmConfig shorter = tall;
  shorter.block_m = 64;
  // 40 rows per expert fill a third of 128.
  CHECK(fc1(kMixtral, shorter, 160) < fc1(kMixtral, tall, 160));
  CHECK(fc1(kMixtral, shorter, 16384) > fc1(kMixtral, tall, 16384));
  // Width 1408 is eleven tiles of 128 and eight of 176, but twelve of 128 when 1416 wide.
  const LayerSpec exact = uniform_spec(2048, 64, 1408, 6, Activation::relu2);
  const LayerSpec wasteful = uniform_spec(2048, 64, 1416, 6, Activation::relu2);
  CHECK(fc1(wasteful, tall, 8192) > 1.04 * fc1(exact, tall, 8192));
  // A pipeline two deep leaves the memory idle.
  GemmConfig shallow{.block_m = 16, .block_n = 64, .block_k = 64, .stages = 2, .warps_m = 1, .warps_n = 4};
  GemmConfig deep = shallow;
  deep.stages = 6;
  CHECK(fc1(kMixtral, deep, 1) < 0.7 * fc1(kMixtral, shallow, 1));
  // A cluster's second tile is wasted on an expert that fills one, and shares weights where it fills many.
  GemmConfig alone{
      .schedule = Schedule::wgmma, .block_m = 64, .block_n = 256, .stages = 4, .warps_m = 1, .warps_n = 8};
  GemmConfig cluster = alone;
  cluster.cluster = 2;
  CHECK(fc1(kMixtral, alone, 160) < fc1(kMixtral, cluster, 160));
  CHECK(fc1(kMixtral, alone, 16384) > fc1(kMixtral, cluster, 16384));
  // A copied x costs its traffic.
  GemmConfig copied = tall;
  copied.gather = GatherMode::copy;
  CHECK(fc1(uniform_spec(7168, 256, 64, 8), copied, 4096) > fc1(uniform_spec(7168, 256, 64, 8), tall, 4096));
}

TEST_CASE("token buckets") {
  CHECK(bucket_of(-3) == 1);
  CHECK(bucket_of(0) == 1);
  CHECK(bucket_of(1) == 1);
  CHECK(bucket_of(3) == 4);
  CHECK(bucket_of(4096) == 4096);
  CHECK(bucket_of(4097) == 8192);
  CHECK(bucket_of(INT64_MAX) == std::int64_t{1} << 62);
  CHECK(buckets_between(1, 1) == std::vector<std::int64_t>{1});
  CHECK(buckets_between(3, 20) == std::vector<std::int64_t>{4, 8, 16, 32});
  CHECK(buckets_between(5, 4).empty());
  CHECK(buckets_between(1, INT64_MAX).size() == 63);
  const std::vector<std::int64_t> prepared = {1, 64, 4096};
  CHECK(choose_bucket(prepared, 1) == 1);
  CHECK(choose_bucket(prepared, 2) == 64);
  CHECK(choose_bucket(prepared, 64) == 64);
  CHECK(choose_bucket(prepared, 5000) == 4096);
  CHECK(choose_bucket({}, 5) == -1);
}
