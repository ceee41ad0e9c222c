#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "plan/host_sort.hpp"
#include "schedule/tile_map.cuh"

/// Layers, routings, and walks over all output tiles of a GEMM.
namespace varmoe::test {

/// What the emitter writes for a layer with these classes, widest first.
template <int kHiddenSize, int... kWidths>
struct ClassLayer {
  static constexpr int kHidden = kHiddenSize, kClasses = sizeof...(kWidths);
  static constexpr bool kGateAndUp = false, kAlternating = false;
  static constexpr int width(int c) {
    constexpr int widths[] = {kWidths...};
    return widths[c];
  }
};

template <int kHiddenSize, int kExpertCount>
struct AnyWidthLayer {
  static constexpr int kHidden = kHiddenSize, kExperts = kExpertCount, kClasses = 0;
  static constexpr bool kGateAndUp = false, kAlternating = false;
};

using OneClass = ClassLayer<128, 96>;
using ThreeClasses = ClassLayer<200, 512, 264, 8>;
using SixteenClasses =
    ClassLayer<64, 1000, 512, 480, 264, 256, 248, 200, 136, 128, 120, 96, 72, 64, 40, 16, 8>;

/// A layer of `experts` experts over the classes; every class has one while there are experts enough.
template <class Layer>
LayerSpec spec_of(std::mt19937& random, int experts) {
  LayerSpec spec = uniform_spec(Layer::kHidden, experts, 8, 2);
  for (int e = 0; e < experts; ++e) {
    const int c = e < Layer::kClasses ? e : static_cast<int>(random() % Layer::kClasses);
    spec.expert_widths[static_cast<std::size_t>(e)] = Layer::width(c);
  }
  std::shuffle(spec.expert_widths.begin(), spec.expert_widths.end(), random);
  return spec;
}

/// Routings that schedules stumble over: nothing routed, one expert with all, empty experts between others,
/// whole tiles, one row more, and random ones.
inline std::vector<std::vector<i32>> routings(std::mt19937& random, int experts) {
  const auto n = static_cast<std::size_t>(experts);
  std::vector<std::vector<i32>> all;
  all.push_back(std::vector<i32>(n, 0));
  for (const std::size_t e : {std::size_t{0}, n / 2, n - 1}) {
    all.push_back(std::vector<i32>(n, 0));
    all.back()[e] = 777;
  }
  for (const i32 rows : {1, 16, 17, 64, 65}) all.push_back(std::vector<i32>(n, rows));
  all.push_back(std::vector<i32>(n, 0));
  for (std::size_t e = 0; e < n; e += 2) all.back()[e] = 33;
  for (int round = 0; round < 6; ++round) {
    all.push_back({});
    for (std::size_t e = 0; e < n; ++e)
      all.back().push_back(random() % 3 == 0 ? 0 : static_cast<i32>(random() % (round % 2 == 0 ? 20 : 150)));
  }
  return all;
}

/// Counts how often each output is computed; no error when every (row, column tile) of every expert is met
/// once. A tile without rows is an error but where it completes an expert's last cluster: then it begins with
/// the expert, and the expert has no other beside the same columns.
class Coverage {
 public:
  /// columns_of(expert): its column tiles.
  template <class ColumnsOf>
  Coverage(const SortedRows& rows, i32 block_m, i32 cluster, ColumnsOf columns_of)
      : rows_(rows), block_m_(block_m), cluster_(cluster) {
    for (std::size_t e = 0; e < rows.rows_of.size(); ++e) {
      columns_.push_back(columns_of(e));
      met_.emplace_back(static_cast<std::size_t>(rows.rows_of[e]) * static_cast<std::size_t>(columns_[e]));
      empty_.emplace_back(static_cast<std::size_t>(columns_[e]));
    }
  }

  void add(const schedule::OutputTile& tile, i32 width) {
    const auto e = static_cast<std::size_t>(tile.expert);
    if (tile.expert < 0 || e >= columns_.size()) return fail("no such expert", tile);
    const i32 first = tile.row_begin - rows_.expert_offsets[e];
    if (tile.rows < (cluster_ > 1 ? 0 : 1) || tile.rows > block_m_) return fail("rows", tile);
    if (tile.rows == 0 && (first != 0 || rows_.rows_of[e] == 0)) return fail("place of no rows", tile);
    if (first < 0 || first + tile.rows > rows_.rows_of[e]) return fail("rows of another expert", tile);
    if (tile.column_tile < 0 || tile.column_tile >= columns_[e]) return fail("columns", tile);
    if (tile.width != width) return fail("width", tile);
    if (tile.rows == 0 && ++empty_[e][static_cast<std::size_t>(tile.column_tile)] > 1)
      return fail("another tile without rows", tile);
    for (i32 row = first; row < first + tile.rows; ++row)
      ++met_[e][static_cast<std::size_t>(row * columns_[e] + tile.column_tile)];
  }

