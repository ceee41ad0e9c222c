#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <map>
#include <thread>

#include "tuner/landscape.hpp"
#include "tuner/tuning_run.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

constexpr std::int64_t kBuckets[] = {1, 2, 4, 8, 16, 32};

/// A store of records, in memory.
struct Store {
  std::map<std::int64_t, TuningRecord> records;
  int saves = 0;

  TuningCallbacks callbacks() {
    TuningCallbacks result;
    result.is_fresh = [this](const TuningKey& key) { return records.contains(key.token); };
    result.save = [this](const TuningRecord& record) {
      ++saves;
      records[record.key.token] = record;
      return Status();
    };
    return result;
  }
};

TuningOptions options() {
  TuningOptions result;
  result.search = quick_search();
  return result;
}

void add_buckets(TuningRun& run) {
  for (const std::int64_t bucket : kBuckets) CHECK(run.add(item_of(kUniform, bucket)));
}

TuningReport run_one(TuningOptions with, TuningCallbacks callbacks, Measurer& measurer) {
  TuningRun run(h200(), std::move(with), std::move(callbacks));
  add_buckets(run);
  Measurer* const one[] = {&measurer};
  return run.run(one);
}

void check_consistent(const TuningReport& report) {
  CHECK(report.items == report.fresh + report.tuned + report.failed + report.left);
  CHECK(report.failed == report.failures.size());
  CHECK((report.end == RunEnd::finished) == (report.left == 0));
}

}  // namespace

TEST_CASE("every item is tuned and saved at once, completed by the caller") {
  Store store;
  Landscape landscape;
  TuningCallbacks callbacks = store.callbacks();
  callbacks.complete = [](TuningRecord& record, const Measurer& measurer) {
    record.library = "test";
    record.driver = measurer.description();
  };
  const TuningReport report = run_one(options(), callbacks, landscape);
  check_consistent(report);
  CHECK(report.tuned == 6);
  CHECK(report.end == RunEnd::finished);
  CHECK(store.saves == 6);
  for (const auto& [bucket, record] : store.records) {
    CHECK(record.verified);
    CHECK(record.library == "test");
    CHECK(record.driver == "landscape");
  }
}

TEST_CASE("layers that share a key are one item") {
  TuningRun run(h200(), options(), {});
  CHECK(run.add(item_of(kUniform, 64)));
  CHECK(!run.add(item_of(kUniform, 64)));
  LayerSpec shuffled = kUniform;
  shuffled.expert_widths[3] = 512;
  CHECK(run.add(item_of(shuffled, 64)));
  std::reverse(shuffled.expert_widths.begin(), shuffled.expert_widths.end());
  CHECK(!run.add(item_of(shuffled, 64)));
  CHECK(run.add(item_of(shuffled, 128)));
  Landscape landscape;
  Measurer* const one[] = {&landscape};
  CHECK(run.run(one).items == 3);
}

TEST_CASE("a second run has nothing to do, and retune does it all again") {
  Store store;
  Landscape first, second, third;
  run_one(options(), store.callbacks(), first);
  TuningReport report = run_one(options(), store.callbacks(), second);
  check_consistent(report);
  CHECK(report.fresh == 6);
  CHECK(report.tuned == 0);
  CHECK(second.requests.empty());
  TuningOptions again = options();
  again.retune = true;
  report = run_one(again, store.callbacks(), third);
  CHECK(report.tuned == 6);
  CHECK(report.fresh == 0);
}

TEST_CASE("progress counts what this run has to do and estimates the time left") {
  Store store;
  store.records[4];
  double clock = 0;
  TuningOptions with = options();
  with.seconds = [&] { return clock; };
  TuningCallbacks callbacks = store.callbacks();
  std::vector<TuningProgress> seen;
  callbacks.progress = [&](const TuningProgress& progress) { seen.push_back(progress); };
  callbacks.item_done = [&](const TuningItem&, const SearchOutcome& outcome) {
    CHECK(outcome.found);
    clock += 10;
  };
  Landscape landscape;
  run_one(with, callbacks, landscape);
  REQUIRE(seen.size() == 6);
  CHECK(seen[0].total == 5);
  CHECK(seen[0].done == 0);
  CHECK(!seen[0].seconds_left);
  CHECK(seen[2].done == 2);
  REQUIRE(seen[2].seconds_left.has_value());
  CHECK(*seen[2].seconds_left == doctest::Approx(30));
  CHECK(seen[5].done == 5);
  CHECK(*seen[5].seconds_left == 0);
}

