#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tools/gpu/routing.hpp"
#include "tools/gpu/timing.hpp"
#include "tools/gpu/weight_copies.hpp"

using namespace varmoe;
using namespace varmoe::tools;

namespace {

const LayerSpec kSpec = uniform_spec(1024, 64, 256, 4);

std::map<std::int32_t, int> rows_of(const Routing& routing) {
  std::map<std::int32_t, int> rows;
  for (const std::int32_t id : routing.ids) ++rows[id];
  return rows;
}

int most(const std::map<std::int32_t, int>& rows) {
  int result = 0;
  for (const auto& [id, count] : rows)
    if (id >= 0) result = std::max(result, count);
  return result;
}

}  // namespace

TEST_CASE("routings are in range, a token's weights sum to one, and the same seed gives the same") {
  for (const RoutingKind kind : {RoutingKind::uniform, RoutingKind::zipf, RoutingKind::hot}) {
    const Routing routing = random_routing(kSpec, 1000, kind, 7);
    REQUIRE(routing.ids.size() == 4000);
    for (std::size_t t = 0; t < 1000; ++t) {
      const auto begin = routing.ids.begin() + static_cast<std::ptrdiff_t>(4 * t);
      if (kind != RoutingKind::hot) {
        CHECK(std::set<std::int32_t>(begin, begin + 4).size() == 4);
        CHECK(*std::min_element(begin, begin + 4) >= 0);
      }
      CHECK(*std::min_element(begin, begin + 4) >= -1);
      CHECK(*std::max_element(begin, begin + 4) < 64);
      const auto weights = routing.weights.begin() + static_cast<std::ptrdiff_t>(4 * t);
      CHECK(std::accumulate(weights, weights + 4, 0.0) == doctest::Approx(1).epsilon(1e-5));
    }
    CHECK(random_routing(kSpec, 1000, kind, 7).ids == routing.ids);
    CHECK(random_routing(kSpec, 1000, kind, 8).ids != routing.ids);
  }
}

TEST_CASE(
    "uniform routing hits experts alike, Zipf some of them more, hot one of them with half of the rows") {
  const auto uniform = rows_of(random_routing(kSpec, 1000, RoutingKind::uniform, 1));
  const auto zipf = rows_of(random_routing(kSpec, 1000, RoutingKind::zipf, 1));
  const auto hot = rows_of(random_routing(kSpec, 1000, RoutingKind::hot, 1));
  CHECK(uniform.size() == 64);
  CHECK(most(uniform) < 120);  // 62.5 on average
  CHECK(most(zipf) > 400);
  CHECK(most(hot) > 1900);
  CHECK(hot.count(-1) == 1);
}

TEST_CASE("fewer experts than slots: tokens name some twice") {
  const Routing routing = random_routing(uniform_spec(256, 2, 64, 4), 10, RoutingKind::uniform, 1);
  CHECK(rows_of(routing).size() == 2);
}

TEST_CASE("sampled tokens are distinct, ascending, with the first and the last") {
  for (const std::int64_t tokens : {1, 2, 31, 32, 33, 16384}) {
    const auto sample = sampled_tokens(tokens, 32);
    CHECK(static_cast<std::int64_t>(sample.size()) == std::min<std::int64_t>(tokens, 32));
    CHECK(sample.front() == 0);
    CHECK(sample.back() == tokens - 1);
    CHECK(std::adjacent_find(sample.begin(), sample.end(), std::greater_equal<>()) == sample.end());
  }
}

TEST_CASE("copies of the weights: L2 holds nothing of the next forward, and replays use all of them alike") {
  const std::int32_t two[] = {0, 1, -1, 64};
  CHECK(weight_bytes_hit(kSpec, two) == 2.0 * 256 * 1024 * 6);
  constexpr std::int64_t kL2 = 50 << 20;
  for (const double hit : {1.0, 1e6, 3e6, 1e8, 1e9}) {
    const std::size_t copies = weight_copies(hit, kL2, 2);
    CHECK(copies >= 2);
    CHECK((copies == kMaxWeightCopies || static_cast<double>(copies - 1) * hit >= 8.0 * kL2));
    for (const double us : {0.0, 5.0, 300.0, 9000.0}) {
      const std::int64_t forwards = forwards_per_replay(us, copies, 2000);
      CHECK(forwards % static_cast<std::int64_t>(copies) == 0);
      CHECK(forwards >= static_cast<std::int64_t>(copies));
      CHECK(forwards <= std::max<std::int64_t>(256, static_cast<std::int64_t>(copies)));
    }
  }
}

TEST_CASE("medians, spread and range of samples; steps of kernels by their names") {
  const Timing t = Timing::of({5, 1, 3, 2, 4});
  CHECK(t.median_us == 3);
  CHECK(t.best_us == 1);
  CHECK(t.worst_us == 5);
  CHECK(t.range() == doctest::Approx(4.0 / 3));
  CHECK(Timing::of({}).median_us == 0);
  CHECK(step_of("varmoe_sort_single_t1024_1c7c3b90d91b60a8") == "sort_single");
  CHECK(step_of("varmoe_fc1_wgmma_m64") == "fc1");
  CHECK(step_of("varmoe_fc1_gradient_wgmma_m128n256") == "fc1_gradient");
  CHECK(step_of("varmoe_fc2_bias_gradient_1c7c3b90d91b60a8") == "fc2_bias_gradient");
  CHECK(step_of("varmoe_gradient_schedule_1c7c3b90d91b60a8") == "gradient_schedule");
  CHECK(step_of("other") == "other");
}
