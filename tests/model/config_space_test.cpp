#include "model/config_space.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

#include "model/gemm_fields.hpp"
#include "model/named_sets.hpp"

using namespace varmoe;
using namespace varmoe::model;

namespace {

DeviceProfile device(const char* id) {
  auto profile = find_profile(id);
  REQUIRE(profile);
  return *profile;
}

LayerSpec gated() {
  return uniform_spec(2048, 8, 768, 2);
}

std::string refusal(const LayerSpec& spec, GemmStage stage, const GemmConfig& config,
                    const DeviceProfile& d) {
  const Status status = check_gemm_config(spec, stage, config, d);
  if (status) return "accepted";
  CHECK(status.error().code() == ErrorCode::invalid_config);
  return status.error().message();
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

/// Layers of every kind that the space treats apart.
std::vector<LayerSpec> specs() {
  std::vector<LayerSpec> result;
  for (const NamedSet& set : named_sets()) result.push_back(set.spec);
  for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
    for (const GateOrder order : {GateOrder::gate_first, GateOrder::interleaved}) {
      for (const auto& [hidden, width] :
           {std::pair{2880, 2880}, {2048, 1408}, {64, 8}, {200, 24}, {7168, 2048}}) {
        LayerSpec spec = uniform_spec(hidden, 16, width, 4);
        spec.fc1_layout = spec.fc2_layout = layout;
        spec.gate_order = order;
        result.push_back(spec);
        spec.activation = Activation::relu2;
        result.push_back(spec);
      }
    }
  }
  return result;
}

}  // namespace

TEST_CASE("fault 24: each field outside its values is refused by name with the choices") {
  const DeviceProfile h200 = device("h200");
  const GemmConfig good;
  REQUIRE(check_gemm_config(gated(), GemmStage::fc1, good, h200));
  for (const GemmField& field : gemm_fields()) {
    for (const std::int32_t value : {INT32_MIN, -1, 0, 3, 7, 1000, INT32_MAX}) {
      if (field.takes(value)) continue;
      GemmConfig config = good;
      config.*field.member = value;
      CAPTURE(field.key);
      CAPTURE(value);
      const std::string message = refusal(gated(), GemmStage::fc1, config, h200);
      CHECK(contains(message, field.key));
      CHECK(contains(message, std::to_string(value).c_str()));
      CHECK(contains(message, field.allowed().c_str()));
    }
  }
  GemmConfig config = good;
  config.schedule = static_cast<Schedule>(9);
  CHECK(contains(refusal(gated(), GemmStage::fc1, config, h200), "schedule is 9"));
  config = good;
  config.gather = static_cast<GatherMode>(2);
  CHECK(contains(refusal(gated(), GemmStage::fc1, config, h200), "gather is 2"));
}

TEST_CASE("fault 24: what fields must be together is refused with the reason") {
  const DeviceProfile h200 = device("h200");
  const auto message = [&](const GemmConfig& config) {
    return refusal(gated(), GemmStage::fc1, config, h200);
  };
  GemmConfig config;
  config.warps_m = config.warps_n = 1;
  CHECK(contains(message(config), "32 threads"));
  config.warps_m = 4;
  config.warps_n = 4;
  CHECK(contains(message(config), "512 threads"));
  config = {};
  config.block_m = 32;
  config.warps_m = 4;
  CHECK(contains(message(config), "multiple of 64"));
  config = {};
  config.block_n = 96;
  config.warps_n = 4;
  CHECK(contains(message(config), "multiple of 64"));
  config = {};
  config.block_m = config.block_n = 256;
  config.warps_m = 2;
  config.warps_n = 4;
  config.block_k = 32;
  CHECK(contains(message(config), "256 accumulators a thread; at most 128"));
}

TEST_CASE("kn weights want whole 64-byte spans of each k row") {
  const DeviceProfile h200 = device("h200");
  GemmConfig config;
  config.block_n = 80;
  config.warps_m = 4;
  config.warps_n = 1;
  LayerSpec spec = gated();
  CHECK(check_gemm_config(spec, GemmStage::fc1, config, h200));
  spec.fc1_layout = WeightLayout::kn;
  CHECK(contains(refusal(spec, GemmStage::fc1, config, h200), "40 columns at a time"));
  CHECK(check_gemm_config(spec, GemmStage::fc2, config, h200));  // its weights are nk
  config.block_n = 96;
  CHECK_FALSE(check_gemm_config(spec, GemmStage::fc1, config, h200));
  spec.gate_order = GateOrder::interleaved;  // gate and up in one span
  CHECK(contains(refusal(spec, GemmStage::fc1, config, h200), "a warp's 96 columns, no power of two"));
  config.warps_m = config.warps_n = 2;
  CHECK(check_gemm_config(spec, GemmStage::fc1, config, h200));
  config.block_k = 128;
  CHECK(contains(refusal(spec, GemmStage::fc1, config, h200), "and block_k 64"));
  config.block_k = 64;
  config.warps_m = 4;
  config.warps_n = 1;
  spec.gate_order = GateOrder::gate_first;
  config.block_n = 128;
  CHECK(check_gemm_config(spec, GemmStage::fc1, config, h200));
}

