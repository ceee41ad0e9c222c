#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

constexpr int kPassed = 0, kFailed = 1, kCannot = 77;

/// Fetches kernels [from, to) on a disk in trouble: all must come, with at most one warning; those not stored
/// stay in memory. Returns how many were stored, or −1.
int fetch_all(const CubinCache& cache, int from, int to, std::size_t bytes) {
  int stored = 0;
  for (int i = from; i < to; ++i) {
    FakeCompiler compiler(kBuildA, bytes);
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
    if (!fetched.ok() || !same_kernel(*fetched->binary, kernel_of(i, kBuildA, bytes))) return -1;
    if (fetched->stored) ++stored;
    const Result<Fetched> again = cache.fetch_or_build(key_of(i), kArch, no_build, {kBuildA});
    if (!again.ok() || again->binary != fetched->binary) return -1;
  }
  return stored;
}

}  // namespace

TEST_CASE("fault 08: on a full disk kernels still come, old entries stay, one warning") {
  for (const int error : {ENOSPC, EDQUOT}) {
    CAPTURE(error);
    TempDir dir;
    REQUIRE(open_cache(dir.path()).store(key_of(0), kernel_of(0)).ok());
    FaultyFileSystem fs(unsynced());
    fs.set_free_bytes(10000, error);
    CaptureLog log(LogLevel::warn);
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    CHECK(fetch_all(cache, 1, 11, 2000) == 4);
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(cache.counters().failed_stores == 6);
    CHECK(open_cache(dir.path()).verify().good == 5);
    CHECK(open_cache(dir.path()).verify().bad.empty());
    CHECK(on_disk(dir.path(), 0));
    CHECK(count_temps(dir.path()) == 0);
    fs.set_free_bytes(1 << 20);  // room again: it is used again
    FakeCompiler compiler;
    CHECK(cache.fetch_or_build(key_of(20), kArch, compiler.build(20), {kBuildA})->stored);
  }
}

TEST_CASE("fault 08: a small tmpfs that is really full") {
  TempDir dir;
  const ChildStatus child = run_child([&] {
    if (::unshare(CLONE_NEWNS) != 0) return kCannot;
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kCannot;
    if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=128k,mode=0700") != 0) return kCannot;
    CaptureLog log(LogLevel::warn);
    int stored = 0;
    {
      const CubinCache cache = open_cache(dir.path(), log);
      stored = fetch_all(cache, 0, 20, 20000);
    }
    if (stored < 1 || stored > 6 || log.count(LogLevel::warn) != 1) return kFailed;
    const VerifyReport report = open_cache(dir.path()).verify();
    return report.bad.empty() && report.good == static_cast<std::uint64_t>(stored) ? kPassed : kFailed;
  });
  if (child.exit_code() == kCannot) {
    MESSAGE("not run: this user may not mount a tmpfs");
    return;
  }
  CHECK(child.exit_code() == kPassed);
}

TEST_CASE("fault 09: above RLIMIT_FSIZE kernels still come, and SIGXFSZ ends nobody") {
  TempDir dir;
  const ChildStatus child = run_child([&] {
    const rlimit limit{4096, 4096};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return kCannot;
    CaptureLog log(LogLevel::warn);
    const CubinCache cache = open_cache(dir.path(), log);
    if (fetch_all(cache, 0, 3, 1000) != 3 || !log.lines().empty()) return kFailed;
    if (fetch_all(cache, 3, 6, 100000) != 0) return kFailed;
    return log.count(LogLevel::warn) == 1 ? kPassed : kFailed;
  });
  CHECK(child.exit_code() == kPassed);
  const VerifyReport report = open_cache(dir.path()).verify();
  CHECK(report.good == 3);
  CHECK(report.bad.empty());
  CHECK(count_temps(dir.path()) == 0);
}

