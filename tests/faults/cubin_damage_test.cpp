#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

/// A miss that is set aside, told without a warning, and made again.
void check_miss_and_rebuild(const std::string& dir, int i) {
  CaptureLog log(LogLevel::warn);
  FakeCompiler compiler;
  {
    const CubinCache cache = open_cache(dir, log);
    const Result<Fetched> fetched = cache.fetch_or_build(key_of(i), kArch, compiler.build(i), {kBuildA});
    REQUIRE(fetched.ok());
    CHECK(fetched->origin == Origin::compiled);
    CHECK(fetched->stored);
    CHECK(cache.counters().defects >= 1);
  }
  CHECK(log.lines().empty());
  CHECK(compiler.compiles == 1);
  CHECK(on_disk(dir, i));
}

}  // namespace

TEST_CASE("fault 15: an entry file cut at every length is a miss") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
  const std::string path = entry_path(dir.path(), 1);
  const std::string good = slurp(path);
  for (std::size_t n = 0; n < good.size(); ++n) {
    CAPTURE(n);
    spit(path, good.substr(0, n));
    CHECK(!open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
    CHECK(!std::filesystem::exists(path));
  }
  spit(path, good.substr(0, 100));
  check_miss_and_rebuild(dir.path(), 1);
  spit(path, good + "x");
  check_miss_and_rebuild(dir.path(), 1);
  CHECK(names_in(dir / "cubin/quarantine").size() == 8);
}

TEST_CASE("fault 16: an entry file with one flipped bit in any byte is a miss, in own folder and layer") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
  const std::string path = entry_path(dir.path(), 1);
  const std::string good = slurp(path);
  CacheOptions layered = cache_options("");
  layered.read_only_layers = {dir.path()};
  for (std::size_t i = 0; i < good.size(); ++i) {
    CAPTURE(i);
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    spit(path, bad);
    CHECK(!CubinCache::open(layered, Log()).lookup(key_of(1), kArch, kBuildA));
    CHECK(std::filesystem::exists(path));  // a layer is never written
    CHECK(!open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
    CHECK(!std::filesystem::exists(path));
  }
  std::string bad = good;
  bad[good.size() / 2] = static_cast<char>(bad[good.size() / 2] ^ 1);
  spit(path, bad);
  CaptureLog log(LogLevel::warn);
  const CubinCache cache = CubinCache::open(layered, log);
  for (int n = 0; n < 3; ++n) CHECK(!cache.lookup(key_of(1), kArch, kBuildA));
  CHECK(log.count(LogLevel::warn) == 1);  // a damaged layer is its owner's to mend
  CHECK(log.contains("checksum"));
  check_miss_and_rebuild(dir.path(), 1);
}

TEST_CASE("fault 17: a valid entry under another key, for another arch, compiler or format is a miss") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
  const std::string good = slurp(entry_path(dir.path(), 1));
  std::filesystem::create_directories(std::filesystem::path(entry_path(dir.path(), 2)).parent_path());

  SUBCASE("another key") {
    spit(entry_path(dir.path(), 2), good);
    check_miss_and_rebuild(dir.path(), 2);
  }
  SUBCASE("another arch") {
    KernelBinary other = kernel_of(1);
    other.arch = "sm_80";
    spit(entry_path(dir.path(), 1), to_text(*encode_entry(key_of(1), other)));
    check_miss_and_rebuild(dir.path(), 1);
  }
  SUBCASE("another compiler than the name says") {
    spit(entry_path(dir.path(), 1), to_text(*encode_entry(key_of(1), kernel_of(1, kBuildB))));
    check_miss_and_rebuild(dir.path(), 1);
  }
  SUBCASE("an older or newer format under this format's name") {
    for (const int version : {0, 2}) {
      std::vector<std::byte> bytes = to_bytes(good);
      bytes[8] = std::byte(version);
      reseal(bytes);
      spit(entry_path(dir.path(), 1), to_text(bytes));
      check_miss_and_rebuild(dir.path(), 1);
    }
  }
  SUBCASE("an older or newer format under its own name") {
    const std::string path = entry_path(dir.path(), 1);
    for (const char version : {'0', '2'}) {
      std::filesystem::remove(path);
      const std::string other = path.substr(0, path.size() - 1) + version;
      spit(other, good);
      FakeCompiler compiler;
      REQUIRE(open_cache(dir.path()).fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA}).ok());
      CHECK(compiler.compiles == 1);
      CHECK(slurp(other) == good);
    }
  }
}

