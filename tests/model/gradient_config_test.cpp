#include "model/gradient_config.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "model/backward_layer.hpp"
#include "model/cost_model.hpp"

using namespace varmoe;
using namespace varmoe::model;

namespace {

DeviceProfile device(const char* id) {
  auto found = find_profile(id);
  REQUIRE(found.ok());
  return *found;
}

LayerSpec gated(std::int64_t hidden, std::int64_t width, WeightLayout layout = WeightLayout::nk,
                GateOrder order = GateOrder::gate_first) {
  LayerSpec spec = uniform_spec(hidden, 8, width, 2);
  spec.fc1_layout = spec.fc2_layout = layout;
  spec.gate_order = order;
  return spec;
}

}  // namespace

TEST_CASE("a gradient config's text is read as it is written, and partly") {
  for (const GradientConfig& config : gradient_configs(device("h200"))) {
    const auto read = parse_gradient_config(to_string(config), {});
    REQUIRE(read.ok());
    CHECK(*read == config);
  }
  const GradientConfig base{Schedule::wgmma, 128, 256, 4, GatherMode::copy};
  const auto read = parse_gradient_config("stages=3,gather=fused", base);
  REQUIRE(read.ok());
  CHECK(*read == GradientConfig{Schedule::wgmma, 128, 256, 3, GatherMode::fused});
  CHECK(*parse_gradient_config("", base) == base);
  for (const char* bad : {"stages", "stages=", "stages=3x", "block_k=64", "schedule=pingpong", "gather=no",
                          "stages=99999999999"}) {
    CAPTURE(bad);
    const auto refused = parse_gradient_config(bad, base);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code() == ErrorCode::invalid_config);
  }
}

TEST_CASE("the cost model's four products exist and go together, for every layer and device") {
  LayerSpec uneven = gated(1024, 512);
  uneven.expert_widths = {8, 72, 512, 512, 520, 768, 1000, 1024};
  LayerSpec ungated = gated(1024, 512);
  ungated.activation = Activation::relu2;
  LayerSpec shared = gated(2048, 768);
  shared.shared_widths = {1536};
  for (const DeviceProfile& profile : shipped_profiles()) {
    for (const LayerSpec& spec :
         {gated(2048, 768), gated(4096, 14336), uneven, ungated, shared, gated(2048, 768, WeightLayout::kn),
          gated(2048, 768, WeightLayout::kn, GateOrder::interleaved)}) {
      for (const std::int64_t tokens : {1, 64, 4096}) {
        CAPTURE(profile.id);
        CAPTURE(tuning_signature(spec));
        const BackwardConfig config = predict_products(spec, tokens, profile);
        const Status sound = check_backward_config(spec, config, profile);
        CHECK_MESSAGE(sound.ok(), (sound.ok() ? "" : sound.error().message()));
        CHECK(with_copies(config) == config);
      }
    }
  }
}

TEST_CASE("products that do not exist or do not go together are told by name") {
  const DeviceProfile h200 = device("h200");
  const LayerSpec spec = gated(2048, 768);
  const BackwardConfig good = predict_products(spec, 4096, h200);
  const auto refusal = [&](auto change, const LayerSpec& of) {
    BackwardConfig config = good;
    change(config);
    const Status status = check_backward_config(of, config, h200);
    return status.ok() ? std::string() : status.error().message();
  };
  CHECK(refusal([](BackwardConfig&) {}, spec) == "");
  CHECK(refusal([](BackwardConfig& c) { c.dh.stages = 99; }, spec).rfind("dh: ", 0) == 0);
  CHECK(refusal([](BackwardConfig& c) { c.dx.block_m = 3; }, spec).rfind("dx: ", 0) == 0);
  CHECK(refusal([](BackwardConfig& c) { c.fc1_gradient.stages = 1; }, spec).rfind("fc1_gradient: ", 0) == 0);
  CHECK(refusal([](BackwardConfig& c) { c.fc2_gradient.block_m = 32; }, spec).rfind("fc2_gradient: ", 0) ==
        0);
  const auto deep = [](BackwardConfig& c) {
    c.dx = GemmConfig{};
    c.dx.block_m = c.dx.block_n = 64;
    c.dx.block_k = 128;
    c.dx.stages = 2;
  };
  CHECK(refusal(deep, spec).find("dx: block_k is 128; must be at most 64 in a gated layer") == 0);
  LayerSpec ungated = spec;
  ungated.activation = Activation::relu2;
  CHECK(refusal(deep, ungated) == "");
  LayerSpec weighted = spec;
  weighted.weight_on_input = true;
  CHECK(check_backward_config(weighted, good, h200).ok());
  const auto apart = [](BackwardConfig& c) {
    c.fc1_gradient = {Schedule::wgmma, 128, 128, 4, GatherMode::copy};
    c.dh.gather = GatherMode::fused;
  };
  CHECK(refusal(apart, spec).find("dh: gather is fused; must be copy") == 0);
}

