#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cubin/fixture.hpp"
#include "support/faulty_file_system.hpp"

using namespace varmoe;
using namespace varmoe::cubin;
using namespace varmoe::test;

namespace {

/// Open files that are no cache folder belong to `owner`, whoever made them.
class OwnedFiles final : public ForwardingFileSystem {
 public:
  OwnedFiles(FileSystem& next, std::uint32_t owner) : ForwardingFileSystem(next), owner_(owner) {}
  int stat_fd(int fd, FileInfo* info) noexcept override {
    const int result = next_.stat_fd(fd, info);
    if (result == 0) info->user = owner_;
    return result;
  }

 private:
  std::uint32_t owner_;
};

/// An entry whose image was altered and whose checksum was put right.
void tamper(const std::string& path) {
  std::vector<std::byte> bytes = to_bytes(slurp(path));
  bytes[bytes.size() - 20] ^= std::byte{0xFF};
  reseal(bytes);
  spit(path, to_text(bytes));
}

}  // namespace

TEST_CASE(
    "fault 18: a tampered entry with a right checksum is refused by its owner, unless that is us or root") {
  TempDir dir;
  REQUIRE(open_cache(dir.path()).store(key_of(1), kernel_of(1)).ok());
  tamper(entry_path(dir.path(), 1));
  const std::uint32_t us = posix_file_system().user();

  SUBCASE("somebody else's") {
    OwnedFiles fs(unsynced(), us + 1);
    CaptureLog log(LogLevel::info);
    const CubinCache cache = open_cache(dir.path(), log, &fs);
    CHECK(!cache.lookup(key_of(1), kArch, kBuildA));
    CHECK(log.contains("belongs to user " + std::to_string(us + 1)));
    CHECK(cache.stats().folders.at(0).set_aside == 1);
  }
  SUBCASE("somebody else's in a layer") {
    OwnedFiles fs(unsynced(), us + 1);
    CacheOptions options = cache_options("", &fs);
    options.read_only_layers = {dir.path()};
    CaptureLog log(LogLevel::warn);
    CHECK(!CubinCache::open(options, log).lookup(key_of(1), kArch, kBuildA));
    CHECK(log.count(LogLevel::warn) == 1);
  }
  SUBCASE("ours, but writable by the group") {
    REQUIRE(::chmod(entry_path(dir.path(), 1).c_str(), 0660) == 0);
    CHECK(!open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
  }
  SUBCASE("ours: who writes as us is trusted, and a checksum proves nothing about intent") {
    const std::optional<Fetched> hit = open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA);
    REQUIRE(hit);
    CHECK(!same_kernel(*hit->binary, kernel_of(1)));
  }
  SUBCASE("really somebody else's") {
    if (::geteuid() != 0) {
      MESSAGE("not run: only root may give files away");
      return;
    }
    REQUIRE(::chown(entry_path(dir.path(), 1).c_str(), 12345, 12345) == 0);
    CHECK(!open_cache(dir.path()).lookup(key_of(1), kArch, kBuildA));
  }
}

TEST_CASE("fault 20: a folder of somebody else's, or one that others may write, is refused with the remedy") {
  TempDir dir;
  const std::string place = dir / "cache";
  REQUIRE(open_cache(place).store(key_of(1), kernel_of(1)).ok());
  FaultyFileSystem fs(unsynced());
  std::string remedy = "chown";
  SUBCASE("the folder is somebody else's") {
    fs.set_owner(place, posix_file_system().user() + 1);
  }
  SUBCASE("cubin/ is somebody else's") {
    fs.set_owner(place + "/cubin", posix_file_system().user() + 1);
  }
  SUBCASE("the folder is writable by the group") {
    REQUIRE(::chmod(place.c_str(), 0770) == 0);
    remedy = "chmod go-w";
  }
  SUBCASE("cubin/ is writable by all") {
    REQUIRE(::chmod((place + "/cubin").c_str(), 0777) == 0);
    remedy = "chmod go-w";
  }
  const auto before = std::filesystem::last_write_time(place + "/cubin");
  CaptureLog log(LogLevel::warn);
  const CubinCache cache = open_cache(place, log, &fs);
  FakeCompiler compiler;
  CHECK(cache.fetch_or_build(key_of(1), kArch, compiler.build(1), {kBuildA})->origin == Origin::compiled);
  CHECK(cache.fetch_or_build(key_of(1), kArch, no_build, {kBuildA})->origin == Origin::memory);
  CHECK(!cache.writable());
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(log.contains(remedy));
  CHECK(cache.stats().folders.at(0).note.find(remedy) != std::string::npos);
  CHECK(std::filesystem::last_write_time(place + "/cubin") == before);

  CaptureLog layer_log(LogLevel::warn);
  CacheOptions options = cache_options("", &fs);
  options.read_only_layers = {place};
  CHECK(!CubinCache::open(options, layer_log).lookup(key_of(2), kArch, kBuildA));
  CHECK(layer_log.contains(remedy));
}

TEST_CASE("fault 20: a layer that root made is taken by any user") {
  TempDir dir;
  const std::string place = dir / "layer";
  REQUIRE(open_cache(place).store(key_of(1), kernel_of(1)).ok());
  FaultyFileSystem fs(unsynced());
  fs.set_user(4242);
  fs.set_owner(place, 0);
  fs.set_owner(place + "/cubin", 0);
  OwnedFiles owned(fs, 0);
  CacheOptions options = cache_options("", &owned);
  options.read_only_layers = {place};
  CaptureLog log(LogLevel::warn);
  CHECK(CubinCache::open(options, log).lookup(key_of(1), kArch, kBuildB));
  CHECK(log.lines().empty());
}
