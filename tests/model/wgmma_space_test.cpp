// The config space of Hopper's schedules.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "support/wgmma_configs.hpp"

using namespace varmoe;
using namespace varmoe::model;
using test::pingpong;
using test::wgmma;

namespace {

DeviceProfile device(const char* id) {
  auto profile = find_profile(id);
  REQUIRE(profile);
  return *profile;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

LayerSpec gated() {
  return uniform_spec(2048, 8, 768, 2);
}
LayerSpec plain() {
  return uniform_spec(2048, 8, 768, 2, Activation::relu2);
}
LayerSpec kn(LayerSpec spec, GateOrder order = GateOrder::gate_first) {
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = order;
  return spec;
}

/// "" when the config is inside the space.
std::string refusal(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                    const DeviceProfile& d) {
  const Status status = check_gemm_config(spec, stage, config, d);
  if (status) return "";
  CHECK(status.error().code() == ErrorCode::invalid_config);
  return status.error().message();
}
std::string refusal(const LayerSpec& spec, GemmStage stage, const GemmConfig& config) {
  return refusal(spec, stage, config, device("h200"));
}

}  // namespace

TEST_CASE("the wgmma schedules take what they are made for") {
  for (const LayerSpec& spec : {gated(), plain(), kn(gated(), GateOrder::interleaved), kn(plain())}) {
    CHECK(refusal(spec, GemmStage::fc1, wgmma(256, 128, 4)) == "");
    CHECK(refusal(spec, GemmStage::fc2, wgmma(256, 128, 4)) == "");
    CHECK(refusal(spec, GemmStage::fc1, pingpong(160, 128, 4)) == "");
    CHECK(refusal(spec, GemmStage::fc2, pingpong(160, 128, 4)) == "");
    for (const std::int32_t block_m : {16, 48, 64, 240})
      CHECK(refusal(spec, GemmStage::fc1, wgmma(block_m, 128, 2)) == "");
  }
  CHECK(refusal(kn(gated()), GemmStage::fc1, wgmma(128, 256, 3)) == "");
  CHECK(refusal(kn(gated()), GemmStage::fc1, pingpong(160, 128, 5)) == "");
}

TEST_CASE("fault 24: fields that a wgmma schedule has one value of are refused with it") {
  struct Case {
    const char* field;
    std::int32_t GemmConfig::*member;
    std::int32_t value, wgmma, pingpong;
  };
  const Case cases[] = {
      {"block_k", &GemmConfig::block_k, 32, 64, 64},      {"block_k", &GemmConfig::block_k, 128, 64, 64},
      {"warps_m", &GemmConfig::warps_m, 4, 1, 2},         {"warps_n", &GemmConfig::warps_n, 2, 8, 4},
      {"ctas_per_sm", &GemmConfig::ctas_per_sm, 2, 1, 1},
  };
  for (const Case& c : cases) {
    for (const bool alternate : {false, true}) {
      GemmConfig config = alternate ? pingpong(64, 128, 3) : wgmma(64, 128, 3);
      config.*c.member = c.value;
      const std::string message = refusal(gated(), GemmStage::fc2, config);
      CAPTURE(message);
      CHECK(contains(message, std::string(c.field) + " is " + std::to_string(c.value) + ";"));
      CHECK(contains(message, std::string("schedule=") + to_string(config.schedule) + " takes " +
                                  std::to_string(alternate ? c.pingpong : c.wgmma) + " only"));
    }
  }
}

TEST_CASE("fault 24: clusters of two are the wgmma schedules'; mma_sync refuses them by name") {
  for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
    for (GemmConfig config :
         {wgmma(16, 128, 3), wgmma(256, 128, 4), pingpong(8, 64, 3), pingpong(160, 128, 4)}) {
      config.row_step = 8;
      config.cluster = 2;
      CHECK(refusal(gated(), stage, config) == "");
      for (const std::int32_t cluster : {0, 3, 4}) {
        config.cluster = cluster;
        CHECK(contains(refusal(gated(), stage, config),
                       "cluster is " + std::to_string(cluster) + "; must be one of 1, 2"));
      }
    }
    GemmConfig portable;
    CHECK(refusal(gated(), stage, portable) == "");
    portable.cluster = 2;
    CHECK(contains(refusal(gated(), stage, portable), "cluster is 2; schedule=mma_sync takes 1 only"));
  }
}

