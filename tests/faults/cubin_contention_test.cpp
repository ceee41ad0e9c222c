#include <doctest/doctest.h>

#include <random>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

TEST_CASE(
    "fault 05: processes and threads that compile the same kernels cold: valid bytes, one compile each") {
  constexpr int kProcesses = 8, kThreads = 4, kKeys = 6;
  TempDir dir;
  struct Board {
    std::atomic<int> compiles[kKeys];
    std::atomic<int> good;
  };
  Shared<Board> board;
  const std::vector<ChildStatus> children = run_together(kProcesses, [&](int p) {
    const CubinCache cache = open_cache(dir.path());
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int k = 0; k < kKeys; ++k) {
          const int i = (k + p + t) % kKeys;
          const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch,
                                                               [&]() -> Result<KernelBinary> {
                                                                 ++board->compiles[i];
                                                                 ::usleep(5000);
                                                                 return kernel_of(i, kBuildA, 20000);
                                                               },
                                                               {kBuildA});
          if (fetched.ok() && same_kernel(*fetched->binary, kernel_of(i, kBuildA, 20000))) ++board->good;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return 0;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  CHECK(board->good == kProcesses * kThreads * kKeys);
  for (int i = 0; i < kKeys; ++i) {
    CAPTURE(i);
    CHECK(board->compiles[i] == 1);
    CHECK(on_disk(dir.path(), i));
  }
}

TEST_CASE("fault 04: processes store the same key: one valid entry, one of those written") {
  TempDir dir;
  const std::vector<ChildStatus> children = run_together(8, [&](int p) {
    const CubinCache cache = open_cache(dir.path());
    for (int n = 0; n < 20; ++n) {
      KernelBinary binary = kernel_of(1);
      binary.compile_ms = p;
      if (!cache.store(key_of(1), binary).ok()) return 1;
    }
    return 0;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  const CubinCache cache = open_cache(dir.path());
  CHECK(cache.verify().checked == 1);
  const std::optional<Fetched> hit = cache.lookup(key_of(1), kArch, kBuildA);
  REQUIRE(hit);
  KernelBinary expected = kernel_of(1);
  expected.compile_ms = hit->binary->compile_ms;
  CHECK(same_kernel(*hit->binary, expected));
  CHECK(hit->binary->compile_ms >= 0);
  CHECK(hit->binary->compile_ms < 8);
  CHECK(count_temps(dir.path()) == 0);
}

TEST_CASE("fault 07: where locks are not supported the cache works, with one warning") {
  for (const int error : {ENOLCK, EOPNOTSUPP, ESTALE, ENOSYS}) {
    CAPTURE(error);
    TempDir dir;
    CaptureLog log(LogLevel::warn);
    FaultyFileSystem fs(unsynced());
    fs.fail_op(Op::flock, FaultyFileSystem::kAll, error);
    FakeCompiler compiler;
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    for (int i = 0; i < 5; ++i) {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
      REQUIRE(fetched.ok());
      CHECK(fetched->stored);
    }
    CHECK(compiler.compiles == 5);
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(log.contains("without file locks"));
    for (int i = 0; i < 5; ++i) CHECK(on_disk(dir.path(), i));
  }
}

TEST_CASE("fault 14: 32 processes create the cache at once") {
  TempDir dir;
  const std::string place = dir / "deep/down/cache";
  const std::vector<ChildStatus> children = run_together(32, [&](int p) {
    CaptureLog log(LogLevel::warn);
    FakeCompiler compiler;
    const Result<Fetched> fetched =
        open_cache(place, log).fetch_or_build(key_of(p % 8), kArch, compiler.build(p % 8), {kBuildA});
    return fetched.ok() && log.lines().empty() ? 0 : 1;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  for (int i = 0; i < 8; ++i) CHECK(on_disk(place, i));
}

TEST_CASE("fault 27: collections beside readers, writers and each other: right bytes or a miss") {
  constexpr int kKeys = 30;
  TempDir dir;
  struct Board {
    std::atomic<int> wrong, fetched, removed, writers_left;
  };
  Shared<Board> board;
  constexpr int kWriters = 3, kCollectors = 2;
  board->writers_left = kWriters;
  const std::vector<ChildStatus> children = run_together(kWriters + kCollectors, [&](int p) {
    std::mt19937 random(static_cast<unsigned>(p));
    FakeCompiler compiler(kBuildA, 2000);
    CaptureLog log(LogLevel::warn);
    if (p >= kWriters) {
      const CubinCache cache = open_cache(dir.path(), log);
      while (board->writers_left > 0) {
        board->removed += static_cast<int>(cache.gc(20000).entries_removed);
        if (random() % 50 == 0) static_cast<void>(cache.clear());
      }
      return log.lines().empty() ? 0 : 1;
    }
    // Until the collectors have met enough of them.
    for (int n = 0; n < 250 || board->removed < 50; ++n) {
      const CubinCache cache = open_cache(dir.path(), log);
      const int i = static_cast<int>(random() % kKeys);
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
      ++board->fetched;
      if (!fetched.ok() || !same_kernel(*fetched->binary, kernel_of(i, kBuildA, 2000))) ++board->wrong;
      if (cache.counters().defects != 0) ++board->wrong;
    }
    --board->writers_left;
    return log.lines().empty() ? 0 : 1;
  });
  for (const ChildStatus& child : children) CHECK(child.exit_code() == 0);
  CHECK(board->wrong == 0);
  CHECK(board->fetched >= kWriters * 250);
  CHECK(open_cache(dir.path()).verify().bad.empty());
}
