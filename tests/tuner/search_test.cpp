#include "tuner/search.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/config_space.hpp"
#include "tuner/landscape.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

constexpr std::int64_t kBucket = 256;

SearchOutcome searched(Measurer& measurer, const SearchOptions& options = {},
                       const LayerSpec& spec = kUniform) {
  auto outcome = search_item(measurer, item_of(spec, kBucket), h200(), options);
  REQUIRE_MESSAGE(outcome.ok(), (outcome.ok() ? "" : outcome.error().message()));
  return *outcome;
}

std::vector<GemmConfig> candidates(model::GemmStage stage, const CandidateLimits& limits = {}) {
  return ranked_candidates(kUniform, stage, kBucket, h200(), limits);
}
LayerConfig baseline() {
  return model::predict_layer_config(kUniform, kBucket, h200());
}

/// A rugged landscape in which these two are faster than all others.
struct Known {
  GemmConfig fc1 = candidates(model::GemmStage::fc1).at(20), fc2 = candidates(model::GemmStage::fc2).at(35);
  Measurement operator()(const LayerConfig& config) const {
    return figures(config.fc1 == fc1 ? 90 : rugged(config).fc1_us,
                   config.fc2 == fc2 ? 55 : rugged(config).fc2_us);
  }
};

bool is_wrong(const GemmConfig& config, std::uint64_t seed, double share) {
  return share_of(config, seed) < share;
}

}  // namespace

TEST_CASE("the search finds the fastest pair of GEMMs and measures a small part of the space for it") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort) { return known(config); });
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  CHECK(outcome.record.config.fc1 == known.fc1);
  CHECK(outcome.record.config.fc2 == known.fc2);
  const std::size_t space = model::gemm_candidates(kUniform, model::GemmStage::fc1, h200()).size() *
                            model::gemm_candidates(kUniform, model::GemmStage::fc2, h200()).size();
  CHECK(outcome.tried <= 110);
  CHECK(space > 400 * outcome.tried);
  CHECK(outcome.failed == 0);
}

TEST_CASE("noise of a percent and more in the quick rounds does not hide the fastest config") {
  const Known known;
  for (std::uint32_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    Landscape landscape([&](const LayerConfig& config, Effort effort) {
      const double amplitude = effort == Effort::quick ? 0.03 : effort == Effort::normal ? 0.01 : 0.002;
      std::uniform_real_distribution<double> noise(1 - amplitude, 1 + amplitude);
      Measurement m = known(config);
      for (double* time : {&m.us, &m.skewed_us, &m.fc1_us, &m.fc2_us}) *time *= noise(random);
      m.spread = 2 * amplitude;
      return m;
    });
    const SearchOutcome outcome = searched(landscape);
    REQUIRE(outcome.found);
    CHECK(outcome.record.config.fc1 == known.fc1);
    CHECK(outcome.record.config.fc2 == known.fc2);
  }
}

TEST_CASE(
    "fault 31: a config with a failure, NaN, zero, negative, infinite or unverified figures never wins") {
  const double bad_times[] = {std::nan(""), 0, -5, std::numeric_limits<double>::infinity(), 1e-6, 1e12};
  std::vector<std::function<void(Measurement&)>> faults = {
      [](Measurement& m) { m.failure = "crashed"; }, [](Measurement& m) { m.verified = false; },
      [](Measurement& m) { m.verified = false, m.err2 = 0.1; },
      [](Measurement& m) { m.spread = std::nan(""); }, [](Measurement& m) { m.err1 = 2; }};
  for (const double bad : bad_times) {
    faults.push_back([bad](Measurement& m) { m.us = bad; });
    faults.push_back([bad](Measurement& m) { m.skewed_us = bad; });
    faults.push_back([bad](Measurement& m) { m.fc1_us = bad; });
    faults.push_back([bad](Measurement& m) { m.fc2_us = bad; });
  }
  const Known known;
  for (std::size_t i = 0; i < faults.size(); ++i) {
    CAPTURE(i);
    // Whatever has the fastest fc1 is broken, and tempting.
    Landscape landscape([&](const LayerConfig& config, Effort) {
      Measurement m = known(config);
      if (config.fc1 == known.fc1) faults[i](m);
      return m;
    });
    const SearchOutcome outcome = searched(landscape);
    REQUIRE(outcome.found);
    CHECK(outcome.record.config.fc1 != known.fc1);
    CHECK(outcome.record.config.fc2 == known.fc2);
    CHECK(outcome.record.verified);
    CHECK(outcome.failed >= 1);
  }
}

