// Output tiles of the weights' gradients: walked on the host as the kernels walk them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "schedule/gradient_tiles.cuh"

using namespace varmoe;
using schedule::GradientTile;

namespace {

template <int kHiddenSize, int kHalfCount, int kScale, bool kHiddenRows>
struct Gradient {
  static constexpr int kHidden = kHiddenSize, kHalves = kHalfCount, kWidthScale = kScale;
  static constexpr bool kTokensFirst = kHiddenRows, kSegments = false;
};

struct OfSegments : Gradient<128, 1, 1, false> {
  static constexpr bool kSegments = true;
};

/// What gradient_schedule.cuh writes.
struct Schedule {
  std::vector<i32> order, prefix, offsets;
  std::vector<abi::GradientEntry> experts;
  std::vector<abi::GradientSplit> splits;
  i32 slots = 0;
};

template <class G, int kBlockM, int kBlockN>
Schedule schedule_of(const std::vector<i32>& widths, const std::vector<i32>& rows) {
  Schedule s;
  const std::size_t n = widths.size();
  s.offsets.assign(1, 0);
  for (const i32 r : rows) s.offsets.push_back(s.offsets.back() + r);
  s.experts.resize(n);
  for (std::size_t e = 0; e < n; ++e) s.experts[e].width = widths[e];
  s.order.resize(n);
  std::iota(s.order.begin(), s.order.end(), 0);
  std::stable_sort(s.order.begin(), s.order.end(), [&](i32 a, i32 b) {
    return rows[static_cast<std::size_t>(a)] > rows[static_cast<std::size_t>(b)];
  });
  const auto tiles_of = [&](i32 e) {
    const i32 width = widths[static_cast<std::size_t>(e)] * G::kWidthScale;
    const i32 m = G::kTokensFirst ? G::kHidden : width, columns = G::kTokensFirst ? width : G::kHidden;
    return G::kHalves * ceil_div(m, kBlockM) * ceil_div(columns, kBlockN);
  };
  i64 work = 0;
  for (std::size_t e = 0; e < n; ++e) work += i64{rows[e]} * tiles_of(static_cast<i32>(e));
  s.prefix.assign(1, 0);
  for (const i32 e : s.order) {
    const i32 mine = rows[static_cast<std::size_t>(e)];
    const i32 part_rows = schedule::gradient_part_rows(work, mine);
    const i32 items = tiles_of(e) * schedule::gradient_parts(part_rows, mine);
    s.prefix.push_back(s.prefix.back() + items);
    s.splits.push_back({part_rows, s.slots});
    s.slots += part_rows == 0 ? 0 : items;
  }
  return s;
}

template <class G, int kBlockM, int kBlockN>
void walk() {
  std::mt19937 random(7);
  int split_rounds = 0;
  for (int round = 0; round < 20; ++round) {
    const std::size_t n = 1 + random() % 40;
    std::vector<i32> widths(n), rows(n);
    for (std::size_t e = 0; e < n; ++e) {
      widths[e] = 8 * (1 + static_cast<i32>(random() % 60));
      rows[e] = random() % 3 == 0 ? 0 : static_cast<i32>(random() % 500);
      // From round 8 on some experts are hot.
      if (round >= 8 && random() % 8 == 0) rows[e] = static_cast<i32>(random() % 60000);
    }
    const Schedule s = schedule_of<G, kBlockM, kBlockN>(widths, rows);
    CHECK(s.slots <= abi::kGradientSlots);
    std::map<std::tuple<i32, i32, i32, i32>, i32> seen;  // rows that a tile's parts have summed so far
    std::set<i32> slots;
    i32 before = 1 << 30;
    for (i32 index = 0; index < s.prefix.back(); ++index) {
      const GradientTile t = schedule::gradient_tile<G, kBlockM, kBlockN>(
          s.prefix.data(), s.order.data(), s.splits.data(), s.offsets.data(), s.experts.data(),
          static_cast<i32>(n), index);
      const auto e = static_cast<std::size_t>(t.expert);
      REQUIRE(t.expert >= 0);
      REQUIRE(e < n);
      i32& summed = seen[{t.expert, t.half, t.m, t.n}];
      CHECK(t.row_begin == s.offsets[e] + summed);
      summed += t.rows;
      CHECK(t.part < t.parts);
      // Stages of 64 rows: only the last part may end within one.
      if (t.part + 1 < t.parts) CHECK(t.rows % 64 == 0);
      if (t.parts > 1) {
        CHECK(t.rows > 0);
        CHECK(slots.insert(t.slot + t.part).second);
        CHECK(t.slot + t.part < abi::kGradientSlots);
      }
      CHECK(t.width == widths[e] * G::kWidthScale);
      // Experts with most rows first.
      CHECK(rows[e] <= before);
      before = rows[e];
      CHECK(t.half < G::kHalves);
      CHECK(t.m % kBlockM == 0);
      CHECK(t.n % kBlockN == 0);
      CHECK(t.m < (G::kTokensFirst ? G::kHidden : t.width));
      CHECK(t.n < (G::kTokensFirst ? t.width : G::kHidden));
    }
    split_rounds += s.slots > 0 ? 1 : 0;
    for (const auto& [tile, summed] : seen)
      CHECK(summed == rows[static_cast<std::size_t>(std::get<0>(tile))]);
    // Distinct and inside: as many as the matrices have, so none is missing.
    std::size_t expected = 0;
    for (std::size_t e = 0; e < n; ++e) {
      const i32 width = widths[e] * G::kWidthScale;
      const i32 m = G::kTokensFirst ? G::kHidden : width, columns = G::kTokensFirst ? width : G::kHidden;
      expected += static_cast<std::size_t>(G::kHalves * ceil_div(m, kBlockM) * ceil_div(columns, kBlockN));
    }
    CHECK(seen.size() == expected);
  }
  CHECK(split_rounds > 0);
}

}  // namespace

