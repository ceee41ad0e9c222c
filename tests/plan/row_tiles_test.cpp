// How an expert's rows are cut into tiles of equal height, and whole layers of such tiles.
#include "schedule/row_tiles.cuh"

#include <set>
#include <utility>

#include "plan/tile_walk.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

constexpr i32 kSteps[] = {8, 16, 32};

/// Tiles of two GEMMs: heights, and steps that divide them.
struct Shape {
  i32 fc1_m, fc1_step, fc2_m, fc2_step;
};
constexpr Shape kShapes[] = {
    {16, 8, 192, 16}, {24, 8, 64, 32}, {64, 16, 16, 16}, {160, 32, 160, 8}, {256, 16, 64, 64}};

template <class Layer, int kFc1Cluster = 1, int kFc2Cluster = 1>
void check_classes(int experts) {
  std::mt19937 random(static_cast<unsigned>(Layer::kClasses));
  const LayerSpec spec = spec_of<Layer>(random, experts);
  const DeviceTable table = device_table(spec);
  int number = 0;
  for (const auto& routing : routings(random, experts)) {
    CAPTURE(number++);
    for (const Shape& s : kShapes) {
      CAPTURE(s.fc1_m);
      CAPTURE(s.fc1_step);
      const SortedRows rows =
          sort_rows(table, routing,
                    {s.fc1_m, s.fc2_m, 0, Layer::kClasses, s.fc1_step, s.fc2_step, kFc1Cluster, kFc2Cluster});
      CHECK(walk_fc1<Layer, 64, 4, kFc1Cluster>(table, rows, s.fc1_m) == "");
      CHECK(walk_fc1<Layer, 128, 8, kFc1Cluster>(table, rows, s.fc1_m) == "");
      CHECK(walk_fc2<Layer, 64, 16, kFc2Cluster>(table, rows, s.fc2_m) == "");
      CHECK(walk_fc2<Layer, 256, 8, kFc2Cluster>(table, rows, s.fc2_m) == "");
    }
  }
}

template <class Layer, int kColumns, int kBlockM, int kRowStep, int kGroup, int kCluster>
void check_runtime_shape(const DeviceTable& table, const std::vector<i32>& routing) {
  CAPTURE(kBlockM);
  CAPTURE(kRowStep);
  const SortedRows rows =
      sort_rows(table, routing, {kBlockM, kBlockM, kColumns, 1, kRowStep, kRowStep, kCluster, kCluster});
  CHECK(walk_fc1_runtime<Layer, kColumns, kBlockM, kRowStep, kGroup, kCluster>(table, rows) == "");
  CHECK(walk_fc2<Layer, 128, kGroup, kCluster>(table, rows, kBlockM) == "");
}

template <int kExperts, int kCluster = 1>
void check_any_width() {
  using Layer = AnyWidthLayer<136, kExperts>;
  std::mt19937 random(kExperts);
  for (const unsigned kinds : {100u, 3u, 17u}) {
    CAPTURE(kinds);
    LayerSpec spec = uniform_spec(Layer::kHidden, kExperts, 8, 2);
    for (auto& width : spec.expert_widths) width = 8 * static_cast<std::int64_t>(1 + random() % kinds);
    const DeviceTable table = device_table(spec);
    int number = 0;
    for (const auto& routing : routings(random, kExperts)) {
      CAPTURE(number++);
      check_runtime_shape<Layer, 64, 16, 8, 1, kCluster>(table, routing);
      check_runtime_shape<Layer, 64, 24, 8, 4, kCluster>(table, routing);
      check_runtime_shape<Layer, 128, 160, 16, 8, kCluster>(table, routing);
      check_runtime_shape<Layer, 128, 96, 32, 16, kCluster>(table, routing);
    }
  }
}

/// A layer's row tiles as the sort lists them for fc2, and as fc1 finds them by runtime widths.
template <int kCluster>
void check_same_tiles() {
  using Layer = AnyWidthLayer<136, 7>;
  const DeviceTable table = device_table(uniform_spec(136, 7, 64, 2));
  const SortedRows rows =
      sort_rows(table, {0, 1, 200, 96, 97, 33, 1000}, {96, 96, 64, 1, 16, 16, kCluster, kCluster});
  std::multiset<std::pair<i32, i32>> listed, walked;
  for (const abi::RowTile& t : rows.fc2_tiles) listed.insert({t.row_begin, t.rows});
  for (i32 i = 0; i < rows.fc1_tile_prefix.back() / kCluster; ++i) {
    for (i32 rank = 0; rank < kCluster; ++rank) {
      const auto t = schedule::fc1_tile_runtime<Layer, 64, 96, 16, 4, kCluster>(
          rows.fc1_tile_prefix.data(), table.order.data(), rows.expert_offsets.data(), table.entries.data(),
          i, rank);
      walked.insert({t.row_begin, t.rows});
    }
  }
  CHECK(walked == listed);
}

}  // namespace

TEST_CASE("row tiles: none taller than block_m, none empty, as equal as the step allows") {
  for (const i32 step : kSteps) {
    for (i32 block_m = step; block_m <= 256; block_m += step) {
      for (i32 rows = 1; rows <= 1200; ++rows) {
        const i32 tiles = (rows + block_m - 1) / block_m;
        const i32 height = schedule::row_tile_height(rows, tiles, step);
        const i32 last = rows - (tiles - 1) * height;
        const bool sound = height <= block_m && height % step == 0 && last >= 1 && last <= height &&
                           (height - step) * tiles < rows;  // a step less would not cover the rows
        if (!sound)
          FAIL_CHECK("rows " << rows << ", block_m " << block_m << ", step " << step << ": " << height);
      }
    }
  }
}

