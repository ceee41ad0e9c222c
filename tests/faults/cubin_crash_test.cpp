#include <doctest/doctest.h>
#include <sys/stat.h>

#include <random>

#include "base/file_lock.hpp"
#include "cubin/fixture.hpp"
#include "support/kill_points.hpp"
#include "support/power_cut_file_system.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

/// Everything readable is sound, and the acknowledged kernels are there.
void check_invariants(const std::string& dir, const std::vector<int>& acknowledged) {
  const CubinCache cache = open_cache(dir);
  const VerifyReport report = cache.verify();
  CHECK(report.bad.empty());
  for (const EntryInfo& entry : cache.list()) CHECK(entry.path.starts_with(dir));
  for (const int i : acknowledged) {
    CAPTURE(i);
    CHECK(on_disk(dir, i));
  }
}

void spin_until(const std::atomic<int>& value, int wanted) {
  while (value.load() < wanted) ::usleep(200);
}

}  // namespace

TEST_CASE("fault 01: SIGKILL at every step of a fetch that stores") {
  std::vector<std::string> points(std::begin(kAtomicFileKillPoints), std::end(kAtomicFileKillPoints));
  points.insert(points.end(), {"cubin:locked", "cubin:built", "cubin:stored"});
  for (const std::string& point : points) {
    CAPTURE(point);
    TempDir dir;
    REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
    const ChildStatus child = run_child([&] {
      const CubinCache cache = open_cache(dir.path());
      FakeCompiler compiler;
      kill_at(point.c_str());
      return cache.fetch_or_build(key_of(2), kArch, compiler.build(2), {kBuildA}).ok() ? 0 : 1;
    });
    CHECK(child.signal() == SIGKILL);
    check_invariants(dir.path(), {1});

    // The next process goes on at once: the dead one's lock is free.
    FakeCompiler compiler;
    const CubinCache cache = open_cache(dir.path());
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(2), kArch, compiler.build(2), {kBuildA});
    REQUIRE(fetched.ok());
    CHECK(same_kernel(*fetched->binary, kernel_of(2)));
    CHECK(cache.counters().lock_timeouts == 0);
    check_invariants(dir.path(), {1, 2});

    // What the dead one left is swept once it is old.
    const std::size_t temps = count_temps(dir.path());
    CHECK(temps <= 1);
    CHECK(cache.gc().leftovers_removed == 0);
    for (const auto& item : std::filesystem::recursive_directory_iterator(dir.path())) {
      if (item.path().extension() == ".tmp") age_file(item.path(), std::chrono::hours(2));
    }
    CHECK(cache.gc().leftovers_removed == temps);
    CHECK(count_temps(dir.path()) == 0);
    check_invariants(dir.path(), {1, 2});
  }
}

TEST_CASE("fault 01: SIGKILL while a damaged entry is set aside, and during a collection") {
  for (const char* point : {"cubin:set_aside", "cubin:gc_listed", "cubin:gc_removed"}) {
    CAPTURE(point);
    TempDir dir;
    for (int i = 0; i < 4; ++i) REQUIRE(open_cache(dir.path()).store(key_of(i), kernel_of(i)).ok());
    spit(entry_path(dir.path(), 0), "damaged");
    age_file(entry_path(dir.path(), 1), std::chrono::hours(100));
    const ChildStatus child = run_child([&] {
      const CubinCache cache = open_cache(dir.path());
      kill_at(point);
      if (std::string(point) == "cubin:set_aside") {
        static_cast<void>(cache.lookup(key_of(0), kArch, kBuildA));
      } else {
        cache.gc(800);
      }
      return 0;
    });
    CHECK(child.signal() == SIGKILL);
    std::filesystem::remove(entry_path(dir.path(), 0));
    check_invariants(dir.path(), {2, 3});
    CHECK(open_cache(dir.path()).gc(0).ran);
  }
}

TEST_CASE("fault 01: after a power cut an acknowledged kernel is there, and no other is half there") {
  for (const auto names : {PowerCutFileSystem::Names::lost, PowerCutFileSystem::Names::kept}) {
    TempDir dir;
    {
      PowerCutFileSystem fs;
      const CubinCache cache = open_cache(dir.path(), Log(), &fs);
      FakeCompiler compiler;
      for (int i = 0; i < 5; ++i) {
        REQUIRE(cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA})->stored);
      }
      fs.cut(names);
    }
    check_invariants(dir.path(), {0, 1, 2, 3, 4});
  }
}

