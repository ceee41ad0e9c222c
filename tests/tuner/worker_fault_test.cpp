#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "support/temp_dir.hpp"
#include "tuner/search.hpp"
#include "tuner/tuning_run.hpp"
#include "tuner/worker_case.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

struct Fault {
  Misbehaviour what;
  const char* reason;  ///< part of what the candidate's failure says
  bool restarts;       ///< the worker is no longer to be trusted
  bool hangs = false;  ///< found out by the time-out alone
};

constexpr Fault kFaults[] = {
    {Misbehaviour::crash, "signal 11 (Segmentation fault); its stderr ends: an illegal memory access", true},
    {Misbehaviour::exit_quietly, "the worker exited with status 0", true},
    {Misbehaviour::hang, "no answer in 0.5 s", true, true},
    {Misbehaviour::garbage, "garbage", true},
    {Misbehaviour::endless_line, "a line without end", true},
    {Misbehaviour::nan, "garbage", true},
    {Misbehaviour::zero, "us is 0; must be a number from", true},
    {Misbehaviour::negative, "us is -12.5; must be a number from", true},
    {Misbehaviour::overflow, "garbage", true},
    {Misbehaviour::wrong_result, "", false},
    {Misbehaviour::another_config, "answered about another config", true},
    {Misbehaviour::another_index, "spoke of config 1000", true},
    {Misbehaviour::cut_line, "exited with status 4", true},
    {Misbehaviour::grandchild, "no answer in 0.5 s", true, true},
    {Misbehaviour::give_up, "the worker gave up: the context is lost", true},
    {Misbehaviour::turn_forever, "no answer in", true, true},
    {Misbehaviour::compile_crash, "signal 6 (Aborted)", true},
};

WorkerOptions impatient(std::vector<std::string> arguments = {}) {
  WorkerOptions options = worker_options(std::move(arguments));
  options.config_timeout = std::chrono::milliseconds(500);
  return options;
}
/// Short time-outs only where they are waited for: the machine may be busy.
WorkerOptions options_for(const Fault& fault, std::vector<std::string> arguments = {}) {
  return fault.hangs ? impatient(std::move(arguments)) : worker_options(std::move(arguments));
}

void check_others_are_right(const MeasureRequest& request, const std::vector<Measurement>& answers) {
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (misbehaviour_of(request.configs[i]) != Misbehaviour::none) continue;
    CAPTURE(i);
    CHECK_MESSAGE(fault_of(answers[i]).empty(), fault_of(answers[i]));
    CHECK(answers[i].us == 100 + 128 + 50 + 128 + 5);
  }
}

/// Whether a process of that id runs; a zombie that nobody has reaped yet does not.
bool runs(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t end = text.rfind(')');
  return end != std::string::npos && text.compare(end, 3, ") Z") != 0;
}

}  // namespace

TEST_CASE(
    "fault 31: each misbehaviour costs its config, with the reason, and the rest of the request goes on") {
  for (const Fault& fault : kFaults) {
    CAPTURE(static_cast<int>(fault.what));
    const std::size_t descriptors = open_descriptors();
    {
      WorkerProcess worker(options_for(fault));
      const MeasureRequest request = around(fault.what);
      const auto answers = measure_all(worker, request);
      REQUIRE_MESSAGE(answers.ok(), (answers.ok() ? "" : answers.error().message()));
      check_others_are_right(request, *answers);
      const std::string failure = fault_of((*answers)[2]);
      CAPTURE(failure);
      CHECK(!failure.empty());
      CHECK(failure.find(fault.reason) != std::string::npos);
      if (fault.restarts) {
        CHECK(worker.starts() >= 2);
      } else {
        CHECK(worker.starts() == 1);
      }
      // The worker that is there now goes on serving.
      const auto more = measure_all(worker, around(Misbehaviour::none));
      REQUIRE(more.ok());
      CHECK(fault_of((*more)[0]).empty());
    }
    CHECK(open_descriptors() == descriptors);
    CHECK(childless());
  }
}