TEST_CASE("tiles of the weights' gradients cover every matrix once, experts with most rows first") {
  walk<Gradient<520, 2, 1, false>, 128, 256>();
  walk<Gradient<520, 2, 1, true>, 128, 128>();
  walk<Gradient<264, 1, 2, true>, 256, 64>();
  walk<Gradient<264, 1, 1, false>, 64, 64>();
}

TEST_CASE("tiles of a caller's segments take rows of each expert from behind the first rows") {
  // Two experts of width 64, whose segments lie in descending order and with a gap; the third has no rows.
  std::vector<abi::GradientEntry> experts(3);
  for (auto& e : experts) e.width = 64;
  const std::vector<i32> offsets{200, 7, 0, 300, 50, 90, 0}, order{1, 0, 2}, prefix{0, 1, 2, 3};
  const std::vector<abi::GradientSplit> splits(3);
  const i32 begins[] = {7, 200, 0}, rows[] = {90, 50, 0};
  for (i32 index = 0; index < 3; ++index) {
    const GradientTile t = schedule::gradient_tile<OfSegments, 64, 128>(
        prefix.data(), order.data(), splits.data(), offsets.data(), experts.data(), 3, index);
    CHECK(t.expert == order[static_cast<std::size_t>(index)]);
    CHECK(t.row_begin == begins[index]);
    CHECK(t.rows == rows[index]);
  }
}

TEST_CASE("an expert is split where it has 1.5 fair shares of the work, and no sum is shorter than it pays") {
  using schedule::gradient_part_rows;
  using schedule::gradient_parts;
  // Its share, of work that 144 parts divide evenly.
  const i64 work = i64{144} * 4096;
  CHECK(gradient_part_rows(work, 4096) == 0);
  CHECK(gradient_part_rows(work, 6143) == 0);
  CHECK(gradient_part_rows(work, 6144) == 3072);
  CHECK(gradient_parts(3072, 6144) == 2);
  CHECK(gradient_part_rows(work, 40960) == 4096);
  CHECK(gradient_parts(0, 40960) == 1);
  // Little work: parts of the least length, in whole stages.
  CHECK(gradient_part_rows(100, abi::kLeastPartRows) == 0);
  CHECK(gradient_part_rows(100, 4 * abi::kLeastPartRows) == abi::kLeastPartRows);
  CHECK(gradient_part_rows(100, 2 * abi::kLeastPartRows + 1) % 64 == 0);
}
