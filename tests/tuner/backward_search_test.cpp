#include "tuner/backward_search.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "tuner/landscape.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

constexpr std::int64_t kBucket = 4096;

SearchOutcome searched(Measurer& measurer, const SearchOptions& options = {},
                       const LayerSpec& spec = kUniform, const model::DeviceProfile& device = h200()) {
  auto outcome = search_item(measurer, backward_item_of(spec, kBucket), device, options);
  REQUIRE_MESSAGE(outcome.ok(), (outcome.ok() ? "" : outcome.error().message()));
  return *outcome;
}
BackwardConfig baseline() {
  return model::predict_products(kUniform, kBucket, h200());
}
std::vector<GemmConfig> dx_candidates() {
  auto list =
      ranked_candidates(model::backward_down_layer(kUniform), model::GemmStage::fc2, kBucket, h200(), {});
  std::erase_if(list, [](const GemmConfig& c) { return c.block_k > 64; });
  return list;
}

/// The products of one config are faster than all others. With `copies` gradients read copies, which cost
/// `copy_us` of the whole.
struct Known {
  BackwardConfig best;
  double copy_us = 0;

  Known(GatherMode gather, double copies_cost) : copy_us(copies_cost) {
    best = baseline();
    best.dh =
        ranked_candidates(model::backward_layer(kUniform), model::GemmStage::fc1, kBucket, h200(), {}).at(7);
    best.dh.gather = gather;
    best.dx = dx_candidates().at(20);
    const auto gradients = [&](model::GemmStage stage, std::size_t place) {
      auto list = ranked_gradients(kUniform, stage, h200(), {});
      std::erase_if(list, [&](const GradientConfig& c) { return c.gather != gather; });
      return list.at(place);
    };
    best.fc1_gradient = gradients(model::GemmStage::fc1, 5);
    best.fc2_gradient = gradients(model::GemmStage::fc2, 9);
  }
  Measurement operator()(const BackwardConfig& config) const {
    const BackwardFigures slow = *rugged(config).products;
    const bool copies = config.dh.gather == GatherMode::copy;
    return backward_figures(config.dh == best.dh ? 90 : slow.us_dh, config.dx == best.dx ? 90 : slow.us_dx,
                            config.fc1_gradient == best.fc1_gradient ? 90 : slow.us_fc1_gradient,
                            config.fc2_gradient == best.fc2_gradient ? 55 : slow.us_fc2_gradient,
                            copies ? 20 + copy_us : 20);
  }
};

}  // namespace

TEST_CASE("backward: the search finds the fastest of each product, however they read rows") {
  for (const GatherMode gather : {GatherMode::fused, GatherMode::copy}) {
    const Known known(gather, gather == GatherMode::copy ? -1 : 30);
    CAPTURE(to_string(known.best.dh));
    REQUIRE(model::check_backward_config(kUniform, known.best, h200()).ok());
    Landscape landscape;
    landscape.of_products = [&](const BackwardConfig& config, Effort) { return known(config); };
    const SearchOutcome outcome = searched(landscape);
    REQUIRE(outcome.found);
    CHECK(to_string(outcome.record.backward.dh) == to_string(known.best.dh));
    CHECK(to_string(outcome.record.backward.dx) == to_string(known.best.dx));
    CHECK(to_string(outcome.record.backward.fc1_gradient) == to_string(known.best.fc1_gradient));
    CHECK(to_string(outcome.record.backward.fc2_gradient) == to_string(known.best.fc2_gradient));
    CHECK(outcome.tried <= 220);
    CHECK(outcome.failed == 0);
    for (const MeasureRequest& request : landscape.requests) {
      CHECK(request.pass == TuningPass::backward);
      CHECK(request.bucket == kBucket);
      for (const BackwardConfig& config : request.products)
        CHECK(model::check_backward_config(kUniform, config, h200()).ok());
    }
  }
}

TEST_CASE("backward: noise in the quick rounds does not hide the fastest products") {
  const Known known(GatherMode::fused, 30);
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    Landscape landscape;
    landscape.of_products = [&](const BackwardConfig& config, Effort effort) {
      const double amplitude = effort == Effort::quick ? 0.03 : effort == Effort::normal ? 0.003 : 0.001;
      std::uniform_real_distribution<double> noise(1 - amplitude, 1 + amplitude);
      Measurement m = known(config);
      BackwardFigures& p = *m.products;
      for (double* us : {&m.us, &m.skewed_us, &p.us_dh, &p.us_dx, &p.us_fc1_gradient, &p.us_fc2_gradient})
        *us *= noise(random);
      m.spread = 2 * amplitude;
      return m;
    };
    const SearchOutcome outcome = searched(landscape);
    REQUIRE(outcome.found);
    CHECK(known(outcome.record.backward).us <= known(known.best).us * 1.01);
  }
}