TEST_CASE("a GEMM that was tried beside a failing one gets a second chance") {
  const Known known;
  // No fc2 works but the baseline's, so that every pair of the first round fails.
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = known(config);
    if (config.fc2 != baseline().fc2) m.failure = "crashed";
    return m;
  });
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  CHECK(outcome.record.config.fc1 == known.fc1);
  CHECK(outcome.record.config.fc2 == baseline().fc2);
}

TEST_CASE(
    "with a third of the GEMMs failing the fastest right one is found, and no config that failed is tried "
    "again") {
  const Known known;
  const auto wrong = [&](const LayerConfig& c) {
    return (c.fc1 != known.fc1 && is_wrong(c.fc1, 7, 0.33)) ||
           (c.fc2 != known.fc2 && is_wrong(c.fc2, 8, 0.33));
  };
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = known(config);
    m.verified = !wrong(config);
    return m;
  });
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  CHECK(outcome.record.config.fc1 == known.fc1);
  CHECK(outcome.record.config.fc2 == known.fc2);
  std::vector<LayerConfig> failed;
  for (const MeasureRequest& request : landscape.requests) {
    for (const LayerConfig& config : request.configs) {
      CHECK(std::find(failed.begin(), failed.end(), config) == failed.end());
      if (wrong(config)) failed.push_back(config);
    }
  }
  CHECK(outcome.failed == failed.size());
}

TEST_CASE("where all configs are equal the baseline is kept") {
  Landscape landscape([](const LayerConfig&, Effort) { return figures(100, 60); });
  CHECK(searched(landscape).record.config == baseline());
}

TEST_CASE("where all configs but the failing baseline are equal, the first candidates win") {
  Landscape landscape([](const LayerConfig& config, Effort) {
    Measurement m = figures(100, 60);
    m.verified = config != baseline();
    return m;
  });
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  LayerConfig expected = baseline();
  const auto fc2 = candidates(model::GemmStage::fc2);
  expected.fc2 = fc2[0] == expected.fc2 ? fc2[1] : fc2[0];
  CHECK(outcome.record.config == expected);
  CHECK(outcome.record.baseline_us == 0);
}

TEST_CASE("a lead smaller than the spread of the timings is no lead") {
  const Known known;
  const auto with_spread = [&](double spread) {
    Landscape landscape([&, spread](const LayerConfig& config, Effort) {
      Measurement m = config.fc1 == known.fc1 ? figures(99, 60) : figures(100, 60);
      m.spread = spread;
      return m;
    });
    return searched(landscape).record.config.fc1;
  };
  CHECK(with_spread(0.02) == baseline().fc1);
  CHECK(with_spread(0.001) == known.fc1);
  // However wide they spread, a lead of more than max_tie is one.
  SearchOptions options;
  options.max_tie = 0.001;
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = config.fc1 == known.fc1 ? figures(99, 60) : figures(100, 60);
    m.spread = 0.5;
    return m;
  });
  CHECK(searched(landscape, options).record.config.fc1 == known.fc1);
}

TEST_CASE("min_improvement keeps the baseline unless it is beaten by that share") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort) {
    return figures(config.fc1 == known.fc1 ? 95 : 100, 90);  // 195 against 200: 2.5 %
  });
  SearchOptions options;
  options.min_improvement = 0.03;
  SearchOutcome outcome = searched(landscape, options);
  CHECK(outcome.record.config == baseline());
  CHECK(outcome.record.us == outcome.record.baseline_us);
  options.min_improvement = 0.02;
  outcome = searched(landscape, options);
  CHECK(outcome.record.config.fc1 == known.fc1);
  CHECK(outcome.record.baseline_us == doctest::Approx(200));
  CHECK(outcome.record.us == doctest::Approx(195));
}

TEST_CASE("a config that is fast on uniform routing alone does not win") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = known(config);
    if (config.fc1 == known.fc1) m.skewed_us *= 3;
    return m;
  });
  CHECK(searched(landscape).record.config.fc1 != known.fc1);
  SearchOptions uniform_alone;
  uniform_alone.skew_weight = 0;
  CHECK(searched(landscape, uniform_alone).record.config.fc1 == known.fc1);
}