TEST_CASE(
    "fault 31: where the worker names no config, the rest is asked for one by one and the culprit alone is "
    "lost") {
  for (const Fault& fault : kFaults) {
    // One names its config, the other is a hang like any.
    if (fault.what == Misbehaviour::turn_forever || fault.what == Misbehaviour::grandchild) continue;
    CAPTURE(static_cast<int>(fault.what));
    WorkerProcess worker(options_for(fault, {"--silent"}));
    const MeasureRequest request = around(fault.what);
    const auto answers = measure_all(worker, request);
    REQUIRE(answers.ok());
    check_others_are_right(request, *answers);
    CHECK(!fault_of((*answers)[2]).empty());
  }
}

TEST_CASE("fault 31: several bad configs in one request are each lost alone") {
  WorkerProcess worker(impatient());
  MeasureRequest request = around(Misbehaviour::crash);
  request.configs.insert(request.configs.begin(), config_that(Misbehaviour::hang));
  request.configs.push_back(config_that(Misbehaviour::zero));
  const auto answers = measure_all(worker, request);
  REQUIRE(answers.ok());
  check_others_are_right(request, *answers);
  CHECK(fault_of((*answers)[0]).find("no answer") != std::string::npos);
  CHECK(fault_of((*answers)[3]).find("signal 11") != std::string::npos);
  CHECK(fault_of((*answers)[6]).find("us is 0") != std::string::npos);
}