TEST_CASE("fault 10: interrupted calls and short reads and writes are no faults") {
  TempDir dir;
  FaultyFileSystem fs(unsynced());
  fs.interrupt_every_other();
  fs.short_writes(7);
  fs.short_reads(5);
  CaptureLog log(LogLevel::warn);
  {
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    CHECK(fetch_all(cache, 0, 3, 500) == 3);
  }
  {
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    for (int i = 0; i < 3; ++i) {
      const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, no_build, {kBuildA});
      REQUIRE(fetched.ok());
      CHECK(fetched->origin == Origin::disk);
    }
  }
  CHECK(log.lines().empty());
}

TEST_CASE("fault 10: out of file descriptors, really") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(0), kernel_of(0)).ok());
  const ChildStatus child = run_child([&] {
    CaptureLog log(LogLevel::warn);
    const CubinCache cache = open_cache(dir.path(), log);
    const rlimit none{0, 1024};
    if (::setrlimit(RLIMIT_NOFILE, &none) != 0) return kCannot;
    if (fetch_all(cache, 0, 5, 200) != 0) return kFailed;
    if (log.count(LogLevel::warn) != 1) return kFailed;
    const rlimit enough{256, 1024};
    if (::setrlimit(RLIMIT_NOFILE, &enough) != 0) return kCannot;
    return fetch_all(cache, 5, 8, 200) == 3 ? kPassed : kFailed;
  });
  CHECK(child.exit_code() == kPassed);
  CHECK(on_disk(dir.path(), 0));
  CHECK(open_cache(dir.path()).verify().good == 4);
}

TEST_CASE("faults 10 and 11: any one call that fails, and any call from which on all fail") {
  struct Way {
    int error;
    bool and_after;
  };
  for (const Way way : {Way{EIO, false}, Way{EIO, true}, Way{ENOSPC, false}, Way{EMFILE, true},
                        Way{EACCES, false}, Way{EROFS, true}, Way{EDQUOT, false}, Way{ESTALE, true}}) {
    bool finished = false;
    for (std::uint64_t n = 1; !finished && n < 500; ++n) {
      CAPTURE(way.error);
      CAPTURE(n);
      TempDir dir;
      REQUIRE(open_cache(dir.path()).store(key_of(0), kernel_of(0)).ok());
      REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
      spit(entry_path(dir.path(), 1), "damaged");
      FaultyFileSystem fs(unsynced());
      fs.fail_call(n, way.error, way.and_after);
      CaptureLog log(LogLevel::warn);
      std::vector<int> acknowledged;
      {
        CacheOptions options = cache_options(dir.path(), &fs);
        options.max_bytes = 1 << 20;
        const CubinCache cache = CubinCache::open(options, log);
        for (int i = 0; i < 3; ++i) {
          FakeCompiler compiler;
          const Result<Fetched> fetched =
              cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
          REQUIRE(fetched.ok());
          CHECK(same_kernel(*fetched->binary, kernel_of(i)));
          if (fetched->stored || fetched->origin == Origin::disk) acknowledged.push_back(i);
        }
        static_cast<void>(cache.list());
        static_cast<void>(cache.stats());
        static_cast<void>(cache.verify(true));
      }
      CHECK(log.count(LogLevel::warn) <= (way.and_after ? 2u : 1u));
      finished = !fs.fired();
      CHECK(on_disk(dir.path(), 0));
      for (const int i : acknowledged) {
        CAPTURE(i);
        CHECK(on_disk(dir.path(), i));
      }
      if (finished) CHECK(acknowledged.size() == 3);
    }
    CHECK(finished);
  }
}

TEST_CASE("fault 11: what could not be synced is never published") {
  TempDir dir;
  FaultyFileSystem fs(unsynced());
  fs.fail_op(Op::fsync, 1, EIO);
  CaptureLog log(LogLevel::warn);
  const CubinCache cache = open_cache(dir.path(), log, &fs);
  CHECK(fetch_all(cache, 1, 2, 200) == 0);
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(!std::filesystem::exists(entry_path(dir.path(), 1)));
  CHECK(count_temps(dir.path()) == 0);
}