TEST_CASE("a cluster's tickets take shared memory: a ring that just fits may not fit in a cluster") {
  const DeviceProfile h200 = device("h200");
  for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
    for (const GemmConfig& alone : {wgmma(256, 128, 3), pingpong(64, 128, 3)}) {
      GemmConfig cluster = alone;
      cluster.cluster = 2;
      const std::int64_t least = wgmma_smem_bytes(gated(), stage, alone);
      CHECK(wgmma_smem_bytes(gated(), stage, cluster) == least + 8 * (8 + 4));
      DeviceProfile full = h200;
      full.smem_per_block = least;
      CHECK(refusal(gated(), stage, alone, full) == "");
      CHECK(
          contains(refusal(gated(), stage, cluster, full), "take " + std::to_string(least + 96) + " bytes"));
    }
  }
}

TEST_CASE("candidates: tall tiles in clusters of two too on Hopper, nothing in clusters elsewhere") {
  for (const DeviceProfile& d : shipped_profiles()) {
    CAPTURE(d.id);
    for (const LayerSpec& spec : {gated(), plain(), kn(gated()), kn(gated(), GateOrder::interleaved)}) {
      for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
        const std::vector<GemmConfig> candidates = gemm_candidates(spec, stage, d);
        CHECK(candidates.size() <= kMaxGemmCandidates);
        int clusters[2] = {}, alone[2] = {};  // by schedule
        for (const GemmConfig& c : candidates) {
          if (!uses_wgmma(c)) {
            CHECK(c.cluster == 1);
            continue;
          }
          ++(c.cluster == 2 ? clusters : alone)[c.schedule == Schedule::wgmma_pingpong];
          // Short tiles meet few others of their expert.
          if (c.cluster == 2) CHECK(c.block_m >= 64);
        }
        for (const int schedule : {0, 1}) {
          CHECK((clusters[schedule] > 0) == (d.arch == "sm_90a"));
          CHECK(alone[schedule] >= clusters[schedule]);
        }
      }
    }
  }
}

TEST_CASE("fault 24: a schedule that is none is refused with the choices") {
  GemmConfig config = wgmma(64, 128, 3);
  config.schedule = static_cast<Schedule>(3);
  CHECK(refusal(gated(), GemmStage::fc1, config) ==
        "schedule is 3; must be mma_sync, wgmma or wgmma_pingpong");
}

TEST_CASE("fault 24: block_m is a multiple of row_step; mma_sync keeps to its powers of two") {
  for (const std::int32_t row_step : {8, 16, 32}) {
    for (std::int32_t block_m = 8; block_m <= 160; block_m += 8) {
      for (GemmConfig config : {wgmma(block_m, 128, 3), pingpong(block_m, 128, 3)}) {
        config.row_step = row_step;
        const std::string message = refusal(gated(), GemmStage::fc2, config);
        CAPTURE(message);
        if (block_m % row_step == 0) {
          CHECK(message == "");
        } else {
          CHECK(contains(message, "block_m is " + std::to_string(block_m)));
          CHECK(contains(message, "row_step=" + std::to_string(row_step)));
        }
      }
    }
  }
  for (const std::int32_t block_m : {8, 24, 48, 96, 160, 248}) {
    GemmConfig config;
    config.block_m = block_m;
    config.warps_m = 1;
    config.warps_n = 4;
    const std::string message = refusal(gated(), GemmStage::fc1, config);
    CHECK(contains(message, "block_m is " + std::to_string(block_m)));
    CHECK(contains(message, "schedule=mma_sync takes one of 16, 32, 64, 128, 256"));
  }
}

TEST_CASE(
    "fault 24: block_n is whole instructions of 64 weight rows for each group, gate and up each where they "
    "lie apart") {
  const auto takes = [](const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                        std::int32_t multiple) {
    const std::string message = refusal(spec, stage, config);
    CAPTURE(message);
    if (config.block_n % multiple == 0) {
      CHECK(message == "");
    } else {
      CHECK(contains(message, "block_n is " + std::to_string(config.block_n)));
      CHECK(contains(message, "multiples of " + std::to_string(multiple)));
    }
  };
  for (const std::int32_t block_n : {32, 64, 96, 128, 192, 256}) {
    // One group's share of a ping-pong tile is all of it, and 128 weight rows are what its epilogue has
    // registers for.
    const GemmConfig both = wgmma(64, block_n, 3), each = pingpong(32, std::min(block_n, 128), 3);
    for (const LayerSpec& spec : {gated(), plain(), kn(plain()), kn(gated(), GateOrder::interleaved)}) {
      for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
        takes(spec, stage, both, 128);
        takes(spec, stage, each, 64);
      }
    }
    for (const GateOrder order : {GateOrder::gate_first, GateOrder::up_first}) {
      takes(kn(gated(), order), GemmStage::fc1, both, 256);
      takes(kn(gated(), order), GemmStage::fc1, each, 128);
      takes(kn(gated(), order), GemmStage::fc2, both, 128);
    }
  }
  CHECK(contains(refusal(kn(gated()), GemmStage::fc1, wgmma(64, 128, 3)), "gate and up apart in kn weights"));
  CHECK(contains(refusal(plain(), GemmStage::fc2, pingpong(32, 256, 3)),
                 "block_n is 256; schedule=wgmma_pingpong takes at most 128"));
}