  /// What the blocks of a cluster compute side by side.
  void add_group(const std::vector<schedule::OutputTile>& group, const DeviceTable& table) {
    for (const schedule::OutputTile& tile : group) {
      add(tile, table.entries.at(static_cast<std::size_t>(tile.expert)).width);
      if (tile.expert != group[0].expert || tile.column_tile != group[0].column_tile)
        fail("weights of another expert or column than its cluster's", tile);
    }
    if (group[0].rows == 0) fail("a cluster without rows", group[0]);
  }

  std::string error() const {
    if (!error_.empty()) return error_;
    for (std::size_t e = 0; e < met_.size(); ++e) {
      for (const int n : met_[e]) {
        if (n != 1) return "expert " + std::to_string(e) + ": an output met " + std::to_string(n) + " times";
      }
    }
    return "";
  }

 private:
  void fail(const char* what, const schedule::OutputTile& t) {
    error_ = std::string(what) + ": expert " + std::to_string(t.expert) + " row " +
             std::to_string(t.row_begin) + "+" + std::to_string(t.rows) + " column tile " +
             std::to_string(t.column_tile) + " width " + std::to_string(t.width);
  }
  const SortedRows& rows_;
  i32 block_m_, cluster_;
  std::vector<i32> columns_;
  std::vector<std::vector<int>> met_, empty_;
  std::string error_;
};

inline i32 tiles_of(i32 width, i32 columns) {
  return (width + columns - 1) / columns;
}

/// tile(i, rank) of each of `groups` groups, in all ranks.
template <int kCluster, class ColumnsOf, class Tile>
std::string walk(const DeviceTable& table, const SortedRows& rows, i32 block_m, ColumnsOf columns_of,
                 i32 groups, Tile tile) {
  Coverage coverage(rows, block_m, kCluster, columns_of);
  for (i32 i = 0; i < groups; ++i) {
    std::vector<schedule::OutputTile> group;
    for (i32 rank = 0; rank < kCluster; ++rank) group.push_back(tile(i, rank));
    coverage.add_group(group, table);
  }
  return coverage.error();
}

template <class Layer, int kColumns, int kGroup, int kCluster = 1>
std::string walk_fc1(const DeviceTable& table, const SortedRows& rows, i32 block_m) {
  const i32* begin = rows.counts.fc1_begin;
  return walk<kCluster>(
      table, rows, block_m, [&](std::size_t e) { return tiles_of(table.entries[e].width, kColumns); },
      schedule::fc1_tile_count<Layer, kColumns, kCluster>(begin),
      [&](i32 i, i32 rank) {
        return schedule::fc1_tile<Layer, kColumns, kGroup, kCluster>(begin, rows.fc1_tiles.data(), i, rank);
      });
}

template <class Layer, int kColumns, int kGroup, int kCluster = 1>
std::string walk_fc2(const DeviceTable& table, const SortedRows& rows, i32 block_m) {
  const i32 row_tiles = schedule::fc2_row_tiles<Layer>(rows.counts);
  return walk<kCluster>(
      table, rows, block_m, [&](std::size_t) { return tiles_of(Layer::kHidden, kColumns); },
      row_tiles / kCluster * tiles_of(Layer::kHidden, kColumns),
      [&](i32 i, i32 rank) {
        return schedule::fc2_tile<Layer, kColumns, kGroup, kCluster>(
            rows.fc2_tiles.data(), table.entries.data(), row_tiles, i, rank);
      });
}

template <class Layer, int kColumns, int kBlockM, int kRowStep, int kGroup, int kCluster = 1>
std::string walk_fc1_runtime(const DeviceTable& table, const SortedRows& rows) {
  return walk<kCluster>(
      table, rows, kBlockM, [&](std::size_t e) { return tiles_of(table.entries[e].width, kColumns); },
      rows.fc1_tile_prefix.back() / kCluster,
      [&](i32 i, i32 rank) {
        return schedule::fc1_tile_runtime<Layer, kColumns, kBlockM, kRowStep, kGroup, kCluster>(
            rows.fc1_tile_prefix.data(), table.order.data(), rows.expert_offsets.data(), table.entries.data(),
            i, rank);
      });
}

}  // namespace varmoe::test
