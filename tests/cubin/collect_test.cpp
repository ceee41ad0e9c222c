#include "cubin/collect.hpp"

#include <doctest/doctest.h>

#include "base/file_lock.hpp"
#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"
#include "support/kill_points.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kHour = 3600 * kSecond;

void store(const std::string& dir, int i, std::size_t bytes = 1000) {
  REQUIRE(open_cache(dir).store(key_of(i), kernel_of(i, kBuildA, bytes)).ok());
}
void date(const std::string& dir, int i, std::int64_t mtime_ns) {
  REQUIRE(posix_file_system().set_mtime(entry_path(dir, i), mtime_ns) == 0);
}
std::int64_t date_of(const std::string& path) {
  FileInfo info;
  REQUIRE(posix_file_system().lstat(path, &info) == 0);
  return info.mtime_ns;
}
bool there(const std::string& dir, int i) {
  return std::filesystem::exists(entry_path(dir, i));
}

}  // namespace

TEST_CASE("the least recently used entries go, and no more than the bound asks for") {
  TempDir dir;
  const std::int64_t now = posix_file_system().now_ns();
  for (int i = 0; i < 8; ++i) store(dir.path(), i);
  for (int i = 0; i < 8; ++i) date(dir.path(), i, now - (20 - i) * kHour);
  const std::uint64_t size = std::filesystem::file_size(entry_path(dir.path(), 0));
  const CubinCache cache = open_cache(dir.path());
  // Entry 0 is the oldest, until it is used.
  CHECK(cache.lookup(key_of(0), kArch, kBuildA));
  CHECK(date_of(entry_path(dir.path(), 0)) >= now);

  CHECK(cache.gc().entries_removed == 0);  // no bound
  CHECK(cache.gc(8 * size).entries_removed == 0);
  const GcReport report = cache.gc(5 * size);
  CHECK(report.ran);
  CHECK(report.entries_before == 8);
  CHECK(report.entries_removed == 3);
  CHECK(report.bytes_removed == 3 * size);
  for (int i = 0; i < 8; ++i) {
    CAPTURE(i);
    CHECK(there(dir.path(), i) == (i == 0 || i > 3));
  }
}

TEST_CASE("a hit touches an entry at most every ten minutes") {
  TempDir dir;
  store(dir.path(), 1);
  const std::int64_t now = posix_file_system().now_ns();
  date(dir.path(), 1, now - 300 * kSecond);
  REQUIRE(open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
  CHECK(date_of(entry_path(dir.path(), 1)) < now - 200 * kSecond);
  date(dir.path(), 1, now - 700 * kSecond);
  REQUIRE(open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
  CHECK(date_of(entry_path(dir.path(), 1)) >= now);
}

TEST_CASE("stores keep the folder within its bound by themselves") {
  TempDir dir;
  FakeCompiler compiler(kBuildA, 1000);
  CacheOptions options = cache_options(dir.path());
  options.max_bytes = 20000;
  const CubinCache cache = CubinCache::open(options, Log());
  for (int i = 0; i < 100; ++i) {
    REQUIRE(cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA})->stored);
    CHECK(cache.stats().folders.at(0).bytes <= 22000);
  }
  CHECK(cache.counters().evictions >= 80);
  CHECK(cache.stats().folders.at(0).entries >= 10);
  CHECK(there(dir.path(), 99));
  // One that has no room at all is not written.
  FakeCompiler huge(kBuildA, 30000);
  const Result<Fetched> fetched = cache.fetch_or_build(key_of(1000), kArch, huge.build(1000), {kBuildA});
  REQUIRE(fetched.ok());
  CHECK(!fetched->stored);
}

