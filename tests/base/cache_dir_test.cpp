#include "base/cache_dir.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "support/capture_log.hpp"
#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;
using Mode = CacheDir::Mode;

namespace {

CacheDir resolve(const CacheDirSources& sources, const Log& log = Log(), CacheMode mode = CacheMode::rw) {
  return resolve_cache_dir(posix_file_system(), sources, mode, log);
}

CacheDirSources variable(const std::string& path) {
  return {.variable = path};
}

mode_t mode_of(const std::string& path) {
  struct ::stat status;
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

}  // namespace

TEST_CASE("the first source that names a folder decides") {
  const TempDir dir;
  CacheDirSources sources{
      .api = dir / "api", .variable = dir / "variable", .xdg_cache_home = dir / "xdg", .home = dir.path()};
  const auto expect = [&](const std::string& path, const std::string& source) {
    const CacheDir found = resolve(sources);
    CHECK(found.mode == Mode::read_write);
    CHECK(found.path == path);
    CHECK(found.source == source);
    CHECK(found.problem == "");
    CHECK(mode_of(path) == 0700);
  };
  expect(dir / "api", "cache_dir");
  sources.api.clear();
  expect(dir / "variable", "VARMOE_CACHE_DIR");
  sources.variable.clear();
  expect(dir / "xdg/varmoe", "XDG_CACHE_HOME");
  CHECK(mode_of(dir / "xdg") == 0700);
  sources.xdg_cache_home = "";
  expect(dir / ".cache/varmoe", "HOME");
}

TEST_CASE("off touches nothing and says nothing; ro makes no folder") {
  const TempDir dir;
  const CaptureLog log(LogLevel::warn);
  CHECK(resolve(variable(dir / "c"), log, CacheMode::off).mode == Mode::memory_only);
  CHECK(resolve(variable(dir / "c"), log, CacheMode::ro).mode == Mode::memory_only);
  CHECK(names_in(dir.path()).empty());
  REQUIRE(::mkdir((dir / "c").c_str(), 0700) == 0);
  const CacheDir found = resolve(variable(dir / "c"), log, CacheMode::ro);
  CHECK(found.mode == Mode::read_only);
  CHECK(found.path == dir / "c");
  CHECK(log.lines().empty());
}

TEST_CASE(
    "fault 13: HOME unset, absent, relative or empty and XDG relative: memory only, one warning, nothing "
    "made") {
  const TempDir dir;
  spit(dir / "file", "");
  const std::vector<CacheDirSources> all = {
      {},
      {.home = ""},
      {.home = "relative"},
      {.home = "."},
      {.home = dir / "nonexistent"},
      {.home = dir / "file"},
      {.xdg_cache_home = "relative"},
      {.xdg_cache_home = "./x", .home = "relative"},
      {.xdg_cache_home = "", .home = dir / "nonexistent"},
      {.variable = "relative/cache", .home = dir.path()},
      {.api = "cache", .variable = dir / "c"},
  };
  const ChildStatus status = run_child([&] {
    if (::chdir(dir.path().c_str()) != 0) return 1;
    for (const CacheDirSources& sources : all) {
      const CaptureLog log;
      const CacheDir found = resolve(sources, log);
      resolve(sources, log);
      if (found.mode != Mode::memory_only || !found.path.empty() || found.problem.empty()) return 2;
      if (log.lines().size() != 1 || log.count(LogLevel::warn) != 1) return 3;
    }
    return 0;
  });
  CHECK(status.exit_code() == 0);
  CHECK(names_in(dir.path()) == std::vector<std::string>{"file"});
  // A relative XDG_CACHE_HOME is as good as none: HOME is next.
  CHECK(resolve({.xdg_cache_home = "relative", .home = dir.path()}).path == dir / ".cache/varmoe");
}

TEST_CASE("fault 13: a user without a passwd entry gets what HOME says, and nothing else") {
  const TempDir dir;
  if (::geteuid() != 0) {
    MESSAGE("not root: another user cannot be tried");
    return;
  }
  REQUIRE(::mkdir((dir / "home").c_str(), 0700) == 0);
  REQUIRE(::chown((dir / "home").c_str(), 54321, 54321) == 0);
  REQUIRE(::chmod(dir.path().c_str(), 0755) == 0);
  const ChildStatus status = run_child([&] {
    if (::setgid(54321) != 0 || ::setuid(54321) != 0 || ::chdir(dir.path().c_str()) != 0) return 1;
    const CaptureLog log;
    if (resolve({.home = dir / "home"}, log).mode != Mode::read_write) return 2;
    if (!log.lines().empty()) return 3;
    if (resolve({}, log).mode != Mode::memory_only) return 4;
    if (resolve({.home = "/"}, log).mode != Mode::memory_only) return 5;  // not ours to write to
    return log.count(LogLevel::warn) == 2 ? 0 : 6;
  });
  CHECK(status.exit_code() == 0);
  CHECK(names_in(dir.path()) == std::vector<std::string>{"home"});
}

TEST_CASE("fault 14: 32 processes make the cache root at once, and none fails") {
  const TempDir dir;
  for (int round = 0; round < 5; ++round) {
    const CacheDirSources sources = variable(dir / ("r" + std::to_string(round) + "/a/b/c/d"));
    const auto statuses = run_together(32, [&](int) {
      const CaptureLog log;
      const CacheDir found = resolve(sources, log);
      return found.mode == Mode::read_write && log.lines().empty() ? 0 : 1;
    });
    for (const ChildStatus& status : statuses) CHECK(status.exit_code() == 0);
  }
}

TEST_CASE("fault 14: a rival makes each folder between our look and our mkdir") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.before_call([&](Op op, std::uint64_t) {
    if (op == Op::mkdir) std::filesystem::create_directories(dir / "a/b/c");
  });
  REQUIRE(make_directories(fs, dir / "a/b/c").ok());
  CHECK(fs.calls(Op::mkdir) >= 3);
}