TEST_CASE("fault 12: a read-only folder is read, taken as it is, and costs one warning") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(0), kernel_of(0)).ok());
  SUBCASE("read-only mount") {
    FaultyFileSystem fs(unsynced());
    for (const Op op : {Op::access, Op::mkdir, Op::rename, Op::unlink, Op::set_mtime}) {
      fs.fail_op(op, FaultyFileSystem::kAll, EROFS);
    }
    CaptureLog log(LogLevel::warn);
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    CHECK(!cache.writable());
    const std::optional<Fetched> hit = cache.lookup(key_of(0), kArch, kBuildB);  // of another build
    REQUIRE(hit);
    CHECK(hit->origin == Origin::disk);
    CHECK(fetch_all(cache, 1, 4, 200) == 0);
    CHECK(log.count(LogLevel::warn) == 1);
  }
  SUBCASE("mode without write permission, as a user who is bound by it") {
    for (const std::string& folder : {dir / "cubin", dir / ("cubin/" + shard_name(key_of(0)))}) {
      REQUIRE(::chmod(folder.c_str(), 0555) == 0);
    }
    if (::geteuid() == 0) {
      for (const std::string& path : {dir.path(), dir / "cubin", entry_path(dir.path(), 0)}) {
        REQUIRE(::chown(path.c_str(), 65534, 65534) == 0);
      }
    }
    const ChildStatus child = run_child([&] {
      if (::geteuid() == 0 && (::setegid(65534) != 0 || ::seteuid(65534) != 0)) return kCannot;
      CaptureLog log(LogLevel::warn);
      const CubinCache cache = open_cache(dir.path(), log);
      if (cache.writable()) return kFailed;
      const std::optional<Fetched> hit = cache.lookup(key_of(0), kArch, kBuildB);
      if (!hit || hit->origin != Origin::disk) return kFailed;
      if (fetch_all(cache, 1, 4, 200) != 0) return kFailed;
      return log.count(LogLevel::warn) == 1 ? kPassed : kFailed;
    });
    CHECK(child.exit_code() == kPassed);
    for (const std::string& folder : {dir / "cubin", dir / ("cubin/" + shard_name(key_of(0)))}) {
      REQUIRE(::chmod(folder.c_str(), 0700) == 0);
    }
  }
}

TEST_CASE("fault 12: a folder removed while running is made again; one replaced by a file is done without") {
  TempDir dir;
  const std::string place = dir / "cache";
  CaptureLog log(LogLevel::warn);
  const CubinCache cache = open_cache(place, log);
  CHECK(fetch_all(cache, 0, 2, 200) == 2);
  SUBCASE("removed") {
    std::filesystem::remove_all(place);
    CHECK(fetch_all(cache, 0, 2, 200) == 0);  // from memory
    CHECK(fetch_all(cache, 2, 4, 200) == 2);
    CHECK(on_disk(place, 3));
    struct stat info {};
    REQUIRE(::stat((place + "/cubin").c_str(), &info) == 0);
    CHECK((info.st_mode & 077) == 0);
    CHECK(log.lines().empty());
  }
  SUBCASE("replaced by a file") {
    std::filesystem::remove_all(place);
    spit(place, "a file");
    CHECK(fetch_all(cache, 2, 6, 200) == 0);
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(slurp(place) == "a file");
    CHECK(cache.gc(1).entries_removed == 0);
    CHECK(cache.verify().checked == 0);
    CHECK(cache.list().empty());
  }
  SUBCASE("a file from the start") {
    spit(dir / "file", "a file");
    CaptureLog other_log(LogLevel::warn);
    const CubinCache other = open_cache(dir / "file", other_log);
    CHECK(fetch_all(other, 0, 3, 200) == 0);
    CHECK(other_log.count(LogLevel::warn) == 1);
    CHECK(slurp(dir / "file") == "a file");
  }
}
