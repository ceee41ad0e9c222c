#include "tuner/candidates.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "tuner/landscape.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using varmoe::test::h200;
using varmoe::test::kUniform;

namespace {

double predicted(const GemmConfig& config, std::int64_t bucket) {
  return model::predict_gemm_seconds(kUniform, model::GemmStage::fc1, config, bucket, h200());
}

}  // namespace

TEST_CASE("candidates come in the order of their predicted times, as many as asked and no config twice") {
  for (const std::int64_t bucket : {1, 64, 4096}) {
    CAPTURE(bucket);
    const auto list = ranked_candidates(kUniform, model::GemmStage::fc1, bucket, h200(), {20, 0, 1000});
    REQUIRE(list.size() == 20);
    for (std::size_t i = 1; i < list.size(); ++i) {
      CHECK(predicted(list[i - 1], bucket) <= predicted(list[i], bucket));
      CHECK(std::find(list.begin() + static_cast<std::ptrdiff_t>(i), list.end(), list[i - 1]) == list.end());
    }
  }
}

TEST_CASE("without a limit every candidate of the config space is there") {
  const auto all = model::gemm_candidates(kUniform, model::GemmStage::fc2, h200());
  CHECK(ranked_candidates(kUniform, model::GemmStage::fc2, 64, h200(), {0, 0, 1e9}).size() == all.size());
}

TEST_CASE("each schedule has its share of the candidates, whatever the cost model thinks of it") {
  const auto list = ranked_candidates(kUniform, model::GemmStage::fc1, 4096, h200(), {4, 3, 1.05});
  for (const Schedule schedule : {Schedule::mma_sync, Schedule::wgmma, Schedule::wgmma_pingpong}) {
    CAPTURE(to_string(schedule));
    CHECK(std::count_if(list.begin(), list.end(),
                        [&](const GemmConfig& c) { return c.schedule == schedule; }) >= 3);
  }
}

TEST_CASE("candidates predicted far slower than the best are left out") {
  const auto list = ranked_candidates(kUniform, model::GemmStage::fc1, 4096, h200(), {1000, 0, 1.5});
  REQUIRE(!list.empty());
  for (const GemmConfig& config : list) CHECK(predicted(config, 4096) <= 1.5 * predicted(list.front(), 4096));
}

TEST_CASE("block variants change one kernel alone, stay in the config space, and are none that is not used") {
  const LayerConfig config = model::predict_layer_config(kUniform, 256, h200());
  REQUIRE(config.fc1.gather == GatherMode::fused);
  const BlockVariants variants = block_variants(kUniform, 256, config);
  CHECK(variants.gather.empty());
  REQUIRE(!variants.sort.empty());
  REQUIRE(!variants.combine.empty());
  for (const LayerConfig& variant : variants.sort) {
    LayerConfig back = variant;
    back.sort = config.sort;
    CHECK(back == config);
    CHECK(variant != config);
    CHECK(model::check_layer_config(kUniform, variant, h200()).ok());
  }
  for (const LayerConfig& variant : variants.combine) {
    LayerConfig back = variant;
    back.combine = config.combine;
    CHECK(back == config);
    CHECK(variant != config);
  }
  LayerConfig copied = config;
  copied.fc1.gather = GatherMode::copy;
  CHECK(!block_variants(kUniform, 256, copied).gather.empty());
}

TEST_CASE("one launch of the sort against two is tried where either may win, and nowhere else") {
  const LayerConfig config;  // one launch up to 3072 rows
  const auto other_side = [&](std::int64_t bucket) {
    const auto list = block_variants(kUniform, bucket, config).sort;
    const auto found = std::find_if(list.begin(), list.end(), [&](const LayerConfig& c) {
      return c.sort.single_block_rows != config.sort.single_block_rows;
    });
    return found == list.end() ? -1 : found->sort.single_block_rows;
  };
  CHECK(other_side(1) == -1);      // 8 rows
  CHECK(other_side(256) == 0);     // 2048 rows: two launches
  CHECK(other_side(512) == 4096);  // 4096 rows: one
  CHECK(other_side(16384) == -1);
}