TEST_CASE("row tiles: with a step of block_m all but the last are full") {
  for (const i32 block_m : {16, 32, 64, 128, 256}) {
    for (i32 rows = 1; rows <= 2000; ++rows) {
      const i32 height = schedule::row_tile_height(rows, (rows + block_m - 1) / block_m, block_m);
      if (height != block_m) FAIL_CHECK("rows " << rows << ", block_m " << block_m << ": " << height);
    }
  }
}

TEST_CASE("row tiles: an expert without rows has none, and no height divides by their number") {
  for (const i32 step : kSteps) CHECK(schedule::row_tile_height(0, 0, step) == step);
}

TEST_CASE("row tiles of an expert are whole clusters, and no more of them than its rows need") {
  for (const i32 cluster : {1, 2}) {
    for (const i32 block_m : {8, 16, 24, 160, 256}) {
      CHECK(schedule::row_tile_count(0, block_m, cluster) == 0);
      for (i32 rows = 1; rows <= 2000; ++rows) {
        const i32 tiles = schedule::row_tile_count(rows, block_m, cluster);
        const bool sound =
            tiles % cluster == 0 && tiles * block_m >= rows && (tiles - cluster) * block_m < rows;
        if (!sound)
          FAIL_CHECK("rows " << rows << ", block_m " << block_m << ", cluster " << cluster << ": " << tiles);
      }
    }
  }
}

TEST_CASE("row tiles follow one another; of a cluster's the last may be empty, and begins at the first row") {
  int empty = 0;
  for (const i32 cluster : {1, 2}) {
    for (const i32 step : kSteps) {
      for (i32 block_m = step; block_m <= 256; block_m += step) {
        for (i32 rows = 1; rows <= 600; ++rows) {
          const i32 tiles = schedule::row_tile_count(rows, block_m, cluster);
          i32 next = 0;
          bool sound = true;
          for (i32 t = 0; t < tiles; ++t) {
            const schedule::RowRange range = schedule::row_tile(rows, tiles, step, t);
            if (range.rows == 0) {
              sound = sound && cluster > 1 && t == tiles - 1 && range.first == 0;
              ++empty;
            } else {
              sound = sound && range.first == next && range.rows > 0 && range.rows <= block_m;
            }
            next += range.rows;
          }
          if (!sound || next != rows) {
            FAIL_CHECK("rows " << rows << ", block_m " << block_m << ", step " << step << ", cluster "
                               << cluster);
          }
        }
      }
    }
  }
  CHECK(empty > 0);
}

TEST_CASE("row boxes divide block_m, are 32 rows at most, and hold whole steps") {
  for (const i32 step : kSteps) {
    for (i32 block_m = step; block_m <= 256; block_m += step) {
      const i32 box = schedule::row_box(block_m);
      CAPTURE(block_m);
      CHECK(block_m % box == 0);
      CHECK(box <= 32);
      // Rows are multiplied in steps: a box never ends within one.
      CHECK(box % step == 0);
    }
  }
}

TEST_CASE("equal tiles: fc1 and fc2 compute every output of a layer once") {
  check_classes<OneClass>(1);
  check_classes<OneClass>(9);
  check_classes<ThreeClasses>(3);
  check_classes<ThreeClasses>(40);
  check_classes<SixteenClasses>(23);
}

TEST_CASE("equal tiles, runtime widths: fc1 and fc2 compute every output of a layer once") {
  check_any_width<1>();
  check_any_width<5>();
  check_any_width<64>();
}

TEST_CASE("equal tiles in clusters of two: fc1 and fc2 compute every output of a layer once") {
  check_classes<OneClass, 2, 2>(1);
  check_classes<OneClass, 2, 2>(9);
  check_classes<ThreeClasses, 2, 1>(40);
  check_classes<ThreeClasses, 1, 2>(40);
  check_classes<SixteenClasses, 2, 2>(23);
  check_any_width<1, 2>();
  check_any_width<5, 2>();
  check_any_width<64, 2>();
}

TEST_CASE("equal tiles, runtime widths: fc1 walks the tiles that the sort lists for fc2 at the same height") {
  check_same_tiles<1>();
  check_same_tiles<2>();
}

TEST_CASE("runtime widths with gaps between experts' rows: the same tiles, further on") {
  using Layer = AnyWidthLayer<136, 7>;
  const DeviceTable table = device_table(uniform_spec(136, 7, 64, 2));
  const SortedRows rows = sort_rows(table, {0, 1, 200, 96, 97, 33, 1000}, {96, 96, 64, 1, 16, 16});
  std::vector<i32> gaps(2 * 7 + 1, -1);  // first rows, what nobody reads, rows of each
  for (std::size_t e = 0; e < 7; ++e) {
    gaps[e] = rows.expert_offsets[e] + 5 * static_cast<i32>(e);
    gaps[8 + e] = rows.expert_offsets[e + 1] - rows.expert_offsets[e];
  }
  REQUIRE(rows.fc1_tile_prefix.back() > 0);
  for (i32 i = 0; i < rows.fc1_tile_prefix.back(); ++i) {
    const auto dense = schedule::fc1_tile_runtime<Layer, 64, 96, 16, 4>(
        rows.fc1_tile_prefix.data(), table.order.data(), rows.expert_offsets.data(), table.entries.data(), i);
    const auto apart = schedule::fc1_tile_runtime<Layer, 64, 96, 16, 4, 1, true>(
        rows.fc1_tile_prefix.data(), table.order.data(), gaps.data(), table.entries.data(), i);
    CHECK(apart.expert == dense.expert);
    CHECK(apart.row_begin == dense.row_begin + 5 * dense.expert);
    CHECK(apart.rows == dense.rows);
    CHECK(apart.column_tile == dense.column_tile);
  }
}