TEST_CASE(
    "fault 24: a thread's accumulators: two groups share a wgmma tile, a ping-pong tile is one group's") {
  CHECK(accumulators_per_thread(wgmma(256, 128, 2)) == 128);
  CHECK(accumulators_per_thread(pingpong(128, 128, 2)) == 128);
  // A gated fc1 stores half as many columns as it multiplies.
  CHECK(kMaxWgmmaGatedAccumulators >= kMaxWgmmaAccumulators);
  for (const GemmConfig& config : {wgmma(256, 256, 2), pingpong(256, 128, 2)}) {
    const auto refused = [&](const LayerSpec& spec, GemmStage stage, std::int64_t most) {
      const std::string message = refusal(spec, stage, config);
      CAPTURE(message);
      CHECK(contains(message, "block_m=256,block_n=" + std::to_string(config.block_n)));
      CHECK(contains(message, "256 accumulators a thread; at most " + std::to_string(most)));
    };
    const bool each = config.schedule == Schedule::wgmma_pingpong;
    refused(gated(), GemmStage::fc1, each ? kMaxWgmmaAccumulators : kMaxWgmmaGatedAccumulators);
    refused(kn(gated(), GateOrder::interleaved), GemmStage::fc1, kMaxWgmmaAccumulators);
    refused(gated(), GemmStage::fc2, kMaxWgmmaAccumulators);
    refused(plain(), GemmStage::fc1, kMaxWgmmaAccumulators);
    LayerSpec biased = gated();
    biased.bias = true;
    refused(biased, GemmStage::fc1, kMaxWgmmaAccumulators);
    LayerSpec weighted = gated();
    weighted.weight_on_input = true;
    refused(weighted, GemmStage::fc1, kMaxWgmmaAccumulators);
    LayerSpec erf = gated();
    erf.activation = Activation::gelu_erf_mul;
    refused(erf, GemmStage::fc1, kMaxWgmmaErfAccumulators);
  }
}

TEST_CASE("fault 24: the wgmma schedules are Hopper's alone") {
  int hoppers = 0;
  for (const DeviceProfile& d : shipped_profiles()) {
    for (const GemmConfig& config : {wgmma(64, 128, 3), pingpong(64, 128, 3)}) {
      const std::string message = refusal(gated(), GemmStage::fc1, config, d);
      CAPTURE(d.id);
      CAPTURE(message);
      if (d.arch == "sm_90a") {
        ++hoppers;
        CHECK(message == "");
      } else {
        CHECK(contains(message, std::string("schedule=") + to_string(config.schedule)));
        CHECK(contains(message, "sm_90a"));
        CHECK(contains(message, d.name));
      }
      // What no device decides is the same for all.
      CHECK(check_gemm_shape(gated(), GemmStage::fc1, config));
    }
  }
  CHECK(hoppers > 0);
}

TEST_CASE("fault 24: a wgmma ring beyond a block's shared memory is refused with both numbers") {
  const DeviceProfile h200 = device("h200");
  for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
    for (const GemmConfig& least :
         {wgmma(256, 128, 2), wgmma(160, 256, 2), wgmma(64, 128, 2), pingpong(160, 128, 2)}) {
      GemmConfig config = least;
      for (; config.stages <= 8; ++config.stages) {
        const std::int64_t bytes = wgmma_smem_bytes(gated(), stage, config);
        const std::string message = refusal(gated(), stage, config);
        CAPTURE(message);
        if (bytes <= h200.smem_per_block) {
          CHECK(message == "");
          continue;
        }
        CHECK(contains(message, "stages=" + std::to_string(config.stages)));
        CHECK(contains(message, "take " + std::to_string(bytes) + " bytes"));
        CHECK(contains(message, "has " + std::to_string(h200.smem_per_block)));
        CHECK(contains(message, h200.name));
      }
    }
  }
  CHECK(wgmma_smem_bytes(gated(), GemmStage::fc1, wgmma(256, 128, 5)) > h200.smem_per_block);
  CHECK(wgmma_smem_bytes(gated(), GemmStage::fc1, wgmma(256, 128, 4)) <= h200.smem_per_block);
}