TEST_CASE("hints of the caller are tried for their item") {
  LayerConfig hint = model::predict_layer_config(kUniform, 1, h200());
  hint.one_launch = {};  // a hint is about GEMMs
  hint.fc1 = ranked_candidates(kUniform, model::GemmStage::fc1, 1, h200(), {0, 0, 1e9}).back();
  TuningCallbacks callbacks;
  callbacks.hints = [&](const TuningItem& item) {
    return item.key.token == 1 ? std::vector<LayerConfig>{hint} : std::vector<LayerConfig>();
  };
  std::size_t trials = 0;
  callbacks.trial = [&](const TuningItem& item, const Trial& trial) {
    ++trials;
    if (trial.config == hint) CHECK(item.key.token == 1);
  };
  Landscape landscape;
  run_one(options(), callbacks, landscape);
  CHECK(trials > 6);
  CHECK(std::any_of(landscape.requests.begin(), landscape.requests.end(), [&](const MeasureRequest& request) {
    return std::find(request.configs.begin(), request.configs.end(), hint) != request.configs.end();
  }));
}

TEST_CASE("an item that fails is reported and the others go on") {
  Store store;
  class Partly final : public Landscape {
    Status measure(const MeasureRequest& request, MeasureEvents& events) override {
      if (request.bucket != 4) return Landscape::measure(request, events);
      Measurement failed;
      failed.failure = "does not fit";
      for (std::size_t i = 0; i < request.configs.size(); ++i) events.answer(i, failed);
      return {};
    }
  } partly;
  const TuningReport report = run_one(options(), store.callbacks(), partly);
  check_consistent(report);
  CHECK(report.tuned == 5);
  REQUIRE(report.failures.size() == 1);
  CHECK(report.failures[0].key.token == 4);
  CHECK(report.failures[0].reason.find("does not fit") != std::string::npos);
  CHECK(!store.records.contains(4));
}

TEST_CASE("an item whose spec is not valid is reported and costs no measurer") {
  TuningRun run(h200(), options(), {});
  TuningItem bad = item_of(kUniform, 64);
  bad.spec.top_k = 0;
  CHECK(run.add(bad));
  CHECK(run.add(item_of(kUniform, 128)));
  Landscape landscape;
  Measurer* const one[] = {&landscape};
  const TuningReport report = run.run(one);
  check_consistent(report);
  CHECK(report.tuned == 1);
  CHECK(report.failed == 1);
  CHECK(report.lost_measurers.empty());
}

TEST_CASE("a record that cannot be saved is a failure that says so, and the next ones are tried") {
  Store store;
  TuningCallbacks callbacks = store.callbacks();
  const auto save = callbacks.save;
  callbacks.save = [&](const TuningRecord& record) {
    return record.key.token == 2 ? Status(ErrorCode::io_error, "the disk is full") : save(record);
  };
  Landscape landscape;
  const TuningReport report = run_one(options(), callbacks, landscape);
  check_consistent(report);
  CHECK(report.tuned == 5);
  REQUIRE(report.failures.size() == 1);
  CHECK(report.failures[0].reason.find("the disk is full") != std::string::npos);
}

TEST_CASE("two measurers share the list, both work, and no item is done twice") {
  Store store;
  std::latch both(2);
  class Waiting final : public Landscape {
   public:
    explicit Waiting(std::latch& latch) : latch_(latch) {}
    Status measure(const MeasureRequest& request, MeasureEvents& events) override {
      if (requests.empty()) latch_.arrive_and_wait();  // the first item of each begins before either's ends
      return Landscape::measure(request, events);
    }
    std::latch& latch_;
  } first(both), second(both);
  TuningRun run(h200(), options(), store.callbacks());
  for (std::int64_t bucket = 1; bucket <= 4096; bucket *= 2) CHECK(run.add(item_of(kUniform, bucket)));
  Measurer* const two[] = {&first, &second};
  const TuningReport report = run.run(two);
  check_consistent(report);
  CHECK(report.tuned == 13);
  CHECK(store.saves == 13);
  CHECK(!first.requests.empty());
  CHECK(!second.requests.empty());
  for (const MeasureRequest& a : first.requests) {
    for (const MeasureRequest& b : second.requests) CHECK(a.bucket != b.bucket);
  }
}

namespace {

/// Gives up at the nth request.
class Mortal final : public Landscape {
 public:
  explicit Mortal(std::size_t life) : life_(life) {}
  Status measure(const MeasureRequest& request, MeasureEvents& events) override {
    if (requests.size() >= life_) return {ErrorCode::device_error, "the worker does not start"};
    return Landscape::measure(request, events);
  }
  std::string description() const override { return "GPU 1"; }

 private:
  std::size_t life_;
};

}  // namespace

TEST_CASE("the item of a measurer that gives up is done by another") {
  for (const std::size_t life : {0, 1, 3, 9}) {
    CAPTURE(life);
    Store store;
    Mortal mortal(life);
    Landscape landscape;
    TuningRun run(h200(), options(), store.callbacks());
    add_buckets(run);
    Measurer* const two[] = {&mortal, &landscape};
    const TuningReport report = run.run(two);
    check_consistent(report);
    CHECK(report.tuned == 6);
    CHECK(store.saves == 6);
    CHECK(report.lost_measurers.size() <= 1);
  }
}

