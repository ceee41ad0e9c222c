// Output tiles of the weights' gradients: walked on the host as the kernels walk them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
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
  static constexpr bool kTokensFirst = kHiddenRows;
};

/// What gradient_schedule.cuh writes.
struct Schedule {
  std::vector<i32> order, prefix, offsets;
  std::vector<abi::GradientEntry> experts;
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
  s.prefix.assign(1, 0);
  for (const i32 e : s.order) {
    const i32 width = widths[static_cast<std::size_t>(e)] * G::kWidthScale;
    const i32 m = G::kTokensFirst ? G::kHidden : width, columns = G::kTokensFirst ? width : G::kHidden;
    s.prefix.push_back(s.prefix.back() + G::kHalves * ceil_div(m, kBlockM) * ceil_div(columns, kBlockN));
  }
  return s;
}

template <class G, int kBlockM, int kBlockN>
void walk() {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    const std::size_t n = 1 + random() % 40;
    std::vector<i32> widths(n), rows(n);
    for (std::size_t e = 0; e < n; ++e) {
      widths[e] = 8 * (1 + static_cast<i32>(random() % 60));
      rows[e] = random() % 3 == 0 ? 0 : static_cast<i32>(random() % 500);
    }
    const Schedule s = schedule_of<G, kBlockM, kBlockN>(widths, rows);
    std::set<std::tuple<i32, i32, i32, i32>> seen;
    i32 before = 1 << 30;
    for (i32 index = 0; index < s.prefix.back(); ++index) {
      const GradientTile t = schedule::gradient_tile<G, kBlockM, kBlockN>(
          s.prefix.data(), s.order.data(), s.offsets.data(), s.experts.data(), static_cast<i32>(n), index);
      const auto e = static_cast<std::size_t>(t.expert);
      REQUIRE(t.expert >= 0);
      REQUIRE(e < n);
      CHECK(t.rows == rows[e]);
      CHECK(t.row_begin == s.offsets[e]);
      CHECK(t.width == widths[e] * G::kWidthScale);
      // Long sums first.
      CHECK(t.rows <= before);
      before = t.rows;
      CHECK(t.half < G::kHalves);
      CHECK(t.m % kBlockM == 0);
      CHECK(t.n % kBlockN == 0);
      CHECK(t.m < (G::kTokensFirst ? G::kHidden : t.width));
      CHECK(t.n < (G::kTokensFirst ? t.width : G::kHidden));
      CHECK(seen.insert({t.expert, t.half, t.m, t.n}).second);
    }
    // Distinct and inside: as many as the matrices have, so none is missing.
    std::size_t expected = 0;
    for (std::size_t e = 0; e < n; ++e) {
      const i32 width = widths[e] * G::kWidthScale;
      const i32 m = G::kTokensFirst ? G::kHidden : width, columns = G::kTokensFirst ? width : G::kHidden;
      expected += static_cast<std::size_t>(G::kHalves * ceil_div(m, kBlockM) * ceil_div(columns, kBlockN));
    }
    CHECK(seen.size() == expected);
  }
}

}  // namespace

TEST_CASE("tiles of the weights' gradients cover every matrix once, experts with most rows first") {
  walk<Gradient<520, 2, 1, false>, 128, 256>();
  walk<Gradient<520, 2, 1, true>, 128, 128>();
  walk<Gradient<264, 1, 2, true>, 256, 64>();
  walk<Gradient<264, 1, 1, false>, 64, 64>();
}