TEST_CASE("wgmma: one block an SM, and copied rows need no offsets") {
  const DeviceProfile h200 = device("h200");
  CHECK(resident_blocks(wgmma(16, 128, 2), h200) == 1);
  CHECK(resident_blocks(pingpong(16, 128, 2), h200) == 1);
  GemmConfig copied = wgmma(80, 128, 3);
  const std::int64_t fused = wgmma_smem_bytes(gated(), GemmStage::fc1, copied);
  copied.gather = GatherMode::copy;
  // Four slots, rows by 32, and a barrier that says that a tile is known before its rows are.
  CHECK(fused - wgmma_smem_bytes(gated(), GemmStage::fc1, copied) == 4 * (96 * 4 + 8));
  // fc2 never gathers.
  GemmConfig plain_rows = copied;
  plain_rows.gather = GatherMode::fused;
  CHECK(wgmma_smem_bytes(gated(), GemmStage::fc2, copied) ==
        wgmma_smem_bytes(gated(), GemmStage::fc2, plain_rows));
}

TEST_CASE("h's rows are whole stages of 64") {
  CHECK(h_columns(8) == 64);
  CHECK(h_columns(64) == 64);
  CHECK(h_columns(72) == 128);
  CHECK(h_columns(kMaxWidth) == kMaxWidth);
}

TEST_CASE(
    "fault 24: fc2 by wgmma multiplies whole stages: widths beside multiples of 64 need an fc1 that writes "
    "the zeroes") {
  const DeviceProfile h200 = device("h200");
  LayerSpec odd = gated(), even = gated();
  odd.expert_widths = {768, 512, 72, 768};
  even.expert_widths = {768, 512, 64, 768};
  const auto message = [&](const LayerSpec& spec, const GemmConfig& fc1, const GemmConfig& fc2) {
    LayerConfig config;
    config.fc1 = fc1;
    config.fc2 = fc2;
    const Status status = check_layer_config(spec, config, h200);
    return status ? std::string() : status.error().message();
  };
  const GemmConfig portable, both = wgmma(64, 128, 3), each = pingpong(64, 128, 3);
  for (const GemmConfig& hopper : {both, each}) {
    for (const LayerSpec& spec : {odd, even}) {
      CHECK(message(spec, both, hopper) == "");
      CHECK(message(spec, each, hopper) == "");
      CHECK(message(spec, hopper, portable) == "");
    }
    CHECK(message(even, portable, hopper) == "");
    const std::string refused = message(odd, portable, hopper);
    CHECK(contains(refused, std::string("fc2: schedule=") + to_string(hopper.schedule)));
    CHECK(contains(refused, "fc1: schedule=mma_sync"));
    CHECK(contains(refused, "multiples of 64; one is 72"));
  }
  // A gated tile of 64 weight rows is 32 columns of h: the last one may end before the stage does.
  const GemmConfig narrow = pingpong(64, 64, 3);
  CHECK(message(even, narrow, each) == "");
  for (const GemmConfig& fc2 : {portable, each}) {
    CHECK(contains(message(odd, narrow, fc2), "fc1: block_n is 64: tiles of 32 columns of h"));
    CHECK(contains(message(odd, narrow, fc2), "must be a multiple of 128"));
  }
  LayerSpec odd_plain = odd;
  odd_plain.activation = Activation::relu2;
  CHECK(message(odd_plain, narrow, each) == "");
}

TEST_CASE(
    "batch_invariant layers on Hopper have one main loop for every token count, and no whole-layer kernel") {
  const DeviceProfile h200 = device("h200"), a100 = device("a100-80gb");
  LayerSpec uneven = gated(), any = gated();
  uneven.expert_widths = {8, 72, 200, 768, 8, 72, 200, 768};
  any.expert_widths.clear();
  for (std::int64_t e = 1; e <= 40; ++e) any.expert_widths.push_back(8 * e);
  for (LayerSpec spec :
       {gated(), plain(), uneven, any, kn(gated()), kn(gated(), GateOrder::interleaved), kn(plain())}) {
    spec.batch_invariant = true;
    CAPTURE(kernel_signature(spec));
    for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
      const auto candidates = gemm_candidates(spec, stage, h200);
      CHECK(candidates.size() > 4);
      for (const GemmConfig& config : candidates) CHECK(uses_wgmma(config));
      CHECK(contains(refusal(spec, stage, GemmConfig(), h200), "not for batch_invariant layers"));
      CHECK(check_gemm_config(spec, stage, GemmConfig(), a100).ok());
    }
    for (const std::int64_t tokens : {1, 2, 8, 64, 1024, 16384}) {
      const LayerConfig config = predict_layer_config(spec, tokens, h200);
      CHECK(check_layer_config(spec, config, h200).ok());
      CHECK(uses_wgmma(config.fc1));
      CHECK(uses_wgmma(config.fc2));
      CHECK(config.one_launch.max_tokens == 0);
    }
  }
}