TEST_CASE("the space keeps to the device, and what is outside is told the choices") {
  for (const DeviceProfile& profile : shipped_profiles()) {
    CAPTURE(profile.id);
    const auto all = gradient_configs(profile);
    REQUIRE_FALSE(all.empty());
    for (const GradientConfig& config : all) {
      CHECK(gradient_smem_bytes(config) <= profile.smem_per_block);
      CHECK(check_gradient_config(config, profile).ok());
      CHECK((config.schedule == Schedule::mma_sync || profile.compute_major == 9));
    }
    const Status refused =
        check_gradient_config({Schedule::mma_sync, 96, 128, 3, GatherMode::fused}, profile);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message().find("block_m=96") != std::string::npos);
    CHECK(refused.error().message().find("64 or 128") != std::string::npos);
  }
}

TEST_CASE("the choice is in the space, and wide experts alone read copies") {
  for (const DeviceProfile& profile : shipped_profiles()) {
    CAPTURE(profile.id);
    for (const std::int64_t width : {8, 64, 256, 768, 2048, 14336})
      for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn})
        for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
          const LayerSpec spec = gated(2048, width, layout);
          const GradientConfig config = predict_gradient_config(spec, stage, profile);
          CAPTURE(to_string(config));
          CHECK(check_gradient_config(config, profile).ok());
          CHECK((config.schedule == Schedule::wgmma) == (profile.compute_major == 9));
          // How wide is a matter of products against bandwidth.
          if (profile.id == "h200") CHECK(reads_copies(config) == (width >= 2048));
          if (profile.compute_major != 9) CHECK_FALSE(reads_copies(config));
          if (config.schedule != Schedule::wgmma || reads_copies(config)) continue;
          CHECK((gradient_rows_are_hidden(spec, stage) ? config.block_m : config.block_n) <= 128);
        }
  }
}

TEST_CASE("tiles of a gradient follow its shape") {
  const GradientConfig c{Schedule::wgmma, 128, 256, 4, GatherMode::fused};
  // fc1 nk: gate and up [200, 520] each; fc2 nk: [520, 200].
  CHECK(gradient_tiles(gated(520, 200), GemmStage::fc1, c, 200) == 2 * 2 * 3);
  CHECK(gradient_tiles(gated(520, 200), GemmStage::fc2, c, 200) == 5 * 1);
  // kn: [520, 200] twice, or [520, 400] where they alternate.
  CHECK(gradient_tiles(gated(520, 200, WeightLayout::kn), GemmStage::fc1, c, 200) == 2 * 5 * 1);
  CHECK(gradient_tiles(gated(520, 200, WeightLayout::kn, GateOrder::interleaved), GemmStage::fc1, c, 200) ==
        5 * 2);
  CHECK(gradient_tiles(gated(520, 200, WeightLayout::kn), GemmStage::fc2, c, 200) == 2 * 3);
  LayerSpec plain = gated(520, 200);
  plain.activation = Activation::relu2;
  CHECK(gradient_tiles(plain, GemmStage::fc1, c, 200) == 2 * 3);
}