TEST_CASE("fault 24: configs above the device's limits are refused with both numbers") {
  GemmConfig config;
  config.block_n = 256;
  config.warps_n = 4;
  config.stages = 4;  // 196608 bytes and row indices
  CHECK(check_gemm_config(gated(), GemmStage::fc1, config, device("h200")));
  for (const char* id : {"a100-80gb", "rtx-4090", "rtx-5090"}) {
    const DeviceProfile d = device(id);
    const std::string message = refusal(gated(), GemmStage::fc1, config, d);
    CHECK(contains(message, std::to_string(d.smem_per_block).c_str()));
    CHECK(contains(message, d.name.c_str()));
  }
  config.stages = 2;
  config.ctas_per_sm = 2;
  CHECK(contains(refusal(gated(), GemmStage::fc1, config, device("h200")), "registers"));
  config = {};
  config.block_m = config.block_n = 64;
  config.ctas_per_sm = 2;
  // 49152 bytes of pipeline, 1024 for rows, 1024 reserved: two are the 100 KiB of an sm_86 to the byte.
  CHECK(check_gemm_config(gated(), GemmStage::fc1, config, device("rtx-3090")));
  config.ctas_per_sm = 3;
  CHECK(contains(refusal(gated(), GemmStage::fc1, config, device("rtx-3090")), "shared memory"));
  config = {};
  config.block_m = 32;
  config.block_n = 64;
  config.warps_n = 4;
  config.stages = 2;
  config.ctas_per_sm = 8;
  CHECK_FALSE(check_gemm_config(gated(), GemmStage::fc1, config, device("rtx-3090")));
}

TEST_CASE("resident blocks are the most that the check takes") {
  for (const char* id : {"h200", "a100-80gb", "l4"}) {
    const DeviceProfile d = device(id);
    for (GemmConfig config : gemm_candidates(gated(), GemmStage::fc2, d)) {
      const std::int32_t resident = resident_blocks(config, d);
      if (resident > 8) continue;
      config.ctas_per_sm = resident;
      CHECK(check_gemm_config(gated(), GemmStage::fc2, config, d));
      config.ctas_per_sm = resident + 1;
      CHECK_FALSE(check_gemm_config(gated(), GemmStage::fc2, config, d));
    }
  }
}

TEST_CASE("the other kernels' block sizes are checked") {
  const DeviceProfile h200 = device("h200");
  CHECK(check_layer_config(gated(), LayerConfig{}, h200));
  const auto message = [&](auto change) {
    LayerConfig config;
    change(config);
    const Status status = check_layer_config(gated(), config, h200);
    return status ? std::string("accepted") : status.error().message();
  };
  CHECK(contains(message([](LayerConfig& c) { c.sort.block_threads = 48; }), "sort.block_threads is 48"));
  CHECK(contains(message([](LayerConfig& c) { c.gather.block_threads = 0; }), "gather.block_threads is 0"));
  CHECK(contains(message([](LayerConfig& c) { c.combine.block_threads = 1056; }),
                 "combine.block_threads is 1056"));
  CHECK(contains(message([](LayerConfig& c) { c.sort.single_block_rows = -1; }), "single_block_rows is -1"));
  CHECK(contains(message([](LayerConfig& c) { c.fc2.stages = 1; }), "fc2: stages is 1"));
  CHECK(contains(message([](LayerConfig& c) { c.fc1.block_k = 48; }), "fc1: block_k is 48"));
}

TEST_CASE("candidates: some for every layer and device, all sound, no two alike, not too many") {
  std::size_t most = 0;
  for (const DeviceProfile& d : shipped_profiles()) {
    for (const LayerSpec& spec : specs()) {
      for (const GemmStage stage : {GemmStage::fc1, GemmStage::fc2}) {
        const std::vector<GemmConfig> candidates = gemm_candidates(spec, stage, d);
        CAPTURE(d.id);
        CAPTURE(tuning_signature(spec));
        CHECK_FALSE(candidates.empty());
        CHECK(candidates.size() <= kMaxGemmCandidates);
        most = std::max(most, candidates.size());
        std::set<std::string> texts;
        std::size_t refused = 0;
        for (const GemmConfig& config : candidates) {
          texts.insert(to_string(config));
          refused += !check_gemm_config(spec, stage, config, d).ok();
        }
        CHECK(texts.size() == candidates.size());
        CHECK(refused == 0);
        CHECK(gemm_candidates(spec, stage, d) == candidates);
      }
    }
  }
  CHECK(most > 200);
  // The least that a GPU of compute capability 8 or later has.
  const DeviceProfile least = generic_profile(8, 0, 1, 0, 0, 0);
  for (const LayerSpec& spec : specs()) {
    CHECK_FALSE(gemm_candidates(spec, GemmStage::fc1, least).empty());
    CHECK_FALSE(gemm_candidates(spec, GemmStage::fc2, least).empty());
  }
}

TEST_CASE("candidates: a width that 256 does not divide gets tiles that do") {
  const DeviceProfile h200 = device("h200");
  const auto has_block_n = [](const std::vector<GemmConfig>& candidates, std::int32_t block_n) {
    return std::any_of(candidates.begin(), candidates.end(),
                       [=](const GemmConfig& c) { return c.block_n == block_n; });
  };
  const LayerSpec odd = uniform_spec(2880, 32, 2880, 4);
  CHECK(has_block_n(gemm_candidates(odd, GemmStage::fc2, h200), 192));
  CHECK(has_block_n(gemm_candidates(odd, GemmStage::fc1, h200), 160));
  // 176 = 16·11 columns fit one warp alone, which spills; 1408 = 11·128 needs no odd tile.
  CHECK_FALSE(has_block_n(gemm_candidates(uniform_spec(2048, 64, 1408, 6, Activation::relu2), GemmStage::fc1, h200),
                          176));
  CHECK_FALSE(has_block_n(gemm_candidates(uniform_spec(4096, 8, 14336, 2), GemmStage::fc1, h200), 176));
}