TEST_CASE("backward: the record has the figures of the winner and of the baseline") {
  Landscape landscape;
  landscape.of_products = [&](const BackwardConfig& config, Effort) {
    return config == baseline() ? backward_figures(50, 40, 30, 20) : backward_figures(60, 50, 40, 30);
  };
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  const TuningRecord& record = outcome.record;
  CHECK(record.key == backward_item_of(kUniform, kBucket).key);
  CHECK(record.backward == baseline());
  CHECK(record.config == LayerConfig());
  CHECK(record.us == 160);
  CHECK(record.baseline_us == 160);
  CHECK(record.of_products == BackwardFigures{50, 40, 30, 20, 0, 0, 0, 0});
  CHECK(record.verified);
  CHECK(record.config_space == model::kConfigSpaceVersion);
  CHECK(record.candidates == static_cast<std::int32_t>(outcome.tried));
  const model::Floor floor = model::backward_floor(kUniform, kBucket, h200(), 2);
  CHECK(record.tflops == doctest::Approx(floor.flops / 160 * 1e-6));
  CHECK(record.bw == doctest::Approx(floor.bytes / 160 * 1e-3));
  CHECK(floor.flops == 2 * model::layer_floor(kUniform, kBucket, h200()).flops);
  CHECK(model::backward_floor(kUniform, kBucket, h200(), 4).bytes > floor.bytes);
}

TEST_CASE("backward: one product that is wrong costs the others nothing") {
  const Known known(GatherMode::fused, 30);
  const auto wrong = [](const auto& config, std::uint64_t seed) { return share_of(config, seed) < 0.3; };
  Landscape landscape;
  landscape.of_products = [&](const BackwardConfig& config, Effort) {
    Measurement m = known(config);
    const bool bad = (config.dh != known.best.dh && config.dh != baseline().dh && wrong(config.dh, 11)) ||
                     (config.dx != known.best.dx && config.dx != baseline().dx && wrong(config.dx, 12));
    if (bad) {
      m.verified = false;
      m.products->err_dx = 0.5;
    }
    return m;
  };
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  CHECK(outcome.failed > 0);
  CHECK(known(outcome.record.backward).us <= known(known.best).us * 1.01);
}

TEST_CASE("backward: finding nothing, being stopped, and a layer without a backward pass are told") {
  Landscape wrong;
  wrong.of_products = [](const BackwardConfig& config, Effort) {
    Measurement m = rugged(config);
    m.failure = "does not compile";
    return m;
  };
  const SearchOutcome nothing = searched(wrong, quick_search());
  CHECK_FALSE(nothing.found);
  CHECK(nothing.failure.find("configs was right; the first to fail: does not compile") != std::string::npos);

  Landscape landscape;
  SearchOptions options;
  options.stop = [] { return true; };
  const auto stopped = search_item(landscape, backward_item_of(kUniform, kBucket), h200(), options);
  REQUIRE_FALSE(stopped.ok());
  CHECK(stopped.error().code() == ErrorCode::cancelled);
  CHECK(landscape.requests.empty());
}

TEST_CASE("backward: hints are tried as they are; those outside the space are passed over") {
  BackwardConfig hint = baseline(), outside = baseline();
  hint.dh.raster = 13;
  outside.fc1_gradient.block_n = 96;
  SearchOptions options = quick_search();
  options.backward_hints = {outside, hint};
  Landscape landscape;
  landscape.of_products = [&](const BackwardConfig& config, Effort) {
    CHECK(config != outside);
    return backward_figures(config == hint ? 10 : 100, 100, 100, 100);
  };
  const SearchOutcome outcome = searched(landscape, options);
  REQUIRE(outcome.found);
  CHECK(outcome.record.backward == hint);
}

TEST_CASE("backward: a GPU without copies is searched too, and the same measurements give the same outcome") {
  const auto a100 = model::find_profile("a100-80gb");
  REQUIRE(a100.ok());
  Landscape first, second;
  const SearchOutcome one = searched(first, quick_search(), kUniform, *a100),
                      two = searched(second, quick_search(), kUniform, *a100);
  REQUIRE(one.found);
  CHECK(one.record.backward.fc1_gradient.schedule == Schedule::mma_sync);
  CHECK(one.record == two.record);
}