TEST_CASE(
    "fault 20: a cache folder of another user, or writable by group or others, is refused with the remedy") {
  const TempDir dir;
  const std::string path = dir / "c";
  REQUIRE(::mkdir(path.c_str(), 0700) == 0);
  for (const mode_t mode : {0770, 0720, 0702, 0777, 01777}) {
    REQUIRE(::chmod(path.c_str(), mode) == 0);
    const CaptureLog log;
    const CacheDir found = resolve(variable(path), log);
    CHECK(found.mode == Mode::memory_only);
    CHECK(found.problem.find("chmod go-w '" + path + "'") != std::string::npos);
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(log.contains("chmod go-w"));
    CHECK_FALSE(check_trusted_directory(posix_file_system(), path).ok());
  }
  REQUIRE(::chmod(path.c_str(), 0755) == 0);  // readable by all is no harm
  CHECK(resolve(variable(path)).mode == Mode::read_write);

  FaultyFileSystem fs;
  fs.set_user(1000);
  fs.set_owner(path, 1001);
  const CaptureLog log;
  const CacheDir found = resolve_cache_dir(fs, variable(path), CacheMode::rw, log);
  CHECK(found.mode == Mode::memory_only);
  CHECK(found.problem.find("belongs to user 1001") != std::string::npos);
  CHECK(found.problem.find("chown 1000") != std::string::npos);
  CHECK(log.count(LogLevel::warn) == 1);
}

TEST_CASE("fault 20: root is not trusting either") {
  const TempDir dir;
  REQUIRE(::mkdir((dir / "c").c_str(), 0700) == 0);
  FaultyFileSystem fs;
  fs.set_user(0);
  fs.set_owner(dir / "c", 1001);
  CHECK_FALSE(check_trusted_directory(fs, dir / "c").ok());
}

