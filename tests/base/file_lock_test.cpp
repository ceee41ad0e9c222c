#include "base/file_lock.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "support/capture_log.hpp"
#include "support/faulty_file_system.hpp"
#include "support/processes.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kNoWait{0};
/// Far longer than any of these tests may take: waiting it out would be seen by the runner's time limit.
constexpr milliseconds kForever{3'600'000};

FileLock take(const std::string& path, milliseconds wait = kNoWait) {
  return FileLock::acquire(posix_file_system(), path, wait, Log());
}

}  // namespace

TEST_CASE("a lock excludes others until it is released or goes out of scope") {
  const TempDir dir;
  {
    FileLock first = take(dir / "lock");
    REQUIRE(first.held());
    CHECK(take(dir / "lock").state() == FileLock::State::timed_out);
    CHECK(take(dir / "other").held());
    FileLock moved = std::move(first);
    CHECK(moved.held());
    CHECK_FALSE(take(dir / "lock").held());
    moved.release();
    CHECK_FALSE(moved.held());
    CHECK(take(dir / "lock").held());
    moved = take(dir / "lock");
    CHECK(moved.held());
  }
  CHECK(take(dir / "lock").held());
  CHECK_FALSE(FileLock().held());
}

TEST_CASE("a waiting thread gets the lock when it is released, and stops waiting when cancelled") {
  const TempDir dir;
  FileLock first = take(dir / "lock");
  std::thread waiter([&] { CHECK(take(dir / "lock", kForever).held()); });
  first.release();
  waiter.join();

  first = take(dir / "lock");
  std::atomic<bool> cancel{false};
  std::thread cancelled([&] {
    CHECK(FileLock::acquire(posix_file_system(), dir / "lock", kForever, Log(), &cancel).state() ==
          FileLock::State::cancelled);
  });
  cancel = true;
  cancelled.join();
}

TEST_CASE("fault 05: at most one of 8 processes and 4 threads each is inside") {
  const TempDir dir;
  struct Inside {
    std::atomic<int> now, most, entered;
  };
  Shared<Inside> inside;
  const auto statuses = run_together(8, [&](int) {
    std::atomic<int> failed{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 5; ++i) {
          const FileLock lock = take(dir / "lock", kForever);
          if (!lock.held()) ++failed;
          const int now = ++inside->now;
          if (now > inside->most) inside->most = now;
          std::this_thread::yield();
          --inside->now;
          ++inside->entered;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return failed == 0 ? 0 : 1;
  });
  for (const ChildStatus& status : statuses) CHECK(status.exit_code() == 0);
  CHECK(inside->most == 1);
  CHECK(inside->entered == 8 * 4 * 5);
}

TEST_CASE("fault 06: when the holder is killed the next goes on; while it is stopped, after the time-out") {
  const TempDir dir;
  Shared<std::atomic<bool>> has_it;
  const pid_t holder = start_child([&] {
    const FileLock lock = take(dir / "lock");
    *has_it = lock.held();
    for (;;) ::pause();
    return 0;
  });
  while (!*has_it) std::this_thread::yield();

  ::kill(holder, SIGSTOP);
  CHECK(take(dir / "lock", milliseconds(30)).state() == FileLock::State::timed_out);
  ::kill(holder, SIGCONT);
  CHECK(take(dir / "lock").state() == FileLock::State::timed_out);

  std::thread killer([&] { ::kill(holder, SIGKILL); });
  CHECK(take(dir / "lock", kForever).held());
  killer.join();
  CHECK(wait_for(holder).signal() == SIGKILL);
}

TEST_CASE("a worker forked while the lock is held does not hold it for life") {
  const TempDir dir;
  FileLock lock = take(dir / "lock");
  REQUIRE(lock.held());
  const pid_t worker = start_child([] {
    for (;;) ::pause();
    return 0;
  });
  lock.release();
  CHECK(take(dir / "lock").held());
  ::kill(worker, SIGKILL);
  wait_for(worker);
}

TEST_CASE("fault 07: where locks are not supported, work goes on with one warning") {
  for (const int error : {ENOLCK, EOPNOTSUPP, ESTALE, ENOSYS, EIO}) {
    const TempDir dir;
    FaultyFileSystem fs;
    fs.fail_op(Op::flock, FaultyFileSystem::kAll, error);
    const CaptureLog log;
    for (int i = 0; i < 3; ++i) {
      const FileLock lock = FileLock::acquire(fs, dir / ("lock" + std::to_string(i)), kForever, log);
      CHECK(lock.state() == FileLock::State::unsupported);
      CHECK_FALSE(lock.held());
    }
    CHECK(log.count(LogLevel::warn) == 1);
    CHECK(log.lines().size() == 1);
    CHECK(log.contains(dir.path()));
  }
}

TEST_CASE("fault 10: an interrupted lock is asked for again") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.interrupt_every_other();
  CHECK(FileLock::acquire(fs, dir / "lock", kForever, Log()).held());
}

TEST_CASE("fault 12: no lock file can be made: work goes on with one warning") {
  const TempDir dir;
  for (const int error : {EROFS, EACCES, ENOSPC, EMFILE, ESTALE}) {
    FaultyFileSystem fs;
    fs.fail_op(Op::open, FaultyFileSystem::kAll, error);
    const CaptureLog log;
    CHECK(FileLock::acquire(fs, dir / "lock", kForever, log).state() == FileLock::State::refused);
    CHECK(FileLock::acquire(fs, dir / "lock", kForever, log).state() == FileLock::State::refused);
    CHECK(log.count(LogLevel::warn) == 1);
  }
  CHECK(take(dir / "no/folder").state() == FileLock::State::refused);
}

TEST_CASE(
    "fault 19: symlink, FIFO, device, folder, hard link where a lock should be: refused, not waited for, "
    "untouched") {
  const TempDir dir;
  spit(dir / "target", "untouched");
  REQUIRE(::symlink((dir / "target").c_str(), (dir / "symlink").c_str()) == 0);
  REQUIRE(::symlink((dir / "none").c_str(), (dir / "dangling").c_str()) == 0);
  REQUIRE(::mkfifo((dir / "fifo").c_str(), 0600) == 0);
  REQUIRE(::mkdir((dir / "folder").c_str(), 0700) == 0);
  REQUIRE(::link((dir / "target").c_str(), (dir / "hard").c_str()) == 0);
  for (const std::string& path : {dir / "symlink", dir / "dangling", dir / "fifo", dir / "folder",
                                  dir / "hard", std::string("/dev/null")}) {
    CAPTURE(path);
    CHECK(take(path, kForever).state() == FileLock::State::refused);
  }
  CHECK(slurp(dir / "target") == "untouched");
  CHECK_FALSE(std::filesystem::exists(dir / "none"));
}