TEST_CASE(
    "fault 19: what is no plain file in an entry's place is refused without blocking, its target untouched") {
  TempDir dir;
  REQUIRE(open_cache(dir / "cache").store(key_of(1), kernel_of(1)).ok());
  const std::string path = entry_path(dir / "cache", 1);
  // The target is a sound entry even: it is the place that is wrong.
  const std::string target = dir / "target";
  std::filesystem::rename(path, target);
  const std::string contents = slurp(target);
  age_file(target, std::chrono::hours(5));
  const auto date = std::filesystem::last_write_time(target);

  SUBCASE("symbolic link") {
    std::filesystem::create_symlink(target, path);
  }
  SUBCASE("dangling symbolic link") {
    std::filesystem::create_symlink(dir / "nowhere", path);
  }
  SUBCASE("hard link") {
    std::filesystem::create_hard_link(target, path);
  }
  SUBCASE("FIFO") {
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  }
  SUBCASE("link to a device") {
    std::filesystem::create_symlink("/dev/zero", path);
  }
  SUBCASE("directory") {
    std::filesystem::create_directory(path);
  }
  SUBCASE("full directory") {
    std::filesystem::create_directory(path);
    spit(path + "/file", "");
  }
  check_miss_and_rebuild(dir / "cache", 1);
  CHECK(slurp(target) == contents);
  CHECK(std::filesystem::last_write_time(target) == date);
  CHECK(!std::filesystem::exists(dir / "nowhere"));
}

TEST_CASE("fault 19: links and FIFOs in place of locks, shards, quarantine and stamps lead nowhere") {
  TempDir dir;
  const std::string cache_dir = dir / "cache";
  REQUIRE(open_cache(cache_dir).store(key_of(1), kernel_of(1)).ok());
  const std::string lock = cache_dir + "/cubin/locks/" + key_of(1).hex().substr(0, 3);
  const std::string shard = cache_dir + "/cubin/" + shard_name(key_of(1));
  std::filesystem::create_directories(cache_dir + "/cubin/locks");
  const std::string outside = dir / "outside";
  std::filesystem::create_directory(outside);
  spit(dir / "victim", "untouched");
  FakeCompiler compiler;

  SUBCASE("lock is a symbolic link") {
    std::filesystem::remove(entry_path(cache_dir, 1));
    std::filesystem::create_symlink(dir / "victim", lock);
  }
  SUBCASE("lock is a link to nothing") {
    std::filesystem::remove(entry_path(cache_dir, 1));
    std::filesystem::create_symlink(outside + "/made", lock);
  }
  SUBCASE("lock is a FIFO") {
    std::filesystem::remove(entry_path(cache_dir, 1));
    REQUIRE(::mkfifo(lock.c_str(), 0600) == 0);
  }
  SUBCASE("shard is a link out of the folder") {
    std::filesystem::remove_all(shard);
    std::filesystem::create_directory_symlink(outside, shard);
  }
  SUBCASE("shard is a file") {
    std::filesystem::remove_all(shard);
    spit(shard, "");
  }
  SUBCASE("quarantine is a file, and there is something to set aside") {
    spit(cache_dir + "/cubin/quarantine", "");
    spit(entry_path(cache_dir, 1), "damaged");
  }
  const Result<Fetched> fetched =
      open_cache(cache_dir).fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA});
  REQUIRE(fetched.ok());
  CHECK(fetched->stored);
  CHECK(on_disk(cache_dir, 1));
  CHECK(slurp(dir / "victim") == "untouched");
  CHECK(std::filesystem::is_empty(outside));
  CHECK(open_cache(cache_dir).gc(0).ran);
  CHECK(open_cache(cache_dir).clear().ok());
  CHECK(slurp(dir / "victim") == "untouched");
}