TEST_CASE("fault 26: with the clock set back or mtimes in the future, nothing goes while there is room") {
  TempDir dir;
  const std::int64_t now = posix_file_system().now_ns();
  for (int i = 0; i < 6; ++i) store(dir.path(), i);
  date(dir.path(), 0, now + 24 * 365 * 50 * kHour);
  date(dir.path(), 1, 0);
  date(dir.path(), 2, now - 24 * 365 * 10 * kHour);
  FaultyFileSystem fs(unsynced());
  for (const std::int64_t clock : {std::int64_t{0}, now - 1000 * kHour, now, now + 24 * 365 * 100 * kHour}) {
    CAPTURE(clock);
    fs.set_now_ns(clock);
    const CubinCache cache = open_cache(dir.path(), Log(), &fs);
    CHECK(cache.gc(1 << 20).entries_removed == 0);
    for (int i = 0; i < 6; ++i) CHECK(cache.lookup(key_of(i), kArch, kBuildA));
  }
}

TEST_CASE("fault 26: entries dated in the future go after old ones, before ones in use, and are re-dated") {
  TempDir dir;
  const std::int64_t now = posix_file_system().now_ns();
  for (int i = 0; i < 6; ++i) store(dir.path(), i);
  const std::uint64_t size = std::filesystem::file_size(entry_path(dir.path(), 0));
  date(dir.path(), 0, now - 30 * kHour);             // old
  date(dir.path(), 1, now - 20 * kHour);             // old
  date(dir.path(), 2, now + 500 * kHour);            // unknown age
  date(dir.path(), 3, now + 24 * 365 * 50 * kHour);  // unknown age
  date(dir.path(), 4, now - 600 * kSecond);          // in use
  date(dir.path(), 5, now - 300 * kSecond);          // in use
  const CubinCache cache = open_cache(dir.path());
  CHECK(cache.gc(5 * size).entries_removed == 1);
  CHECK(!there(dir.path(), 0));
  CHECK(date_of(entry_path(dir.path(), 2)) <= posix_file_system().now_ns());
  CHECK(date_of(entry_path(dir.path(), 3)) <= posix_file_system().now_ns());
  date(dir.path(), 3, now + 24 * 365 * 50 * kHour);
  CHECK(cache.gc(3 * size).entries_removed == 2);
  CHECK(!there(dir.path(), 1));
  CHECK(!there(dir.path(), 3));
  CHECK(there(dir.path(), 4));
  CHECK(there(dir.path(), 5));
}

TEST_CASE("fault 27: temporaries of writers at work survive collection and clear; old ones are swept") {
  TempDir dir;
  store(dir.path(), 1);
  const std::string shard = std::filesystem::path(entry_path(dir.path(), 1)).parent_path();
  // Named as write_atomically names them.
  const std::string young = shard + "/.varmoe-12345-0123456789abcdef.tmp";
  const std::string old = shard + "/.varmoe-12345-fedcba9876543210.tmp";
  spit(young, "half an entry");
  spit(old, "half an entry");
  age_file(old, std::chrono::hours(2));
  const CubinCache cache = open_cache(dir.path());
  CHECK(cache.stats().folders.at(0).temporaries == 2);
  CHECK(cache.gc(1).leftovers_removed == 1);
  CHECK(std::filesystem::exists(young));
  CHECK(!std::filesystem::exists(old));
  CHECK(cache.clear().ok());
  CHECK(std::filesystem::exists(young));
}

TEST_CASE("fault 27: what was used or replaced since the listing is spared") {
  TempDir dir;
  const std::int64_t now = posix_file_system().now_ns();
  for (int i = 0; i < 4; ++i) store(dir.path(), i);
  for (int i = 0; i < 4; ++i) date(dir.path(), i, now - (20 - i) * kHour);
  const std::uint64_t size = std::filesystem::file_size(entry_path(dir.path(), 0));
  // Between listing and removal somebody uses entry 0 and makes entry 1 anew.
  static std::string place;
  static bool done;
  place = dir.path();
  done = false;
  const KillPointHandler before = set_kill_point_handler([](const char* name) noexcept {
    if (std::string_view(name) != "cubin:gc_listed") return;
    done = true;
    date(place, 0, posix_file_system().now_ns());
    std::filesystem::remove(entry_path(place, 1));
    store(place, 1);
  });
  const GcReport report = open_cache(dir.path()).gc(2 * size);
  set_kill_point_handler(before);
  CHECK(done);
  CHECK(report.entries_removed == 2);
  CHECK(there(dir.path(), 0));
  CHECK(there(dir.path(), 1));
  CHECK(on_disk(dir.path(), 0));
  CHECK(on_disk(dir.path(), 1));
}

