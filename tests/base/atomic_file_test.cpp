#include "base/atomic_file.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

constexpr std::uint64_t kCap = 1 << 20;

std::string text_of(const Result<Bytes>& bytes) {
  return bytes.ok() ? std::string(as_text(*bytes)) : "<error>";
}

}  // namespace

TEST_CASE("what was written is read back, and replaces what was there") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  for (const std::string& text :
       {std::string("one"), std::string("two, longer"), std::string(), std::string(100000, 'z')}) {
    REQUIRE(write_atomically(fs, dir / "f", as_bytes(text)).ok());
    FileInfo info;
    const Result<Bytes> back = read_regular_file(fs, dir / "f", kCap, HardLinks::refuse, &info);
    REQUIRE(back.ok());
    CHECK(as_text(*back) == text);
    CHECK(info.size == text.size());
    CHECK(info.mode == 0600);
  }
  CHECK(names_in(dir.path()) == std::vector<std::string>{"f"});
}

TEST_CASE("a file above the cap is refused, one at the cap is read") {
  const TempDir dir;
  spit(dir / "f", "12345678");
  FileSystem& fs = posix_file_system();
  CHECK(text_of(read_regular_file(fs, dir / "f", 8)) == "12345678");
  const Result<Bytes> refused = read_regular_file(fs, dir / "f", 7);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().message().find("has 8 bytes, at most 7") != std::string::npos);
  // A sparse file of 1 TiB costs nothing to make, and must cost nothing to refuse.
  REQUIRE(::truncate((dir / "f").c_str(), off_t{1} << 40) == 0);
  CHECK_FALSE(read_regular_file(fs, dir / "f", kCap).ok());
}

TEST_CASE("absence is no error for read_regular_file_if_exists, and one for read_regular_file") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  spit(dir / "file", "");
  for (const std::string& path : {dir / "none", dir / "no/folder", dir / "file/below"}) {
    const auto bytes = read_regular_file_if_exists(fs, path, kCap);
    REQUIRE(bytes.ok());
    CHECK_FALSE(bytes->has_value());
    const Result<Bytes> required = read_regular_file(fs, path, kCap);
    REQUIRE_FALSE(required.ok());
    CHECK(required.error().message().find("ENOENT") != std::string::npos);
  }
}

TEST_CASE(
    "fault 12: a folder removed while running is made again on request; one replaced by a file is an error") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  const std::string path = dir / "a/b/f";
  CHECK_FALSE(write_atomically(fs, path, as_bytes("x")).ok());
  REQUIRE(write_atomically(fs, path, as_bytes("x"), {.create_folder = true}).ok());
  std::filesystem::remove_all(dir / "a");
  REQUIRE(write_atomically(fs, path, as_bytes("y"), {.create_folder = true}).ok());
  CHECK(slurp(path) == "y");
  struct ::stat status;
  REQUIRE(::stat((dir / "a/b").c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0700);

  std::filesystem::remove_all(dir / "a");
  spit(dir / "a", "a file");
  CHECK_FALSE(write_atomically(fs, path, as_bytes("z"), {.create_folder = true}).ok());
  CHECK(slurp(dir / "a") == "a file");
  CHECK(names_in(dir.path()) == std::vector<std::string>{"a"});
}

TEST_CASE("fault 12: a read-only folder is a failed store that leaves the old file") {
  const TempDir dir;
  spit(dir / "f", "old");
  for (int error : {EROFS, EACCES}) {
    FaultyFileSystem fs;
    fs.fail_op(Op::open, 1, error);
    const Status status = write_atomically(fs, dir / "f", as_bytes("new"), {.create_folder = true});
    REQUIRE_FALSE(status.ok());
    CHECK(slurp(dir / "f") == "old");
    CHECK(names_in(dir.path()).size() == 1);
  }
}

TEST_CASE(
    "fault 19: symlink, FIFO, device, folder, hard link where a file should be: not read, and not blocked "
    "by") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  spit(dir / "target", "secret");
  REQUIRE(::symlink((dir / "target").c_str(), (dir / "symlink").c_str()) == 0);
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  REQUIRE(::mkdir((dir / "folder").c_str(), 0700) == 0);
  REQUIRE(::symlink("loop", (dir / "loop").c_str()) == 0);
  for (const std::string& path :
       {dir / "symlink", dir / "fifo", dir / "folder", dir / "loop", std::string("/dev/zero")}) {
    CAPTURE(path);
    const auto bytes = read_regular_file_if_exists(fs, path, kCap);
    REQUIRE_FALSE(bytes.ok());
    CHECK(bytes.error().message().find("refused to read") != std::string::npos);
  }
  REQUIRE(::link((dir / "target").c_str(), (dir / "hard").c_str()) == 0);
  CHECK_FALSE(read_regular_file(fs, dir / "hard", kCap).ok());
  CHECK(text_of(read_regular_file(fs, dir / "hard", kCap, HardLinks::accept)) == "secret");
}

