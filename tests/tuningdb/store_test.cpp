#include <doctest/doctest.h>
#include <sys/stat.h>

#include <thread>

#include "support/processes.hpp"
#include "tuningdb/fixture.hpp"

using namespace varmoe;
using namespace varmoe::tuningdb;
using namespace varmoe::test;

namespace {
const std::string kFile = "nvidia-h200.json";
}

TEST_CASE("saved records are there, sorted, in the file of their device") {
  TempDir dir;
  const TuningStore store = open_store(dir / "cache/tuning");
  const std::vector<TuningRecord> records = {record_number(25), record_number(3),
                                             record_of(uniform_layer(), 64, 50, profile("a100-80gb"))};
  const auto report = store.save(records);
  REQUIRE(report.ok());
  CHECK(report->saved == 3);
  CHECK(report->kept == 0);
  CHECK(report->files.size() == 2);
  CHECK(stored_records(store.folder()) == std::vector<TuningRecord>{records[1], records[0]});
  CHECK(stored_records(store.folder(), record_file_name(records[2].key.device)) ==
        std::vector<TuningRecord>{records[2]});
  struct stat info {};
  REQUIRE(::stat(store.folder().c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0700);
}

TEST_CASE("a save keeps what is there, and of one key the better record") {
  TempDir dir;
  const TuningStore store = open_store(dir.path());
  TuningRecord later = record_number(1);
  later.date = "2027-01-01T00:00:00Z";
  later.us = 77;
  REQUIRE(store.save(std::vector<TuningRecord>{record_number(0), record_number(1)}).ok());
  const auto newer = save(store, later);
  REQUIRE(newer.ok());
  CHECK(newer->saved == 1);
  const auto older = save(store, record_number(1));
  REQUIRE(older.ok());
  CHECK(older->saved == 0);
  CHECK(older->kept == 1);
  CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{record_number(0), later});
}

TEST_CASE("files are for their owner alone unless asked otherwise") {
  for (const mode_t mode : {mode_t{0600}, mode_t{0644}}) {
    TempDir dir;
    StoreOptions options;
    if (mode != 0600) options.file_mode = mode;
    const mode_t before = ::umask(022);
    REQUIRE(save(TuningStore(dir.path(), Log(), options), record_number(0)).ok());
    ::umask(before);
    struct stat info {};
    REQUIRE(::stat((dir / kFile).c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == mode);
  }
}

TEST_CASE("a save that changes nothing writes nothing") {
  TempDir dir;
  const TuningStore store = open_store(dir.path());
  REQUIRE(save(store, record_number(0)).ok());
  struct stat before {
  }, after{};
  REQUIRE(::stat((dir / kFile).c_str(), &before) == 0);
  const auto report = save(store, record_number(0));
  REQUIRE(report.ok());
  CHECK(report->saved == 1);
  REQUIRE(::stat((dir / kFile).c_str(), &after) == 0);
  CHECK(before.st_ino == after.st_ino);
}

TEST_CASE(
    "fault 24: a record that is out of range or outside the config space is not saved, nor are those beside "
    "it") {
  TempDir dir;
  const TuningStore store = open_store(dir / "tuning");
  TuningRecord outside = record_number(1), out_of_range = record_number(1);
  outside.config.fc1.stages = 8;
  outside.config.fc1.block_n = 256;
  outside.config.fc1.warps_n = 4;  // more shared memory than an H200's block has
  out_of_range.us = -1;
  for (const TuningRecord& bad : {outside, out_of_range}) {
    const auto report = store.save(std::vector<TuningRecord>{record_number(0), bad});
    REQUIRE(!report.ok());
    CHECK(report.error().message().find("record of sm_90a, 132 SMs") == 0);
    CHECK(!std::filesystem::exists(dir / "tuning"));
  }
  CHECK(store.save(std::vector<TuningRecord>{record_number(0), outside}).error().code() ==
        ErrorCode::invalid_config);
}

TEST_CASE("fault 25: a file of a newer schema is left as it is") {
  TempDir dir;
  const std::string newer = "{\"varmoe_tuning\": 2, \"what\": \"ever\"}";
  spit(dir / kFile, newer);
  const auto report = save(open_store(dir.path()), record_number(0));
  REQUIRE(!report.ok());
  CHECK(report.error().code() == ErrorCode::unsupported);
  CHECK(slurp(dir / kFile) == newer);
  CHECK(names_in(dir.path()) == std::vector<std::string>{kFile, kFile + ".lock"});
}

TEST_CASE("fault 25: unknown fields and records survive a save") {
  TempDir dir;
  std::string text = file_text({record_number(0), record_number(5)});
  text = replaced(text, "\"records\": [", "\"note\": \"mine\",\n\"records\": [");
  text = replaced(text, "\"candidates\": 412}", "\"candidates\": 412, \"watts\": 7}");
  spit(dir / kFile, replaced(text, "\"q_type\": \"none\"", "\"q_type\": \"per_tensor\""));
  REQUIRE(save(open_store(dir.path()), record_number(1)).ok());
  const std::string after = slurp(dir / kFile);
  for (const char* kept : {"\"note\": \"mine\"", "\"watts\": 7", "\"q_type\": \"per_tensor\""}) {
    CAPTURE(kept);
    CHECK(after.find(kept) != std::string::npos);
  }
}

TEST_CASE("faults 15 and 21: a damaged file is set aside, not overwritten, and saving goes on") {
  TempDir dir;
  CaptureLog log;
  const TuningStore store = open_store(dir.path(), log);
  const std::string half = file_text({record_number(0), record_number(1)}).substr(0, 1500);
  for (int i = 0; i < 8; ++i) {
    spit(dir / kFile, half + std::to_string(i));
    const auto report = save(store, record_number(2));
    REQUIRE(report.ok());
    REQUIRE(report->set_aside == std::vector<std::string>{dir / (kFile + ".damaged-" + std::to_string(i))});
    CHECK(slurp(report->set_aside[0]) == half + std::to_string(i));
    CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{record_number(2)});
  }
  CHECK(log.count(LogLevel::warn) == 8);
  // Nobody looked: nothing is thrown away to make room.
  spit(dir / kFile, half);
  const auto report = save(store, record_number(2));
  REQUIRE(!report.ok());
  CHECK(report.error().message().find("damaged") != std::string::npos);
  CHECK(slurp(dir / kFile) == half);
}