TEST_CASE("block sizes of sort and combine are tuned beside the GEMMs") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = known(config);
    const double saved = (config.combine.block_threads == 512 ? 6 : 0) +
                         (config.sort.block_threads == 512 ? 4 : 0) +
                         (config.sort.single_block_rows == 0 ? 2 : 0);
    m.us -= saved;
    m.skewed_us -= saved;
    return m;
  });
  const LayerConfig config = searched(landscape).record.config;
  CHECK(config.combine.block_threads == 512);
  CHECK(config.sort.block_threads == 512);
  CHECK(config.fc1 == known.fc1);
}

TEST_CASE(
    "the leaders and the baseline are measured at last in one interleaved request, whatever the batch size") {
  Landscape landscape;
  SearchOptions options;
  options.batch = 2;
  CHECK(searched(landscape, options).found);
  const MeasureRequest& last = landscape.requests.back();
  CHECK(last.effort == Effort::final_);
  CHECK(last.configs.front() == baseline());
  CHECK(last.configs.size() >= 3);
  for (std::size_t i = 0; i + 1 < landscape.requests.size(); ++i) {
    CHECK(landscape.requests[i].effort != Effort::final_);
    CHECK(landscape.requests[i].configs.size() <= 2);
  }
}

TEST_CASE("after a failure among the last the others are measured together once more without it") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort effort) {
    Measurement m = known(config);
    if (effort == Effort::final_ && config.fc1 == known.fc1) m.failure = "hangs when it is run often";
    return m;
  });
  const SearchOutcome outcome = searched(landscape);
  REQUIRE(outcome.found);
  CHECK(outcome.record.config.fc1 != known.fc1);
  const auto n = landscape.requests.size();
  CHECK(landscape.requests[n - 1].effort == Effort::final_);
  CHECK(landscape.requests[n - 2].effort == Effort::final_);
  CHECK(landscape.requests[n - 1].configs.size() < landscape.requests[n - 2].configs.size());
}

TEST_CASE("hints are tried beside the candidates, and those outside the config space never") {
  SearchOptions options;
  options.candidates = {8, 0, 1000};
  LayerConfig hint = baseline();
  hint.fc1 = ranked_candidates(kUniform, model::GemmStage::fc1, kBucket, h200(), {0, 0, 1e9}).back();
  LayerConfig outside = baseline();
  outside.fc2.block_m = 7;
  options.hints = {outside, hint};
  Landscape landscape([&](const LayerConfig& config, Effort) {
    Measurement m = rugged(config);
    return config.fc1 == hint.fc1 ? figures(50, m.fc2_us) : m;
  });
  CHECK(searched(landscape, options).record.config.fc1 == hint.fc1);
  for (const MeasureRequest& request : landscape.requests) {
    for (const LayerConfig& config : request.configs)
      CHECK(model::check_layer_config(kUniform, config, h200()).ok());
  }
}

TEST_CASE("every config measured is sound, also where widths decide which GEMMs go together") {
  const LayerSpec odd = uniform_spec(2048, 64, 744, 8);
  Landscape landscape;
  CHECK(searched(landscape, {}, odd).found);
  bool mma_beside_wgmma = false;
  for (const MeasureRequest& request : landscape.requests) {
    for (const LayerConfig& config : request.configs) {
      CHECK(model::check_layer_config(odd, config, h200()).ok());
      mma_beside_wgmma = mma_beside_wgmma || config.fc1.schedule != config.fc2.schedule;
    }
  }
  CHECK(mma_beside_wgmma);
}

TEST_CASE("the record holds the figures of the last measurement and what the layer's floor makes of them") {
  const Known known;
  Landscape landscape([&](const LayerConfig& config, Effort effort) {
    Measurement m = known(config);
    if (effort != Effort::final_) m.us *= 2, m.skewed_us *= 2;
    m.err1 = 1e-5, m.err2 = 2e-5;
    return m;
  });
  const SearchOutcome outcome = searched(landscape);
  const TuningRecord& record = outcome.record;
  CHECK(record.key == key_of(kUniform, kBucket));
  CHECK(record.us == doctest::Approx(155));
  CHECK(record.us1 == doctest::Approx(90));
  CHECK(record.us2 == doctest::Approx(55));
  CHECK(record.err1 == 1e-5);
  CHECK(record.err2 == 2e-5);
  CHECK(record.spread == 0.002);
  CHECK(record.verified);
  CHECK(record.config_space == model::kConfigSpaceVersion);
  CHECK(record.candidates == static_cast<int>(outcome.tried));
  const model::Floor floor = model::layer_floor(kUniform, kBucket, h200());
  CHECK(record.tflops == doctest::Approx(floor.flops / 155e-6 / 1e12));
  CHECK(record.bw == doctest::Approx(floor.bytes / 155e-6 / 1e9));
}

