#include "base/file_system.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

#include <cerrno>

#include "base/atomic_file.hpp"
#include "support/faulty_file_system.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;

TEST_CASE("parent and joined paths") {
  CHECK(parent_path("/a/b/c") == "/a/b");
  CHECK(parent_path("/a/b//c//") == "/a/b");
  CHECK(parent_path("/a") == "/");
  CHECK(parent_path("/") == "/");
  CHECK(parent_path("a") == ".");
  CHECK(parent_path("") == ".");
  CHECK(join_path("/a", "b") == "/a/b");
  CHECK(join_path("/a/", "b") == "/a/b");
  CHECK(join_path("", "b") == "b");
}

TEST_CASE("an io_error names action, path, sentence and errno") {
  const Error error = io_error("read", "/x\ny", ENOENT);
  CHECK(error.code() == ErrorCode::io_error);
  CHECK(error.message() == "cannot read '/x\\x0ay': No such file or directory (ENOENT)");
  CHECK(io_error("read", "/x", 4321).message().find("(errno 4321)") != std::string::npos);
}

TEST_CASE("fault 10: writes and reads go on after EINTR and after short ones") {
  const TempDir dir;
  std::string text(10000, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 26);
  FaultyFileSystem fs;
  fs.interrupt_every_other();
  fs.short_writes(7);
  fs.short_reads(11);
  const int fd = open_retrying(fs, dir / "f", O_RDWR | O_CREAT, 0600);
  REQUIRE(fd >= 0);
  {
    FileHandle file(fs, fd);
    CHECK(write_all(fs, fd, as_bytes(text)) == 0);
    CHECK(fsync_retrying(fs, fd) == 0);
  }
  CHECK(slurp(dir / "f") == text);
  FileHandle file(fs, open_retrying(fs, dir / "f", O_RDONLY));
  std::string back(text.size() + 5, '\0');
  CHECK(read_up_to(fs, file.fd(), back.data(), back.size()) == static_cast<ssize_t>(text.size()));
  CHECK(back.substr(0, text.size()) == text);
}

TEST_CASE("fault 10: endless EINTR ends in an error, and a write that takes nothing does too") {
  const TempDir dir;
  FaultyFileSystem interrupted;
  interrupted.fail_op(Op::open, FaultyFileSystem::kAll, EINTR);
  CHECK(open_retrying(interrupted, dir / "f", O_RDWR | O_CREAT, 0600) == -EINTR);
  FaultyFileSystem idle;
  idle.short_writes(0);
  FileHandle file(idle, open_retrying(idle, dir / "f", O_RDWR | O_CREAT, 0600));
  CHECK(write_all(idle, file.fd(), as_bytes("x")) == -EIO);
}

TEST_CASE("an interrupted close is done, and a failed one is told") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.fail_op(Op::close, 1, EINTR);
  FileHandle file(fs, open_retrying(fs, dir / "f", O_RDWR | O_CREAT, 0600));
  CHECK(file.close() == 0);
  CHECK_FALSE(file.valid());
  CHECK(fs.calls(Op::close) == 1);
  FaultyFileSystem broken;
  broken.fail_op(Op::close, 1, EIO);
  FileHandle other(broken, open_retrying(broken, dir / "f", O_RDWR));
  CHECK(other.close() == -EIO);
  CHECK(other.close() == 0);
}

TEST_CASE("make_directories makes what is missing, and names what stands in the way") {
  const TempDir dir;
  FileSystem& fs = posix_file_system();
  CHECK(make_directories(fs, dir / "a/b//c/").ok());
  CHECK(make_directories(fs, dir / "a/b/c").ok());
  FileInfo info;
  REQUIRE(fs.stat(dir / "a/b", &info) == 0);
  CHECK(info.type == FileType::directory);
  CHECK(info.mode == 0700);
  spit(dir / "a/file", "");
  const Status in_file = make_directories(fs, dir / "a/file/d");
  REQUIRE_FALSE(in_file.ok());
  CHECK(in_file.error().message().find("a/file") != std::string::npos);
  CHECK(in_file.error().message().find("ENOTDIR") != std::string::npos);
  CHECK_FALSE(make_directories(fs, dir / "a/file").ok());
  CHECK_FALSE(make_directories(fs, "").ok());

  FaultyFileSystem no_inodes;
  no_inodes.fail_op(Op::mkdir, FaultyFileSystem::kAll, ENOSPC);
  const Status full = make_directories(no_inodes, dir / "x/y/z");
  REQUIRE_FALSE(full.ok());
  CHECK(full.error().message().find("ENOSPC") != std::string::npos);
}

TEST_CASE("the fault mechanism itself: each call can be made to fail, and calls are counted") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.fail_call(2, EIO);
  FileInfo info;
  CHECK(fs.stat(dir.path(), &info) == 0);
  CHECK_FALSE(fs.fired());
  CHECK(fs.stat(dir.path(), &info) == -EIO);
  CHECK(fs.fired());
  CHECK(fs.stat(dir.path(), &info) == 0);
  CHECK(fs.calls(Op::stat) == 3);
  fs.set_owner(dir.path(), 4242);
  CHECK(fs.stat(dir.path(), &info) == 0);
  CHECK(info.user == 4242);
}
