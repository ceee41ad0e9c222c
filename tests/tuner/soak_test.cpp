#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>

#include "model/config_space.hpp"
#include "tuner/landscape.hpp"
#include "tuner/tuning_run.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// Runs over a list of items by a measurer with random faults, stopped at random and taken up again.
class Soak {
 public:
  explicit Soak(std::uint64_t seed) : random_(seed) {}

  void step() {
    std::atomic<bool> cancel{false};
    const bool lossy = pick(3) == 0;
    const int last_config = pick(4) == 0 ? pick(200) : std::numeric_limits<int>::max();
    int configs = 0;
    Landscape landscape([&](const LayerConfig& config, Effort) {
      if (++configs == last_config) cancel = true;
      return lossy ? faulty(rugged(config)) : rugged(config);
    });
    class Mortal final : public Measurer {
     public:
      Mortal(Landscape& inner, int life) : inner_(inner), life_(life) {}
      Status measure(const MeasureRequest& request, MeasureEvents& events) override {
        return --life_ < 0 ? Status(ErrorCode::device_error, "gone") : inner_.measure(request, events);
      }
      std::string description() const override { return "mortal"; }

     private:
      Landscape& inner_;
      int life_;
    } mortal(landscape, pick(4) == 0 ? pick(30) : std::numeric_limits<int>::max());

    TuningOptions options;
    options.search = quick_search();
    options.search.batch = 1 + static_cast<std::size_t>(pick(10));
    options.retune = pick(20) == 0;
    options.cancel = &cancel;
    std::map<std::int64_t, int> saves;
    TuningCallbacks callbacks;
    callbacks.is_fresh = [&](const TuningKey& key) { return store_.contains(key.token); };
    callbacks.save = [&](const TuningRecord& record) {
      if (pick(15) == 0) return Status(ErrorCode::io_error, "disk full");
      check(record);
      CHECK((options.retune || !store_.contains(record.key.token)));
      CHECK(++saves[record.key.token] == 1);
      store_[record.key.token] = record;
      return Status();
    };
    TuningRun run(h200(), options, callbacks);
    const int first = pick(4);
    for (int i = first; i < first + 4; ++i) run.add(item_of(kUniform, std::int64_t{1} << i));
    const std::size_t before = store_.size();
    Measurer* const one[] = {&mortal};
    const TuningReport report = run.run(one);
    CHECK(report.items == report.fresh + report.tuned + report.failed + report.left);
    CHECK(report.tuned == saves.size());
    CHECK(store_.size() >= before);
    // What was interrupted is taken up again some day, or forgotten.
    if (pick(10) == 0) store_.clear();
  }

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

  Measurement faulty(Measurement m) {
    double* const figures[] = {&m.us, &m.skewed_us, &m.fc1_us, &m.fc2_us, &m.spread, &m.err1};
    const double bad[] = {std::numeric_limits<double>::quiet_NaN(), 0, -1,
                          std::numeric_limits<double>::infinity()};
    switch (pick(8)) {
      case 0:
        *figures[pick(6)] = bad[pick(4)];
        break;
      case 1:
        m.verified = false;
        break;
      case 2:
        m.failure = "crashed";
        break;
      default:
        break;
    }
    return m;
  }

  static void check(const TuningRecord& record) {
    CHECK(record.verified);
    CHECK(record.us > 0);
    CHECK(record.us < 1000);
    CHECK(record.us1 > 0);
    CHECK(record.us2 > 0);
    CHECK(record.spread >= 0);
    CHECK(record.candidates > 0);
    CHECK(model::check_layer_config(kUniform, record.config, h200()).ok());
    // Of the winner's own measurement, not another's.
    CHECK(record.us1 == doctest::Approx(rugged(record.config).fc1_us));
  }

  std::mt19937_64 random_;
  std::map<std::int64_t, TuningRecord> store_;
};

}  // namespace

TEST_CASE("fault 43: soak: tuning runs with random faults, stops and resumption save right records alone") {
  const std::uint64_t operations = number_from_environment("SOAK_OPERATIONS", 2000) / 20;
  const std::uint64_t seed = number_from_environment("SOAK_SEED", 20261121);
  CAPTURE(seed);
  MESSAGE("tuner soak: ", operations, " runs, seed ", seed);
  Soak soak(seed);
  for (std::uint64_t n = 0; n < operations; ++n) {
    CAPTURE(n);
    soak.step();
  }
}