TEST_CASE("fault 27: one collection at a time where locks work, any number where they do not") {
  TempDir dir;
  for (int i = 0; i < 4; ++i) store(dir.path(), i);
  const CubinCache cache = open_cache(dir.path());
  {
    REQUIRE(make_directories(posix_file_system(), dir / "cubin/locks").ok());
    const FileLock other =
        FileLock::acquire(posix_file_system(), dir / "cubin/locks/gc", std::chrono::milliseconds(0), Log());
    REQUIRE(other.held());
    CHECK(!cache.gc(1).ran);
    CHECK(cache.stats().folders.at(0).entries == 4);
  }
  FaultyFileSystem fs(unsynced());
  fs.fail_op(Op::flock, FaultyFileSystem::kAll, ENOLCK);
  CHECK(open_cache(dir.path(), Log(), &fs).gc(1).entries_removed == 4);
}

TEST_CASE("the quarantine gives way first, and does not last for ever") {
  TempDir dir;
  for (int i = 0; i < 30; ++i) {
    store(dir.path(), i);
    std::string bytes = slurp(entry_path(dir.path(), i));
    bytes[100] = static_cast<char>(bytes[100] ^ 1);
    spit(entry_path(dir.path(), i), bytes);
    CHECK(!open_cache(dir.path()).lookup(key_of(i), kArch, kBuildA));
    CHECK(!there(dir.path(), i));
  }
  const CubinCache cache = open_cache(dir.path());
  CHECK(cache.stats().folders.at(0).set_aside == 8);
  for (int i = 0; i < 2; ++i) store(dir.path(), i);
  CHECK(cache.gc(1 << 20).leftovers_removed == 0);
  age_file(dir / "cubin/quarantine/3", std::chrono::hours(24 * 8));
  CHECK(cache.gc(1 << 20).leftovers_removed == 1);
  CHECK(cache.gc(1500).leftovers_removed == 7);
  CHECK(cache.stats().folders.at(0).set_aside == 0);
}

TEST_CASE(
    "fault 35: entries of other format versions age and count like ours, and are left alone otherwise") {
  TempDir dir;
  const std::int64_t now = posix_file_system().now_ns();
  store(dir.path(), 1);
  const std::string ours = entry_path(dir.path(), 1);
  const std::string theirs = ours.substr(0, ours.size() - 1) + "2";
  const std::string stranger = std::filesystem::path(ours).parent_path() / "notes.txt";
  spit(theirs, slurp(ours));
  spit(stranger, "not an entry");
  const CubinCache cache = open_cache(dir.path());
  CHECK(cache.lookup(key_of(1), kArch, kBuildA));
  CHECK(cache.verify(true).checked == 1);
  CHECK(cache.list().size() == 1);
  CHECK(cache.stats().folders.at(0).entries == 2);
  CHECK(cache.stats().folders.at(0).foreign == 1);
  CHECK(std::filesystem::exists(theirs));
  REQUIRE(posix_file_system().set_mtime(theirs, now - 100 * kHour) == 0);
  CHECK(cache.gc(std::filesystem::file_size(ours)).entries_removed == 1);
  CHECK(!std::filesystem::exists(theirs));
  CHECK(there(dir.path(), 1));
  CHECK(cache.clear().ok());
  CHECK(std::filesystem::exists(stranger));
}