TEST_CASE("fault 31: what a hanging worker has started ends with it") {
  WorkerProcess worker(impatient());
  const auto answers = measure_all(worker, around(Misbehaviour::grandchild));
  REQUIRE(answers.ok());
  const std::string& failure = (*answers)[2].failure;
  const std::size_t at = failure.find("grandchild ");
  REQUIRE(at != std::string::npos);
  const auto grandchild = static_cast<pid_t>(std::atoi(failure.c_str() + at + 11));
  REQUIRE(grandchild > 1);
  for (int i = 0; i < 200 && runs(grandchild); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(!runs(grandchild));
}

TEST_CASE("fault 31: when config after config costs a worker, the rest of the request is left unmeasured") {
  WorkerOptions options = worker_options();
  options.most_faults_in_row = 3;
  WorkerProcess worker(options);
  MeasureRequest request{kUniform, 64, Effort::quick, {}};
  for (int i = 0; i < 10; ++i) {
    LayerConfig config = config_that(Misbehaviour::crash);
    config.fc1.raster = 1 + i;
    request.configs.push_back(config);
  }
  const auto answers = measure_all(worker, request);
  REQUIRE(answers.ok());
  CHECK(worker.starts() == 3);
  CHECK((*answers)[2].failure.find("signal 11") == (*answers)[0].failure.find("signal 11"));
  CHECK((*answers)[3].failure.find("not measured: 3 configs before it") != std::string::npos);
  // It is a matter of that request: the next one is tried.
  CHECK(fault_of((*measure_all(worker, around(Misbehaviour::none)))[0]).empty());
}

TEST_CASE("fault 31: a worker that dies at start again and again is an error with the end of its stderr") {
  const std::size_t descriptors = open_descriptors();
  {
    WorkerProcess worker(worker_options({"--die", "no CUDA-capable device"}));
    const auto answers = measure_all(worker, around(Misbehaviour::none));
    REQUIRE(!answers.ok());
    CHECK(answers.error().code() == ErrorCode::device_error);
    CHECK(answers.error().message().find("tried 3 times") != std::string::npos);
    CHECK(answers.error().message().find("exited with status 5") != std::string::npos);
    CHECK(answers.error().message().find("no CUDA-capable device") != std::string::npos);
    CHECK(answers.error().message().find("GPU 0") != std::string::npos);
  }
  CHECK(open_descriptors() == descriptors);
  CHECK(childless());
}

TEST_CASE("fault 31: a worker that dies at its first start alone is started again") {
  const TempDir dir;
  WorkerProcess worker(worker_options({"--die-once", dir / "marker"}));
  const auto answers = measure_all(worker, around(Misbehaviour::none));
  REQUIRE(answers.ok());
  CHECK(fault_of((*answers)[0]).empty());
}

TEST_CASE("fault 31: a worker that says nothing, or another hello, does not start") {
  WorkerOptions mute = worker_options({"--mute"});
  mute.start_timeout = std::chrono::milliseconds(50);
  WorkerProcess silent(mute);
  auto answers = measure_all(silent, around(Misbehaviour::none));
  REQUIRE(!answers.ok());
  CHECK(answers.error().message().find("it said nothing") != std::string::npos);
  WorkerProcess other(worker_options({"--hello", R"({"protocol": 99, "config_space": 3})"}));
  answers = measure_all(other, around(Misbehaviour::none));
  REQUIRE(!answers.ok());
  CHECK(answers.error().message().find("protocol is 99") != std::string::npos);
  CHECK(childless());
}

TEST_CASE("fault 31: a worker that was killed between two requests is replaced and costs no config") {
  const CaptureLog log;
  WorkerOptions options = worker_options();
  options.log = log;
  WorkerProcess worker(options);
  CHECK(measure_all(worker, around(Misbehaviour::none)).ok());
  const pid_t first = worker.pid();
  REQUIRE(first > 1);
  REQUIRE(::kill(first, SIGKILL) == 0);
  for (int i = 0; i < 200 && runs(first); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  // Alone, so that there is no other config to blame.
  const auto answers = measure_all(worker, {kUniform, 64, Effort::quick, {good_config(1)}});
  REQUIRE(answers.ok());
  CHECK(fault_of((*answers)[0]).empty());
  CHECK(log.count(LogLevel::warn) == 0);
  CHECK(worker.pid() != first);
}

TEST_CASE("fault 31: a config that a worker answers twice is answered once") {
  class Count final : public MeasureEvents {
   public:
    void answer(std::size_t index, const Measurement& measurement) override {
      CHECK(fault_of(measurement).empty());
      ++answers.at(index);
    }
    std::vector<int> answers = std::vector<int>(5);
  } count;
  WorkerProcess worker(worker_options());
  CHECK(worker.measure(around(Misbehaviour::twice), count).ok());
  CHECK(count.answers == std::vector<int>(5, 1));
}

TEST_CASE("fault 31: writing to a worker that has closed its input ends nobody") {
  WorkerOptions options = worker_options({"--deaf"});
  options.most_faults_in_row = 2;
  WorkerProcess worker(options);
  const auto answers = measure_all(worker, {kUniform, 64, Effort::quick, {good_config(1)}});
  REQUIRE(answers.ok());
  CHECK((*answers)[0].failure.find("exited with status 10") != std::string::npos);
}

TEST_CASE("fault 31: a search over a worker that fails at every fourth config ends with a verified winner") {
  for (const char* seed : {"1", "2", "3"}) {
    CAPTURE(seed);
    WorkerOptions options = worker_options({"--chaos", seed});
    options.config_timeout = std::chrono::milliseconds(150);
    WorkerProcess worker(options);
    std::vector<Trial> trials;
    SearchOptions search = quick_search();
    search.on_trial = [&](const Trial& trial) { trials.push_back(trial); };
    const auto outcome = search_item(worker, item_of(kUniform, 64), h200(), search);
    REQUIRE_MESSAGE(outcome.ok(), (outcome.ok() ? "" : outcome.error().message()));
    REQUIRE(outcome->found);
    CHECK(outcome->record.verified);
    CHECK(outcome->failed > 0);
    for (const Trial& trial : trials) {
      if (trial.config == outcome->record.config) CHECK(trial.failure.empty());
    }
  }
  CHECK(childless());
}

TEST_CASE("fault 31: a run over two workers that misbehave tunes every item") {
  WorkerOptions options = worker_options({"--chaos", "5"});
  options.config_timeout = std::chrono::milliseconds(150);
  {
    WorkerProcess first(options), second(options);
    TuningOptions tuning;
    tuning.search = quick_search();
    TuningRun run(h200(), tuning, {});
    for (const std::int64_t bucket : {16, 64, 256}) run.add(item_of(kUniform, bucket));
    Measurer* const two[] = {&first, &second};
    const TuningReport report = run.run(two);
    CHECK(report.tuned == 3);
    CHECK(report.lost_measurers.empty());
  }
  CHECK(childless());
}
