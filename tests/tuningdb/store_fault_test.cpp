#include <doctest/doctest.h>
#include <sys/file.h>
#include <sys/resource.h>

#include <cerrno>

#include "base/atomic_file.hpp"
#include "base/file_lock.hpp"
#include "support/faulty_file_system.hpp"
#include "support/kill_points.hpp"
#include "support/power_cut_file_system.hpp"
#include "support/processes.hpp"
#include "tuningdb/fixture.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {

const std::string kFile = "nvidia-h200.json";

std::size_t count_temps(const std::string& folder) {
  std::size_t count = 0;
  for (const std::string& name : names_in(folder)) count += is_temp_name(name) ? 1 : 0;
  return count;
}

bool has(const std::vector<TuningRecord>& records, const TuningRecord& record) {
  return std::find(records.begin(), records.end(), record) != records.end();
}

}  // namespace

TEST_CASE("fault 01: SIGKILL at every step of a save leaves the old file or the new one") {
  std::vector<std::string> points(std::begin(kAtomicFileKillPoints), std::end(kAtomicFileKillPoints));
  points.insert(points.end(), {"tuningdb:locked", "tuningdb:read", "tuningdb:saved"});
  for (const std::string& point : points) {
    CAPTURE(point);
    TempDir dir;
    REQUIRE(save(open_store(dir.path()), record_number(1)).ok());
    const ChildStatus child = run_child([&] {
      kill_at(point.c_str());
      return save(open_store(dir.path()), record_number(2)).ok() ? 0 : 1;
    });
    CHECK(child.signal() == SIGKILL);
    const std::vector<TuningRecord> left = stored_records(dir.path());
    CHECK(has(left, record_number(1)));
    const bool published =
        point == "atomic_file:after_rename" || point == "atomic_file:done" || point == "tuningdb:saved";
    CHECK(has(left, record_number(2)) == published);

    // The dead one's lock is free, and its leftover is swept once it is old.
    CHECK(count_temps(dir.path()) <= 1);
    for (const std::string& name : names_in(dir.path())) {
      if (is_temp_name(name))
        std::filesystem::last_write_time(
            dir / name, std::filesystem::file_time_type::clock::now() - std::chrono::hours(2));
    }
    REQUIRE(save(open_store(dir.path()), record_number(3)).ok());
    CHECK(count_temps(dir.path()) == 0);
    CHECK(has(stored_records(dir.path()), record_number(3)));
  }
}

TEST_CASE("fault 01: after a power cut every acknowledged record is there") {
  for (const auto names : {PowerCutFileSystem::Names::lost, PowerCutFileSystem::Names::kept}) {
    TempDir dir;
    PowerCutFileSystem fs;
    const TuningStore store = open_store(dir.path(), Log(), &fs);
    for (int i = 0; i < 5; ++i) REQUIRE(save(store, record_number(i)).ok());
    fs.cut(names);
    CHECK(stored_records(dir.path()).size() == 5);
  }
}

TEST_CASE("fault 02: SIGKILL at random times among 4 writers: nothing acknowledged is lost") {
  TempDir dir;
  struct Board {
    std::atomic<int> acknowledged[200];
  };
  Shared<Board> board;
  int checked = 0;
  for (int round = 0; round < 20; ++round) {
    ChildGroup group(4, [&](int p) {
      const TuningStore store = open_store(dir.path());
      for (int i = p; i < 200; i += 4) {
        if (save(store, record_number((i + 40 * round) % 200)).ok())
          board->acknowledged[(i + 40 * round) % 200] = 1;
      }
      return 0;
    });
    group.release();
    ::usleep(static_cast<useconds_t>(2000 + 3700 * round % 23000));
    group.kill_all(SIGKILL);
    group.wait();
    const std::vector<TuningRecord> stored =
        std::filesystem::exists(dir / kFile) ? stored_records(dir.path()) : std::vector<TuningRecord>{};
    for (int i = 0; i < 200; ++i) {
      if (board->acknowledged[i] == 0) continue;
      ++checked;
      CHECK(has(stored, record_number(i)));
    }
  }
  CHECK(checked > 100);  // else the killing came before the saving
}

TEST_CASE("fault 06: a save waits for the lock's holder, and fails rather than lose what that one saves") {
  TempDir dir;
  FileLock held =
      FileLock::acquire(posix_file_system(), dir / (kFile + ".lock"), std::chrono::milliseconds(0), Log());
  REQUIRE(held.held());
  StoreOptions options;
  options.lock_wait = std::chrono::milliseconds(30);
  const TuningStore store(dir.path(), Log(), options);
  const auto report = save(store, record_number(0));
  REQUIRE(!report.ok());
  CHECK(report.error().message().find("held by another process") != std::string::npos);
  CHECK(!std::filesystem::exists(dir / kFile));
  held.release();
  CHECK(save(store, record_number(0)).ok());
}

TEST_CASE("fault 07: where locks are not supported saving works, and it is said once") {
  for (const int error : {ENOLCK, EOPNOTSUPP, ESTALE, ENOSYS}) {
    CAPTURE(error);
    TempDir dir;
    CaptureLog log(LogLevel::warn);
    FaultyFileSystem fs(unsynced());
    fs.fail_op(Op::flock, FaultyFileSystem::kAll, error);
    const TuningStore store = open_store(dir.path(), log, &fs);
    for (int i = 0; i < 5; ++i) CHECK(save(store, record_number(i)).ok());
    CHECK(stored_records(dir.path()).size() == 5);
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(log.contains("has no locks"));
  }
}