TEST_CASE("fault 19: nothing but a regular file is opened, and one swapped in afterwards is caught") {
  const TempDir dir;
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  FaultyFileSystem watched;
  CHECK_FALSE(read_regular_file(watched, dir / "fifo", kCap).ok());
  CHECK(watched.calls(Op::open) == 0);

  for (const bool symlink : {true, false}) {
    spit(dir / "target", "secret");
    spit(dir / "f", "ours");
    FaultyFileSystem raced;
    raced.before_call([&](Op op, std::uint64_t) {
      if (op != Op::open) return;
      std::filesystem::remove(dir / "f");
      if (symlink) {
        std::filesystem::create_symlink(dir / "target", dir / "f");
      } else {
        ::mkfifo((dir / "f").c_str(), 0600);
      }
    });
    CHECK_FALSE(read_regular_file(raced, dir / "f", kCap).ok());
    std::filesystem::remove(dir / "f");
  }
}

TEST_CASE("fault 19: a write replaces the name and leaves what it led to untouched") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  spit(dir / "target", "untouched");
  REQUIRE(::symlink((dir / "target").c_str(), (dir / "symlink").c_str()) == 0);
  REQUIRE(::link((dir / "target").c_str(), (dir / "hard").c_str()) == 0);
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  for (const char* name : {"symlink", "hard", "fifo"}) {
    CAPTURE(name);
    CHECK(write_atomically(fs, dir / name, as_bytes("new")).ok());
    CHECK(text_of(read_regular_file(fs, dir / name, kCap)) == "new");
    CHECK(slurp(dir / "target") == "untouched");
  }
  REQUIRE(::mkdir((dir / "folder").c_str(), 0700) == 0);
  CHECK_FALSE(write_atomically(fs, dir / "folder", as_bytes("new")).ok());
  CHECK(std::filesystem::is_directory(dir / "folder"));
  CHECK(names_in(dir.path()).size() == 5);
}

TEST_CASE("fault 19: whatever stands at the temp's name is not opened, another name is taken") {
  const TempDir dir;
  spit(dir / "target", "untouched");
  FaultyFileSystem fs;
  fs.fail_op(Op::open, 1, EEXIST);  // what O_EXCL says of a symlink, a FIFO or a file alike
  CHECK(write_atomically(fs, dir / "f", as_bytes("new")).ok());
  CHECK(slurp(dir / "f") == "new");
  FaultyFileSystem always;
  always.fail_op(Op::open, FaultyFileSystem::kAll, EEXIST);
  CHECK_FALSE(write_atomically(always, dir / "f", as_bytes("newer")).ok());
  CHECK(slurp(dir / "f") == "new");
}

TEST_CASE("a file that shrinks while it is read is refused") {
  const TempDir dir;
  spit(dir / "f", "12345678");
  FaultyFileSystem fs;
  fs.before_call([&](Op op, std::uint64_t) {
    if (op == Op::read) std::filesystem::resize_file(dir / "f", 3);
  });
  CHECK_FALSE(read_regular_file(fs, dir / "f", kCap).ok());
}

TEST_CASE("sweeping removes old temps and nothing else") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  const std::string old_temp = ".varmoe-123-0123456789abcdef.tmp",
                    young_temp = ".varmoe-9-fedcba9876543210.tmp",
                    future_temp = ".varmoe-9-0000000000000000.tmp";
  const std::vector<std::string> others = {".varmoe-.tmp",
                                           ".varmoe-1-x.tmp",
                                           ".varmoe-a-0123456789abcdef.tmp",
                                           "entry",
                                           ".varmoe-1-0123456789abcdef.tmp2",
                                           ".varmoe--0123456789abcdef.tmp"};
  const std::int64_t hour = 3'600'000'000'000;
  const std::int64_t now = fs.now_ns();
  for (const std::string& name : others) {
    CHECK_FALSE(is_temp_name(name));
    spit(dir / name, "x");
    REQUIRE(fs.set_mtime(dir / name, now - 100 * hour) == 0);
  }
  for (const auto& [name, mtime] :
       {std::pair{old_temp, now - 2 * hour}, {young_temp, now - hour / 2}, {future_temp, now + 100 * hour}}) {
    CHECK(is_temp_name(name));
    spit(dir / name, "x");
    REQUIRE(fs.set_mtime(dir / name, mtime) == 0);
  }
  REQUIRE(::symlink((dir / "entry").c_str(), (dir / ".varmoe-5-0123456789abcdef.tmp").c_str()) == 0);
  REQUIRE(fs.set_mtime(dir / ".varmoe-5-0123456789abcdef.tmp", now - 2 * hour) == 0);

  CHECK(sweep_temps(fs, dir.path()) == 2);
  std::vector<std::string> left = others;
  left.push_back(young_temp);
  left.push_back(future_temp);
  std::sort(left.begin(), left.end());
  CHECK(names_in(dir.path()) == left);
  CHECK(sweep_temps(fs, dir / "none") == 0);
}
