#include "schedule/tile_map.cuh"

#include <utility>

#include "plan/tile_walk.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

/// Every raster group × column tile at three block_m, for layers of several sizes; fc1 and fc2 by blocks
/// alone or by clusters.
template <class Layer, int kFc1Cluster = 1, int kFc2Cluster = 1>
void check_classes() {
  std::mt19937 random(static_cast<unsigned>(Layer::kClasses));
  for (const int experts : {Layer::kClasses, Layer::kClasses + 7, 40}) {
    const LayerSpec spec = spec_of<Layer>(random, experts);
    const DeviceTable table = device_table(spec);
    int number = 0;
    for (const auto& routing : routings(random, experts)) {
      CAPTURE(experts);
      CAPTURE(number++);
      for (const auto& [fc1_m, fc2_m] : {std::pair{16, 64}, std::pair{64, 16}, std::pair{256, 32}}) {
        CAPTURE(fc1_m);
        const SortedRows rows =
            sort_rows(table, routing, {fc1_m, fc2_m, 0, Layer::kClasses, 0, 0, kFc1Cluster, kFc2Cluster});
        CHECK(walk_fc1<Layer, 16, 1, kFc1Cluster>(table, rows, fc1_m) == "");
        CHECK(walk_fc1<Layer, 64, 3, kFc1Cluster>(table, rows, fc1_m) == "");
        CHECK(walk_fc1<Layer, 128, 8, kFc1Cluster>(table, rows, fc1_m) == "");
        CHECK(walk_fc1<Layer, 256, 64, kFc1Cluster>(table, rows, fc1_m) == "");
        CHECK(walk_fc2<Layer, 32, 1, kFc2Cluster>(table, rows, fc2_m) == "");
        CHECK(walk_fc2<Layer, 48, 3, kFc2Cluster>(table, rows, fc2_m) == "");
        CHECK(walk_fc2<Layer, 128, 64, kFc2Cluster>(table, rows, fc2_m) == "");
      }
    }
  }
}

template <int kExperts, int kFc1Cluster = 1, int kFc2Cluster = 1>
void check_any_width() {
  using Layer = AnyWidthLayer<136, kExperts>;
  std::mt19937 random(kExperts);
  for (int round = 0; round < 4; ++round) {
    LayerSpec spec = uniform_spec(Layer::kHidden, kExperts, 8, 2);
    // Many widths, few widths, one.
    const unsigned kinds = round == 0 ? 100 : round == 1 ? 3 : round == 2 ? 1 : 17;
    for (auto& width : spec.expert_widths) width = 8 * static_cast<std::int64_t>(1 + random() % kinds);
    const DeviceTable table = device_table(spec);
    int number = 0;
    for (const auto& routing : routings(random, kExperts)) {
      CAPTURE(kinds);
      CAPTURE(number++);
      const SortedRows narrow = sort_rows(table, routing, {16, 64, 32, 1, 0, 0, kFc1Cluster, kFc2Cluster});
      CHECK(walk_fc1_runtime<Layer, 32, 16, 16, 1, kFc1Cluster>(table, narrow) == "");
      CHECK(walk_fc1_runtime<Layer, 32, 16, 16, 8, kFc1Cluster>(table, narrow) == "");
      CHECK(walk_fc2<Layer, 48, 5, kFc2Cluster>(table, narrow, 64) == "");
      const SortedRows wide = sort_rows(table, routing, {64, 16, 128, 1, 0, 0, kFc1Cluster, kFc2Cluster});
      CHECK(walk_fc1_runtime<Layer, 128, 64, 64, 3, kFc1Cluster>(table, wide) == "");
      CHECK(walk_fc1_runtime<Layer, 128, 64, 64, 64, kFc1Cluster>(table, wide) == "");
      CHECK(walk_fc2<Layer, 128, 64, kFc2Cluster>(table, wide, 16) == "");
    }
  }
}

}  // namespace

TEST_CASE("one class: fc1 and fc2 compute every output once") {
  check_classes<OneClass>();
}

TEST_CASE("three classes: fc1 and fc2 compute every output once") {
  check_classes<ThreeClasses>();
}

TEST_CASE("sixteen classes: fc1 and fc2 compute every output once") {
  check_classes<SixteenClasses>();
}

TEST_CASE("runtime widths: fc1 and fc2 compute every output once") {
  check_any_width<1>();
  check_any_width<5>();
  check_any_width<64>();
}

TEST_CASE(
    "clusters of two: fc1 and fc2 compute every output once, each cluster tiles of one expert and column") {
  check_classes<OneClass, 2, 2>();
  check_classes<ThreeClasses, 2, 2>();
  check_classes<ThreeClasses, 2, 1>();
  check_classes<ThreeClasses, 1, 2>();
  check_classes<SixteenClasses, 2, 2>();
}

TEST_CASE("clusters of two, runtime widths: fc1 and fc2 compute every output once") {
  check_any_width<1, 2, 2>();
  check_any_width<5, 2, 1>();
  check_any_width<5, 1, 2>();
  check_any_width<64, 2, 2>();
}

TEST_CASE("fc1 walks the widest class first") {
  std::mt19937 random(3);
  const LayerSpec spec = spec_of<ThreeClasses>(random, 12);
  const DeviceTable table = device_table(spec);
  const SortedRows rows = sort_rows(table, std::vector<i32>(12, 40), {16, 16, 0, 3});
  i32 before = ThreeClasses::width(0);
  for (i32 i = 0; i < schedule::fc1_tile_count<ThreeClasses, 64>(rows.counts.fc1_begin); ++i) {
    const auto tile =
        schedule::fc1_tile<ThreeClasses, 64, 8>(rows.counts.fc1_begin, rows.fc1_tiles.data(), i);
    CHECK(tile.width <= before);
    before = tile.width;
  }
  CHECK(before == ThreeClasses::width(2));
}

TEST_CASE("upper_position finds the last prefix at or below a value, past experts without tiles") {
  const i32 prefix[] = {0, 0, 3, 3, 3, 4, 9, 9};
  const i32 expected[] = {1, 1, 1, 4, 5, 5, 5, 5, 5};
  for (i32 value = 0; value < 9; ++value)
    CHECK(schedule::upper_position(prefix, 7, value) == expected[value]);
}
