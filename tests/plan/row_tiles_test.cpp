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

template <class Layer>
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
          sort_rows(table, routing, {s.fc1_m, s.fc2_m, 0, Layer::kClasses, s.fc1_step, s.fc2_step});
      CHECK(walk_fc1<Layer, 64, 4>(table, rows, s.fc1_m) == "");
      CHECK(walk_fc1<Layer, 128, 8>(table, rows, s.fc1_m) == "");
      CHECK(walk_fc2<Layer, 64, 16>(table, rows, s.fc2_m) == "");
      CHECK(walk_fc2<Layer, 256, 8>(table, rows, s.fc2_m) == "");
    }
  }
}

template <class Layer, int kColumns, int kBlockM, int kRowStep, int kGroup>
void check_runtime_shape(const DeviceTable& table, const std::vector<i32>& routing) {
  CAPTURE(kBlockM);
  CAPTURE(kRowStep);
  const SortedRows rows = sort_rows(table, routing, {kBlockM, kBlockM, kColumns, 1, kRowStep, kRowStep});
  CHECK(walk_fc1_runtime<Layer, kColumns, kBlockM, kRowStep, kGroup>(table, rows) == "");
  CHECK(walk_fc2<Layer, 128, kGroup>(table, rows, kBlockM) == "");
}

template <int kExperts>
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
      check_runtime_shape<Layer, 64, 16, 8, 1>(table, routing);
      check_runtime_shape<Layer, 64, 24, 8, 4>(table, routing);
      check_runtime_shape<Layer, 128, 160, 16, 8>(table, routing);
      check_runtime_shape<Layer, 128, 96, 32, 16>(table, routing);
    }
  }
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

TEST_CASE("equal tiles, runtime widths: fc1 walks the tiles that the sort lists for fc2 at the same height") {
  using Layer = AnyWidthLayer<136, 7>;
  LayerSpec spec = uniform_spec(136, 7, 64, 2);
  const DeviceTable table = device_table(spec);
  const SortedRows rows = sort_rows(table, {0, 1, 200, 96, 97, 33, 1000}, {96, 96, 64, 1, 16, 16});
  std::set<std::pair<i32, i32>> listed, walked;
  for (const abi::RowTile& t : rows.fc2_tiles) listed.insert({t.row_begin, t.rows});
  for (i32 i = 0; i < rows.fc1_tile_prefix.back(); ++i) {
    const auto t = schedule::fc1_tile_runtime<Layer, 64, 96, 16, 4>(
        rows.fc1_tile_prefix.data(), table.order.data(), rows.expert_offsets.data(), table.entries.data(), i);
    walked.insert({t.row_begin, t.rows});
  }
  CHECK(walked == listed);
}