TEST_CASE("the backward layer turns the matrices round") {
  LayerSpec spec = gated(512, 200, WeightLayout::nk, GateOrder::up_first);
  spec.shared_widths = {72};
  spec.shared_gate = true;
  const LayerSpec back = backward_layer(spec), down = backward_down_layer(spec);
  CHECK(back.validate().ok());
  CHECK(down.validate().ok());
  CHECK_FALSE(back.gated());
  CHECK(back.fc1_layout == WeightLayout::kn);
  CHECK(back.fc2_layout == WeightLayout::kn);
  CHECK(back.expert_widths == spec.expert_widths);
  CHECK(back.shared_widths == spec.shared_widths);
  CHECK_FALSE(back.shared_gate);
  CHECK(back.weight_on_input);  // its sort writes the rows' weights, its combine does not
  // Each of gate and up in whole stages of 64.
  CHECK(down.expert_widths.front() == 512);
  CHECK(down.shared_widths.front() == 256);
  CHECK(
      backward_down_layer(gated(512, 200, WeightLayout::kn, GateOrder::interleaved)).expert_widths.front() ==
      400);
  LayerSpec plain = gated(512, 200);
  plain.activation = Activation::relu2;
  CHECK(backward_down_layer(plain).expert_widths.front() == 200);
  for (const std::int64_t tokens : {1, 16, 64, 4096})
    CHECK(predict_backward_config(spec, tokens, device("h200")).fc2.block_k <= 64);
}

TEST_CASE(
    "a span of partial sums is what one warp or warpgroup has of a tile, and no config has more than there "
    "is room for") {
  GemmConfig config;
  config.schedule = Schedule::wgmma;
  config.block_n = 256;
  CHECK(partial_sums(config, 768).span == 128);
  CHECK(partial_sums(config, 768).of_row == 6);
  CHECK(partial_sums(config, 776).of_row == 7);
  config.schedule = Schedule::wgmma_pingpong;
  config.block_n = 64;
  CHECK(partial_sums(config, 8).span == 64);
  CHECK(partial_sums(config, 8).of_row == 1);
  config.schedule = Schedule::mma_sync;
  config.block_n = 96;
  config.warps_n = 2;
  CHECK(partial_sums(config, 768).span == 48);
  for (const DeviceProfile& profile : shipped_profiles()) {
    const LayerSpec back = backward_layer(gated(2048, 776));
    for (const GemmConfig& candidate : gemm_candidates(back, GemmStage::fc1, profile)) {
      const GemmConfig saving = saving_config(candidate);
      // Half of some tiles is none.
      if (!check_dh_config(back, candidate, profile)) continue;
      const PartialSums sums = partial_sums(saving, 776);
      if (sums.span % 16 != 0 || sums.of_row > most_partials(776)) FAIL_CHECK(to_string(saving));
    }
  }
}

TEST_CASE("where the activation's backward follows, its time is part of the choice") {
  // 1024 rows an expert: two groups of one tile would both wait for what one of two can do beside the other.
  const DeviceProfile h200 = device("h200");
  const LayerSpec back = backward_layer(gated(2048, 768));
  const GemmConfig config = predict_dh_config(back, 2, 16384, h200);
  CHECK(check_dh_config(back, config, h200).ok());
  CHECK(config.schedule == Schedule::wgmma_pingpong);
  GemmConfig many = config;
  many.block_m = 160;
  many.block_n = 128;
  many.stages = 4;
  CHECK(check_gemm_config(back, GemmStage::fc1, many, h200).ok());
  const Status refused = check_dh_config(back, many, h200);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("at most 128") != std::string::npos);
  for (const DeviceProfile& profile : shipped_profiles())
    for (const std::int64_t tokens : {0, 1, 100, 4096})
      CHECK(check_dh_config(back, predict_dh_config(back, 1, tokens, profile), profile).ok());
}

TEST_CASE("a forward that keeps z has registers to spare") {
  for (const DeviceProfile& profile : shipped_profiles())
    for (const std::int64_t tokens : {1, 64, 4096}) {
      LayerSpec spec = gated(2048, 768);
      const GemmConfig config = saving_config(predict_backward_config(spec, tokens, profile).fc1);
      if (uses_wgmma(config)) continue;
      CHECK(accumulators_per_thread(config) <= 64);
      CHECK(config.ctas_per_sm == 1);
    }
}