TEST_CASE(
    "fault 19: a link, FIFO or folder in the file's place is refused without blocking, its target "
    "untouched") {
  TempDir dir;
  const std::string target = file_text({record_number(9)});
  spit(dir / "target", target);
  std::filesystem::create_directory(dir / "db");
  const std::string place = dir / ("db/" + kFile);
  SUBCASE("symlink") {
    std::filesystem::create_symlink(dir / "target", place);
  }
  SUBCASE("dangling symlink") {
    std::filesystem::create_symlink(dir / "nowhere", place);
  }
  SUBCASE("hard link") {
    std::filesystem::create_hard_link(dir / "target", place);
  }
  SUBCASE("FIFO") {
    REQUIRE(::mkfifo(place.c_str(), 0600) == 0);
  }
  SUBCASE("folder") {
    std::filesystem::create_directory(place);
  }
  SUBCASE("symlink for a lock") {
    std::filesystem::create_symlink(dir / "target", place + ".lock");
  }
  SUBCASE("hard link for a lock") {
    std::filesystem::create_hard_link(dir / "target", place + ".lock");
  }
  SUBCASE("FIFO for a lock") {
    REQUIRE(::mkfifo((place + ".lock").c_str(), 0600) == 0);
  }
  ::chmod((dir / "db").c_str(), 0700);
  const auto report = save(open_store(dir / "db"), record_number(0));
  REQUIRE(!report.ok());
  CHECK(report.error().code() == ErrorCode::io_error);
  CHECK(slurp(dir / "target") == target);
  CHECK(!std::filesystem::exists(dir / "nowhere"));
}

TEST_CASE("fault 20: a folder that others may write, or a relative one, is refused with the remedy") {
  TempDir dir;
  std::filesystem::create_directory(dir / "db");
  REQUIRE(::chmod((dir / "db").c_str(), 0770) == 0);
  const auto report = save(open_store(dir / "db"), record_number(0));
  REQUIRE(!report.ok());
  CHECK(report.error().message().find("chmod go-w") != std::string::npos);
  CHECK(names_in(dir / "db").empty());
  for (const char* relative : {"", "db", "./db"}) {
    const auto refused = save(open_store(relative), record_number(0));
    REQUIRE(!refused.ok());
    CHECK(refused.error().message().find("absolute") != std::string::npos);
  }
  REQUIRE(::chmod((dir / "db").c_str(), 0700) == 0);
  spit(dir / ("db/" + kFile), file_text({record_number(5)}));
  REQUIRE(::chmod((dir / ("db/" + kFile)).c_str(), 0666) == 0);
  CHECK(!save(open_store(dir / "db"), record_number(0)).ok());
}

TEST_CASE("the user's folder lies beside the cubin cache, and there is none where that is in memory") {
  CacheDir cache;
  CHECK(user_tuning_folder(cache).empty());
  cache.path = "/home/me/.cache/varmoe";
  CHECK(user_tuning_folder(cache) == "/home/me/.cache/varmoe/tuning");
}

TEST_CASE("fault 03: 16 processes save different records, one save each: all are there") {
  // 3200 records with TUNINGDB_RECORDS=200; fewer by default, since each save reads and writes the file as a
  // whole.
  const char* asked = std::getenv("TUNINGDB_RECORDS");
  const int each = asked != nullptr ? std::atoi(asked) : 25;
  constexpr int kProcesses = 16;
  TempDir dir;
  const std::vector<ChildStatus> children = run_together(kProcesses, [&](int p) {
    CaptureLog log(LogLevel::warn);
    const TuningStore store = open_store(dir.path(), log);
    for (int i = 0; i < each; ++i) {
      const auto report = save(store, record_number(i * kProcesses + p));
      if (!report.ok() || report->saved != 1) return 1;
    }
    return log.lines().empty() ? 0 : 2;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  const std::vector<TuningRecord> stored = stored_records(dir.path());
  CHECK(stored.size() == static_cast<std::size_t>(kProcesses * each));
  int wrong = 0;
  for (const TuningRecord& record : stored)
    wrong += record != record_number(static_cast<int>(record.us - 10));
  CHECK(wrong == 0);
  CHECK(names_in(dir.path()) == std::vector<std::string>{kFile, kFile + ".lock"});
}

TEST_CASE("fault 03: threads of one store lose nothing either") {
  TempDir dir;
  const TuningStore store = open_store(dir.path());
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) failed += save(store, record_number(i * 8 + t)).ok() ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
  CHECK(stored_records(dir.path()).size() == 40);
}

TEST_CASE("fault 04: processes save the same key: one record, the best of those written") {
  TempDir dir;
  const auto by = [](int p) {
    TuningRecord record = record_of(uniform_layer(), 64, 100 + p);
    record.candidates = p;
    return record;
  };
  const std::vector<ChildStatus> children = run_together(16, [&](int p) {
    const TuningStore store = open_store(dir.path());
    for (int n = 0; n < 5; ++n) {
      if (!save(store, by(p)).ok()) return 1;
    }
    return 0;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  CHECK(stored_records(dir.path()) == std::vector<TuningRecord>{by(0)});
}
