#include <doctest/doctest.h>
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <sstream>

#include "support/processes.hpp"
#include "support/temp_dir.hpp"
#include "tuner/landscape.hpp"
#include "tuner/tuning_run.hpp"

using namespace varmoe;
using namespace varmoe::tuner;
using namespace varmoe::test;

namespace {

constexpr int kItems = 5;

/// Tokens of the records saved so far: a line each in a file.
std::vector<std::int64_t> saved_in(const std::string& path) {
  std::istringstream text(slurp(path));
  std::vector<std::int64_t> tokens;
  for (std::int64_t token; text >> token;) tokens.push_back(token);
  return tokens;
}

TuningCallbacks file_store(const std::string& path) {
  TuningCallbacks callbacks;
  callbacks.is_fresh = [path](const TuningKey& key) {
    const auto tokens = saved_in(path);
    return std::find(tokens.begin(), tokens.end(), key.token) != tokens.end();
  };
  callbacks.save = [path](const TuningRecord& record) {
    const std::string line = std::to_string(record.key.token) + "\n";
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const bool written = ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
    ::close(fd);
    return written ? Status() : Status(ErrorCode::io_error, "cannot write");
  };
  return callbacks;
}

TuningReport run_items(TuningOptions options, TuningCallbacks callbacks, Measurer& measurer) {
  options.search = quick_search();
  TuningRun run(h200(), std::move(options), std::move(callbacks));
  for (int i = 0; i < kItems; ++i) run.add(item_of(kUniform, std::int64_t{1} << i));
  Measurer* const one[] = {&measurer};
  return run.run(one);
}

std::set<std::int64_t> buckets_of(const Landscape& landscape) {
  std::set<std::int64_t> buckets;
  for (const MeasureRequest& request : landscape.requests) buckets.insert(request.bucket);
  return buckets;
}

/// Resumes after an interruption and checks that exactly what was not saved is measured.
void check_resumes(const std::string& path) {
  const auto before = saved_in(path);
  Landscape landscape;
  const TuningReport report = run_items({}, file_store(path), landscape);
  CHECK(report.end == RunEnd::finished);
  CHECK(report.fresh == before.size());
  CHECK(report.tuned == kItems - before.size());
  for (const std::int64_t token : before) CHECK(!buckets_of(landscape).contains(token));
  CHECK(buckets_of(landscape).size() == kItems - before.size());
  const auto after = saved_in(path);
  CHECK(std::set<std::int64_t>(after.begin(), after.end()).size() == kItems);
  CHECK(after.size() == kItems);
}

std::atomic<bool> interrupted_by_signal{false};

}  // namespace

TEST_CASE(
    "fault 32: a tuner killed while it measures item k resumes with the items before it done, and repeats "
    "none") {
  for (int k = 0; k < kItems; ++k) {
    CAPTURE(k);
    const TempDir dir;
    const std::string path = dir / "saved";
    const ChildStatus status = run_child([&] {
      Landscape landscape([&](const LayerConfig& config, Effort effort) {
        if (effort == Effort::normal && saved_in(path).size() == static_cast<std::size_t>(k))
          ::kill(::getpid(), SIGKILL);
        return rugged(config);
      });
      run_items({}, file_store(path), landscape);
      return 0;
    });
    CHECK(status.signal() == SIGKILL);
    CHECK(saved_in(path).size() == static_cast<std::size_t>(k));
    check_resumes(path);
  }
}

TEST_CASE("fault 32: a tuner killed right after it saved item k measures that item never again") {
  for (int k = 1; k <= kItems; ++k) {
    CAPTURE(k);
    const TempDir dir;
    const std::string path = dir / "saved";
    const ChildStatus status = run_child([&] {
      Landscape landscape;
      TuningCallbacks callbacks = file_store(path);
      const auto save = callbacks.save;
      callbacks.save = [&](const TuningRecord& record) {
        Status saved = save(record);
        if (saved_in(path).size() == static_cast<std::size_t>(k)) ::kill(::getpid(), SIGKILL);
        return saved;
      };
      run_items({}, callbacks, landscape);
      return 0;
    });
    CHECK(status.signal() == SIGKILL);
    CHECK(saved_in(path).size() == static_cast<std::size_t>(k));
    check_resumes(path);
  }
}

TEST_CASE(
    "fault 32: SIGINT ends the run after the batch under way, with a consistent report and what is done "
    "kept") {
  for (int k = 0; k < kItems; ++k) {
    CAPTURE(k);
    const TempDir dir;
    const std::string path = dir / "saved";
    const ChildStatus status = run_child([&] {
      ::signal(SIGINT, [](int) { interrupted_by_signal = true; });
      Landscape landscape([&](const LayerConfig& config, Effort) {
        if (saved_in(path).size() == static_cast<std::size_t>(k)) ::raise(SIGINT);
        return rugged(config);
      });
      TuningOptions options;
      options.cancel = &interrupted_by_signal;
      const TuningReport report = run_items(options, file_store(path), landscape);
      const bool consistent = report.items == kItems && report.tuned == static_cast<std::size_t>(k) &&
                              report.failed == 0 && report.lost_measurers.empty() &&
                              report.left == kItems - report.tuned && report.end == RunEnd::cancelled;
      return consistent ? 0 : 1;
    });
    CHECK(status.exit_code() == 0);
    CHECK(saved_in(path).size() == static_cast<std::size_t>(k));
    check_resumes(path);
  }
}

TEST_CASE("fault 32: a time limit ends the run between batches, and the next run goes on from there") {
  const TempDir dir;
  const std::string path = dir / "saved";
  double clock = 0;
  TuningOptions options;
  options.seconds = [&] { return clock; };
  options.time_limit_seconds = 100;
  // Every config takes a second, an item some twenty to forty.
  Landscape landscape([&](const LayerConfig& config, Effort) {
    clock += 1;
    return rugged(config);
  });
  const TuningReport report = run_items(options, file_store(path), landscape);
  CHECK(report.end == RunEnd::time_limit);
  CHECK(report.tuned >= 1);
  CHECK(report.left >= 1);
  CHECK(report.items == report.tuned + report.left);
  CHECK(report.tuned == saved_in(path).size());
  CHECK(report.lost_measurers.empty());
  // The batch in which the time ran out was the last.
  CHECK(clock >= 100);
  CHECK(clock < 100 + 32);
  check_resumes(path);
}

TEST_CASE("fault 32: a limit of no time at all measures nothing") {
  TuningOptions options;
  options.time_limit_seconds = 0;
  Landscape landscape;
  const TuningReport report = run_items(options, {}, landscape);
  CHECK(landscape.requests.empty());
  CHECK(report.left == kItems);
  CHECK(report.end == RunEnd::time_limit);
}