TEST_CASE("a measurer that has run out of items waits for those that others may give back") {
  Store store;
  std::latch both(2);
  class Meeting final : public Landscape {
   public:
    Meeting(std::latch& latch, bool gives_up) : latch_(latch), gives_up_(gives_up) {}
    Status measure(const MeasureRequest& request, MeasureEvents& events) override {
      if (!met_) latch_.arrive_and_wait();
      met_ = true;
      if (!gives_up_) return Landscape::measure(request, events);
      // By now the other one has found the list empty.
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      return {ErrorCode::device_error, "the device is lost"};
    }

   private:
    std::latch& latch_;
    bool gives_up_, met_ = false;
  } lasting(both, false), failing(both, true);
  TuningRun run(h200(), options(), store.callbacks());
  CHECK(run.add(item_of(kUniform, 1)));
  CHECK(run.add(item_of(kUniform, 2)));
  Measurer* const two[] = {&lasting, &failing};
  const TuningReport report = run.run(two);
  check_consistent(report);
  CHECK(report.tuned == 2);
  CHECK(report.lost_measurers.size() == 1);
}

TEST_CASE("when every measurer has given up the run ends, says why, and what was done is kept") {
  Store store;
  Mortal mortal(12);
  const TuningReport report = run_one(options(), store.callbacks(), mortal);
  check_consistent(report);
  CHECK(report.end == RunEnd::no_measurer);
  REQUIRE(report.lost_measurers.size() == 1);
  CHECK(report.lost_measurers[0] == "GPU 1: the worker does not start");
  CHECK(report.left > 0);
  CHECK(report.tuned == store.records.size());
  CHECK(report.tuned > 0);
}

TEST_CASE("a run without measurers leaves everything") {
  TuningRun run(h200(), options(), {});
  add_buckets(run);
  const TuningReport report = run.run({});
  check_consistent(report);
  CHECK(report.left == 6);
  CHECK(report.end == RunEnd::no_measurer);
}

TEST_CASE("the options of one item's search can be changed; the others keep theirs") {
  Landscape landscape;
  std::map<std::int64_t, std::size_t> tried;
  TuningCallbacks callbacks;
  callbacks.adjust = [](const TuningItem& item, SearchOptions& search) {
    if (item.key.token == 4) search.candidates = {2, 0, 1.0};
  };
  callbacks.item_done = [&](const TuningItem& item, const SearchOutcome& outcome) {
    tried[item.key.token] = outcome.tried;
  };
  check_consistent(run_one(options(), callbacks, landscape));
  for (const auto& [token, count] : tried) {
    if (token != 4) CHECK(count > tried[4]);
  }
}

TEST_CASE("forward and backward passes of a layer lie in one list, and each gets its own hints") {
  TuningOptions with = options();
  TuningCallbacks callbacks;
  std::vector<TuningKey> asked, saved;
  std::vector<std::string> hinted;
  callbacks.is_fresh = [&](const TuningKey& key) {
    asked.push_back(key);
    return key.token == 1024;
  };
  callbacks.hints = [&](const TuningItem& item) {
    hinted.push_back(item.key.pass == TuningPass::forward ? "forward" : "wrong");
    return std::vector<LayerConfig>();
  };
  BackwardConfig near = model::predict_products(kUniform, 2048, h200());
  near.dx.raster = 13;
  callbacks.backward_hints = [&](const TuningItem& item) {
    hinted.push_back(item.key.pass == TuningPass::backward ? "backward" : "wrong");
    return std::vector<BackwardConfig>{near};
  };
  callbacks.save = [&](const TuningRecord& record) {
    saved.push_back(record.key);
    return Status();
  };
  TuningRun run(h200(), std::move(with), std::move(callbacks));
  CHECK(run.add(item_of(kUniform, 2048)));
  CHECK(run.add(backward_item_of(kUniform, 2048)));
  CHECK(run.add(backward_item_of(kUniform, 2048, GradientType::fp32)));
  CHECK(!run.add(backward_item_of(kUniform, 2048, GradientType::fp32)));
  CHECK(run.add(backward_item_of(kUniform, 1024)));
  Landscape landscape;
  Measurer* const one[] = {&landscape};
  const TuningReport report = run.run(one);
  check_consistent(report);
  CHECK(report.tuned == 3);
  CHECK(report.fresh == 1);
  CHECK(hinted == std::vector<std::string>{"forward", "backward", "backward"});
  CHECK(saved == std::vector<TuningKey>{item_of(kUniform, 2048).key, backward_item_of(kUniform, 2048).key,
                                        backward_item_of(kUniform, 2048, GradientType::fp32).key});
  bool tried_hint = false;
  for (const MeasureRequest& request : landscape.requests) {
    CHECK((request.configs.empty() || request.products.empty()));
    tried_hint = tried_hint || std::count(request.products.begin(), request.products.end(), near) > 0;
  }
  CHECK(tried_hint);
}