TEST_CASE("fault 02: SIGKILL at random times, 200 rounds of 4 writers") {
  constexpr int kRounds = 200, kWriters = 4, kKeys = 40;
  TempDir dir;
  struct Board {
    std::atomic<int> acknowledged[kKeys];
    std::atomic<int> wrong;
  };
  Shared<Board> board;
  std::mt19937 random(4711);
  for (int round = 0; round < kRounds; ++round) {
    const int seed = static_cast<int>(random());
    ChildGroup writers(kWriters, [&](int w) {
      std::mt19937 mine(static_cast<unsigned>(seed + w));
      FakeCompiler compiler;
      while (true) {
        // Opened anew each time, so that each fetch goes to the disk.
        const CubinCache cache = open_cache(dir.path());
        const int i = static_cast<int>(mine() % kKeys);
        const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
        if (!fetched.ok() || !same_kernel(*fetched->binary, kernel_of(i))) ++board->wrong;
        if (fetched.ok() && fetched->stored) board->acknowledged[i] = 1;
        if (mine() % 8 == 0) static_cast<void>(cache.store(key_of(i), kernel_of(i)));
      }
      return 0;
    });
    writers.release();
    ::usleep(500 + random() % 6000);
    writers.kill_all(SIGKILL);
    for (const ChildStatus& status : writers.wait()) CHECK(status.signal() == SIGKILL);
    // A little less each round, so that there is always something to write.
    if (round % 10 == 9) {
      CHECK(open_cache(dir.path()).verify().bad.empty());
      const int i = round % kKeys;
      board->acknowledged[i] = 0;
      std::filesystem::remove(entry_path(dir.path(), i));
    }
  }
  CHECK(board->wrong == 0);
  std::vector<int> acknowledged;
  for (int i = 0; i < kKeys; ++i) {
    if (board->acknowledged[i] != 0) acknowledged.push_back(i);
  }
  CHECK(acknowledged.size() > 10);
  check_invariants(dir.path(), acknowledged);
}

TEST_CASE("fault 06: a process killed while it compiles holds nobody up") {
  TempDir dir;
  Shared<std::atomic<int>> compiling;
  const pid_t holder = start_child([&] {
    const CubinCache cache = open_cache(dir.path());
    static_cast<void>(cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
      *compiling = 1;
      while (true) ::pause();
    }));
    return 0;
  });
  spin_until(*compiling, 1);
  ::kill(holder, SIGKILL);
  wait_for(holder);
  FakeCompiler compiler;
  const CubinCache cache = open_cache(dir.path());  // would wait two minutes
  REQUIRE(cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA}).ok());
  CHECK(cache.counters().lock_timeouts == 0);
  CHECK(on_disk(dir.path(), 1));
}

TEST_CASE("fault 06: a process stopped while it compiles holds others up for the bounded wait, no longer") {
  TempDir dir;
  Shared<std::atomic<int>> compiling;
  const pid_t holder = start_child([&] {
    const CubinCache cache = open_cache(dir.path());
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, [&]() -> Result<KernelBinary> {
      *compiling = 1;
      ::raise(SIGSTOP);
      return kernel_of(1);
    });
    return fetched.ok() && fetched->stored ? 0 : 1;
  });
  int status = 0;
  REQUIRE(::waitpid(holder, &status, WUNTRACED) == holder);
  REQUIRE(WIFSTOPPED(status));
  REQUIRE(*compiling == 1);

  CaptureLog log(LogLevel::info);
  CacheOptions options = cache_options(dir.path());
  options.lock_wait = std::chrono::milliseconds(30);
  FakeCompiler compiler;
  {
    const CubinCache cache = CubinCache::open(options, log);
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA});
    REQUIRE(fetched.ok());
    CHECK(fetched->origin == Origin::compiled);
    CHECK(fetched->stored);
    CHECK(cache.counters().lock_timeouts == 1);
    CHECK(log.count(LogLevel::warn) == 0);
  }
  // The stopped one goes on later and does no harm.
  ::kill(holder, SIGCONT);
  CHECK(wait_for(holder).exit_code() == 0);
  check_invariants(dir.path(), {1});
}

TEST_CASE("a fetch that waits for another process can be cancelled") {
  TempDir dir;
  REQUIRE(make_directories(posix_file_system(), dir / "cubin/locks").ok());
  const std::string lock = dir / ("cubin/locks/" + key_of(1).hex().substr(0, 3));
  const FileLock other = FileLock::acquire(posix_file_system(), lock, std::chrono::milliseconds(0), Log());
  REQUIRE(other.held());
  std::atomic<bool> cancel{true};
  FetchOptions options;
  options.cancel = &cancel;
  const Result<Fetched> fetched = open_cache(dir.path()).fetch_or_build(key_of(1), kArch, no_build, options);
  REQUIRE(!fetched.ok());
  CHECK(fetched.error().code() == ErrorCode::cancelled);
}