TEST_CASE("fault 20: a folder of root is trusted for reading, and files are held to the same rule") {
  const TempDir dir;
  const std::string path = dir / "layer";
  REQUIRE(::mkdir(path.c_str(), 0755) == 0);
  FaultyFileSystem fs;
  fs.set_user(1000);
  fs.set_owner(path, 0);
  CHECK(check_trusted_directory(fs, path).ok());
  const CaptureLog log;
  const CacheDir found = resolve_cache_dir(fs, variable(path), CacheMode::rw, log);
  CHECK(found.mode == Mode::read_only);
  CHECK(found.path == path);
  CHECK(log.count(LogLevel::warn) == 1);
  CHECK(resolve_cache_dir(fs, variable(path), CacheMode::ro, log).mode == Mode::read_only);
  CHECK(log.lines().size() == 1);

  FileInfo info;
  info.type = FileType::regular;
  info.mode = 0644;
  info.user = 0;
  CHECK(check_trusted_file(fs, "/f", info).ok());
  info.user = 1000;
  CHECK(check_trusted_file(fs, "/f", info).ok());
  info.user = 1001;
  CHECK_FALSE(check_trusted_file(fs, "/f", info).ok());
  info.user = 0;
  info.mode = 0664;
  CHECK_FALSE(check_trusted_file(fs, "/f", info).ok());
}

TEST_CASE("fault 12: a cache folder that is a file, cannot be made, read or written") {
  const TempDir dir;
  spit(dir / "file", "");
  CHECK(resolve(variable(dir / "file")).mode == Mode::memory_only);
  CHECK(resolve(variable(dir / "file/below")).mode == Mode::memory_only);
  CHECK(slurp(dir / "file") == "");

  FaultyFileSystem read_only_disk;
  read_only_disk.fail_op(Op::mkdir, FaultyFileSystem::kAll, EROFS);
  CHECK(resolve_cache_dir(read_only_disk, variable(dir / "new"), CacheMode::rw, Log()).mode ==
        Mode::memory_only);

  REQUIRE(::mkdir((dir / "c").c_str(), 0700) == 0);
  FaultyFileSystem mounted_ro;
  mounted_ro.fail_op(Op::access, 2, EROFS);
  const CaptureLog log;
  const CacheDir found = resolve_cache_dir(mounted_ro, variable(dir / "c"), CacheMode::rw, log);
  CHECK(found.mode == Mode::read_only);
  CHECK(found.problem.find("EROFS") != std::string::npos);
  CHECK(log.count(LogLevel::warn) == 1);

  FaultyFileSystem unreadable;
  unreadable.fail_op(Op::access, 1, EACCES);
  CHECK(resolve_cache_dir(unreadable, variable(dir / "c"), CacheMode::rw, Log()).mode == Mode::memory_only);
}

TEST_CASE("fault 11: whatever call fails, there is an answer, and one warning unless all is well") {
  for (const int error : {EIO, EACCES, ENOSPC, ESTALE, ENOENT}) {
    bool completed = false;
    for (std::uint64_t call = 1; !completed; ++call) {
      REQUIRE(call < 100);
      const TempDir dir;
      FaultyFileSystem fs;
      fs.fail_call(call, error);
      const CaptureLog log;
      const CacheDir found = resolve_cache_dir(fs, {.home = dir.path()}, CacheMode::rw, log);
      completed = !fs.fired();
      CAPTURE(call);
      CHECK(log.lines().size() == (found.mode == Mode::read_write ? 0 : 1));
      if (completed) CHECK(found.mode == Mode::read_write);
    }
  }
}

TEST_CASE("a cache folder behind a symlink is judged by what it leads to") {
  const TempDir dir;
  REQUIRE(::mkdir((dir / "real").c_str(), 0700) == 0);
  REQUIRE(::symlink((dir / "real").c_str(), (dir / "link").c_str()) == 0);
  CHECK(resolve(variable(dir / "link")).mode == Mode::read_write);
  REQUIRE(::chmod((dir / "real").c_str(), 0777) == 0);
  CHECK(resolve(variable(dir / "link")).mode == Mode::memory_only);
}