TEST_CASE("a record of one launch for the layer says nothing of fc1, fc2 and h, which it has not") {
  for (const bool one_launch_wins : {true, false}) {
    Landscape landscape([&](const LayerConfig& config, Effort) {
      Measurement m = figures(30, 20);
      m.err1 = 1e-5;
      if ((config.one_launch.max_tokens > 0) == one_launch_wins) m.us /= 2, m.skewed_us /= 2;
      return m;
    });
    const auto outcome = search_item(landscape, item_of(kUniform, 1), h200(), {});
    REQUIRE(outcome.ok());
    const TuningRecord& record = outcome->record;
    REQUIRE((record.config.one_launch.max_tokens > 0) == one_launch_wins);
    CHECK(record.us > 0);
    CHECK((record.us1 == 0) == one_launch_wins);
    CHECK((record.us2 == 0) == one_launch_wins);
    CHECK((record.err1 == 0) == one_launch_wins);
  }
}

TEST_CASE("the same measurements give the same record and the same requests") {
  const auto run = [](std::vector<MeasureRequest>& requests) {
    Landscape landscape([](const LayerConfig& config, Effort) {
      Measurement m = rugged(config, 5);
      m.verified = !is_wrong(config.fc1, 3, 0.2);
      return m;
    });
    const SearchOutcome outcome = searched(landscape);
    requests = landscape.requests;
    return outcome.record;
  };
  std::vector<MeasureRequest> first, second;
  CHECK(run(first) == run(second));
  REQUIRE(first.size() == second.size());
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].configs == second[i].configs);
}

TEST_CASE("when nothing is right the outcome says what failed first") {
  Landscape landscape([](const LayerConfig&, Effort) {
    Measurement m;
    m.failure = "no memory for the weights";
    return m;
  });
  const SearchOutcome outcome = searched(landscape, quick_search());
  CHECK(!outcome.found);
  CHECK(outcome.failure.find("no memory for the weights") != std::string::npos);
  CHECK(outcome.failed == outcome.tried);
}

TEST_CASE("a search stops between batches when it is told to") {
  int batches = 0;
  Landscape landscape;
  SearchOptions options = quick_search();
  options.batch = 3;
  options.stop = [&] { return ++batches > 2; };
  const auto outcome = search_item(landscape, item_of(kUniform, kBucket), h200(), options);
  REQUIRE(!outcome.ok());
  CHECK(outcome.error().code() == ErrorCode::cancelled);
  CHECK(landscape.requests.size() == 2);
}

TEST_CASE("a measurer's error ends the search and is passed on") {
  class Dead final : public Landscape {
    Status measure(const MeasureRequest&, MeasureEvents&) override {
      return {ErrorCode::device_error, "the device fell off the bus"};
    }
  } dead;
  const auto outcome = search_item(dead, item_of(kUniform, kBucket), h200(), {});
  REQUIRE(!outcome.ok());
  CHECK(outcome.error().message() == "the device fell off the bus");
}

TEST_CASE("a config without an answer has failed") {
  class Mute final : public Landscape {
    Status measure(const MeasureRequest& request, MeasureEvents& events) override {
      for (std::size_t i = 0; i < request.configs.size(); i += 2) events.answer(i, figures(100, 60));
      return {};
    }
  } mute;
  MeasureRequest request{kUniform, kBucket, Effort::quick, {LayerConfig(), LayerConfig()}};
  const auto answers = measure_all(mute, request);
  REQUIRE(answers.ok());
  CHECK(fault_of((*answers)[0]).empty());
  CHECK(!fault_of((*answers)[1]).empty());
}

TEST_CASE("a spec that is not valid and a bucket that is none are refused") {
  Landscape landscape;
  LayerSpec bad = kUniform;
  bad.top_k = 0;
  auto outcome = search_item(landscape, {bad, key_of(kUniform, kBucket)}, h200(), {});
  REQUIRE(!outcome.ok());
  CHECK(outcome.error().code() == ErrorCode::invalid_argument);
  outcome = search_item(landscape, item_of(kUniform, 100), h200(), {});
  REQUIRE(!outcome.ok());
  CHECK(outcome.error().code() == ErrorCode::invalid_argument);
  CHECK(landscape.requests.empty());
}