TEST_CASE("fault 08: on a full disk a save fails, and the old file is intact") {
  TempDir dir;
  REQUIRE(save(open_store(dir.path()), record_number(0)).ok());
  const std::string before = slurp(dir / kFile);
  for (const std::size_t room : {0, 1, 1000, 2000}) {
    FaultyFileSystem fs(unsynced());
    fs.set_free_bytes(room);
    const auto report = save(open_store(dir.path(), Log(), &fs), record_number(1));
    REQUIRE(!report.ok());
    CHECK(report.error().message().find("ENOSPC") != std::string::npos);
    CHECK(slurp(dir / kFile) == before);
    CHECK(count_temps(dir.path()) == 0);
  }
}

TEST_CASE("fault 09: above RLIMIT_FSIZE a save fails, and SIGXFSZ ends nobody") {
  TempDir dir;
  REQUIRE(save(open_store(dir.path()), record_number(0)).ok());
  const ChildStatus child = run_child([&] {
    const rlimit limit{2048, 2048};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 3;
    return save(open_store(dir.path()), record_number(1)).ok() ? 1 : 0;
  });
  CHECK(child.exit_code() == 0);
  CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{record_number(0)});
}

TEST_CASE("fault 10: interrupted calls and short reads and writes are no faults") {
  TempDir dir;
  FaultyFileSystem fs(unsynced());
  fs.interrupt_every_other();
  fs.short_writes(97);
  fs.short_reads(61);
  CaptureLog log(LogLevel::warn);
  const TuningStore store = open_store(dir.path(), log, &fs);
  for (int i = 0; i < 4; ++i) CHECK(save(store, record_number(i)).ok());
  CHECK(stored_records(dir.path()).size() == 4);
  CHECK(log.lines().empty());
}

TEST_CASE(
    "faults 10 and 11: any one call that fails, and any from which on all fail: old records stay, "
    "acknowledged ones are there") {
  struct Way {
    int error;
    bool and_after;
  };
  for (const Way way : {Way{EIO, false}, Way{EIO, true}, Way{ENOSPC, false}, Way{EMFILE, true},
                        Way{EACCES, false}, Way{EROFS, true}, Way{EDQUOT, false}, Way{ESTALE, true}}) {
    bool finished = false;
    for (std::uint64_t n = 1; !finished && n < 200; ++n) {
      CAPTURE(way.error);
      CAPTURE(n);
      TempDir dir;
      REQUIRE(save(open_store(dir.path()), record_number(0)).ok());
      FaultyFileSystem fs(unsynced());
      fs.fail_call(n, way.error, way.and_after);
      const TuningStore store = open_store(dir.path(), Log(), &fs);
      const bool first = save(store, record_number(1)).ok();
      const bool second = save(store, record_number(2)).ok();
      finished = !fs.fired();
      if (finished) CHECK((first && second));
      const std::vector<TuningRecord> stored = stored_records(dir.path());
      CHECK(has(stored, record_number(0)));
      if (first) CHECK(has(stored, record_number(1)));
      if (second) CHECK(has(stored, record_number(2)));
    }
    CHECK(finished);
  }
}

TEST_CASE("fault 11: what could not be synced is never published") {
  TempDir dir;
  REQUIRE(save(open_store(dir.path()), record_number(0)).ok());
  FaultyFileSystem fs(unsynced());
  fs.fail_op(Op::fsync, 1, EIO);
  CHECK(!save(open_store(dir.path(), Log(), &fs), record_number(1)).ok());
  CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{record_number(0)});
  CHECK(count_temps(dir.path()) == 0);
}

TEST_CASE("fault 11: a file that cannot be read is not replaced") {
  TempDir dir;
  REQUIRE(save(open_store(dir.path()), record_number(0)).ok());
  FaultyFileSystem fs(unsynced());
  fs.fail_op(Op::read, FaultyFileSystem::kAll, EIO);
  CHECK(!save(open_store(dir.path(), Log(), &fs), record_number(1)).ok());
  CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{record_number(0)});
}

TEST_CASE("fault 12: a folder removed while running is made again; one replaced by a file is an error") {
  TempDir dir;
  const TuningStore store = open_store(dir / "tuning");
  REQUIRE(save(store, record_number(0)).ok());
  std::filesystem::remove_all(dir / "tuning");
  REQUIRE(save(store, record_number(1)).ok());
  CHECK(stored_records(dir / "tuning") == std::vector<TuningRecord>{record_number(1)});
  std::filesystem::remove_all(dir / "tuning");
  spit(dir / "tuning", "a file");
  CHECK(!save(store, record_number(2)).ok());
  CHECK(slurp(dir / "tuning") == "a file");
}

TEST_CASE("fault 14: 32 processes create the store at once") {
  TempDir dir;
  const std::vector<ChildStatus> children = run_together(
      32, [&](int p) { return save(open_store(dir / "deep/down/tuning"), record_number(p)).ok() ? 0 : 1; });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  CHECK(stored_records(dir / "deep/down/tuning").size() == 32);
}
