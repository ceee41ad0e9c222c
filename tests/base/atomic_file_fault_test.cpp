#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <random>
#include <thread>

#include "base/atomic_file.hpp"
#include "base/digest.hpp"
#include "support/faulty_file_system.hpp"
#include "support/kill_points.hpp"
#include "support/power_cut_file_system.hpp"
#include "support/processes.hpp"
#include "support/temp_dir.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

constexpr std::uint64_t kCap = 1 << 24;
const std::string kOld = "old " + std::string(5000, 'o');
const std::string kNew = "new " + std::string(9000, 'n');

/// Names in `folder` that write_atomically left behind.
std::size_t temps_in(const std::string& folder) {
  const std::vector<std::string> names = names_in(folder);
  return static_cast<std::size_t>(std::count_if(names.begin(), names.end(), is_temp_name));
}

/// A text that says whether it is whole: sequence number, filling, checksum.
std::string sealed(std::uint64_t number, std::size_t filling) {
  std::string text =
      std::to_string(number) + "\n" + std::string(filling, static_cast<char>('a' + number % 26)) + "\n";
  return text + std::to_string(checksum64(as_bytes(text)));
}

/// The number of a sealed text; nullopt when it is not whole.
std::optional<std::uint64_t> unsealed(const std::string& text) {
  const std::size_t end = text.rfind('\n');
  if (end == std::string::npos) return std::nullopt;
  if (std::to_string(checksum64(as_bytes(text.substr(0, end + 1)))) != text.substr(end + 1))
    return std::nullopt;
  return std::strtoull(text.c_str(), nullptr, 10);
}

}  // namespace

TEST_CASE(
    "fault 01: SIGKILL at every step of a save leaves the old file or the new one, and a temp that is "
    "swept") {
  bool published = false;
  for (const char* point : kAtomicFileKillPoints) {
    CAPTURE(point);
    published = published || std::string(point) == "atomic_file:after_rename";
    const TempDir dir;
    spit(dir / "f", kOld);
    const ChildStatus status = run_child([&] {
      kill_at(point);
      static_cast<void>(write_atomically(posix_file_system(), dir / "f", as_bytes(kNew)));
      return 0;
    });
    CHECK(status.signal() == SIGKILL);  // that is, the point was reached
    CHECK(slurp(dir / "f") == (published ? kNew : kOld));
    CHECK(names_in(dir.path()).size() == 1 + temps_in(dir.path()));
    CHECK(temps_in(dir.path()) <= 1);
    CHECK(sweep_temps(posix_file_system(), dir.path()) == 0);  // too young: it might be a living process's
    sweep_temps(posix_file_system(), dir.path(), std::chrono::seconds(-1));
    CHECK(names_in(dir.path()) == std::vector<std::string>{"f"});
    REQUIRE(write_atomically(posix_file_system(), dir / "f", as_bytes(kNew)).ok());
  }
  CHECK(published);
}

TEST_CASE("fault 01: SIGKILL before each call to the operating system") {
  bool completed = false;
  for (std::uint64_t call = 1; !completed; ++call) {
    REQUIRE(call < 100);
    const TempDir dir;
    spit(dir / "f", kOld);
    const ChildStatus status = run_child([&] {
      FaultyFileSystem fs;
      fs.short_writes(1000);
      fs.before_call([&](Op, std::uint64_t n) {
        if (n == call) ::kill(::getpid(), SIGKILL);
      });
      return write_atomically(fs, dir / "f", as_bytes(kNew)).ok() ? 0 : 1;
    });
    completed = status.exit_code() == 0;
    if (!completed) CHECK(status.signal() == SIGKILL);
    const std::string contents = slurp(dir / "f");
    CHECK((contents == kNew || (!completed && contents == kOld)));
  }
}

TEST_CASE("fault 02: SIGKILL at random times, 200 rounds of 4 writers") {
  constexpr int kWriters = 4, kRounds = 200;
  const TempDir dir;
  struct Acknowledged {
    std::array<std::atomic<std::uint64_t>, kWriters> last;
  };
  Shared<Acknowledged> acknowledged;
  std::minstd_rand random(20240607);
  std::uint64_t written = 0;
  for (int round = 0; round < kRounds; ++round) {
    ChildGroup writers(kWriters, [&](int w) {
      FileSystem& fs = posix_file_system();
      auto& last = acknowledged->last[static_cast<std::size_t>(w)];
      for (std::uint64_t number = last + 1;; ++number) {
        const std::string text = sealed(number, 100 + 3000 * (number % 5));
        if (!write_atomically(fs, dir / ("own" + std::to_string(w)), as_bytes(text)).ok()) return 1;
        last = number;
        if (!write_atomically(fs, dir / "shared", as_bytes(text)).ok()) return 1;
      }
      return 0;
    });
    writers.release();
    std::this_thread::sleep_for(std::chrono::microseconds(200 + random() % 6000));
    writers.kill_all(SIGKILL);
    for (const ChildStatus& status : writers.wait()) REQUIRE(status.signal() == SIGKILL);

    for (int w = 0; w < kWriters; ++w) {
      const std::uint64_t last = acknowledged->last[static_cast<std::size_t>(w)];
      const std::string path = dir / ("own" + std::to_string(w));
      const std::uint64_t found =
          std::filesystem::exists(path) ? unsealed(slurp(path)).value_or(UINT64_MAX) : 0;
      CAPTURE(round);
      // The last acknowledged one, or the one after, which was published before its writer could say so.
      REQUIRE((found == last || found == last + 1));
      acknowledged->last[static_cast<std::size_t>(w)] = found;
      written = std::max(written, found);
    }
    if (std::filesystem::exists(dir / "shared")) REQUIRE(unsealed(slurp(dir / "shared")).has_value());
  }
  CHECK(written > 0);
  sweep_temps(posix_file_system(), dir.path(), std::chrono::seconds(-1));
  CHECK(names_in(dir.path()) == std::vector<std::string>{"own0", "own1", "own2", "own3", "shared"});
}

TEST_CASE("fault 01: a power cut after any call keeps what was acknowledged, and never shows a part") {
  for (const auto names : {PowerCutFileSystem::Names::lost, PowerCutFileSystem::Names::kept}) {
    bool completed = false;
    for (std::uint64_t call = 1; !completed; ++call) {
      REQUIRE(call < 100);
      const TempDir dir;
      PowerCutFileSystem disk;
      REQUIRE(write_atomically(disk, dir / "f", as_bytes(kOld)).ok());
      FaultyFileSystem fs(disk);
      fs.short_writes(1000);
      fs.fail_call(call, EIO, true);
      completed = write_atomically(fs, dir / "f", as_bytes(kNew)).ok() && !fs.fired();
      disk.cut(names);
      CAPTURE(call);
      const std::string contents = slurp(dir / "f");
      CHECK((contents == kNew || (!completed && contents == kOld)));
    }
  }
}

TEST_CASE("the power cut mechanism itself sees a save that was not synced") {
  for (const auto names : {PowerCutFileSystem::Names::lost, PowerCutFileSystem::Names::kept}) {
    const TempDir dir;
    PowerCutFileSystem disk;
    REQUIRE(write_atomically(disk, dir / "f", as_bytes(kOld)).ok());
    REQUIRE(write_atomically(disk, dir / "f", as_bytes(kNew), {.sync = false}).ok());
    CHECK(slurp(dir / "f") == kNew);
    disk.cut(names);
    CHECK(slurp(dir / "f") == (names == PowerCutFileSystem::Names::lost ? kOld : ""));
  }
}

TEST_CASE("fault 08: a full disk is a failed store: no part of an entry, the old one intact, no temp") {
  for (const int error : {ENOSPC, EDQUOT}) {
    for (const std::size_t room : {std::size_t{0}, std::size_t{1}, kNew.size() / 2, kNew.size() - 1}) {
      const TempDir dir;
      spit(dir / "f", kOld);
      FaultyFileSystem fs;
      fs.set_free_bytes(room, error);
      const Status status = write_atomically(fs, dir / "f", as_bytes(kNew));
      REQUIRE_FALSE(status.ok());
      CHECK(status.error().code() == ErrorCode::io_error);
      CHECK(status.error().message().find(error == ENOSPC ? "ENOSPC" : "EDQUOT") != std::string::npos);
      CHECK(slurp(dir / "f") == kOld);
      CHECK(names_in(dir.path()).size() == 1);
    }
  }
}

TEST_CASE("fault 08: a small tmpfs, where one may be mounted") {
  const TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=64k,mode=0700") != 0) {
    MESSAGE("no tmpfs can be mounted here; the injected full disk alone was tested");
    return;
  }
  FileSystem& fs = posix_file_system();
  const Status old_file = write_atomically(fs, dir / "f", as_bytes(kOld));
  const Status too_big = write_atomically(fs, dir / "f", as_bytes(std::string(200000, 'x')));
  const std::string contents = slurp(dir / "f");
  const std::vector<std::string> names = names_in(dir.path());
  const Status small_again = write_atomically(fs, dir / "f", as_bytes(kNew));
  ::umount(dir.path().c_str());
  CHECK(old_file.ok());
  REQUIRE_FALSE(too_big.ok());
  CHECK(too_big.error().message().find("ENOSPC") != std::string::npos);
  CHECK(contents == kOld);
  CHECK(names.size() == 1);
  CHECK(small_again.ok());
}

TEST_CASE(
    "fault 09: beyond RLIMIT_FSIZE a save fails and the process lives, also where SIGXFSZ would end it") {
  const TempDir dir;
  spit(dir / "f", kOld);
  const ChildStatus status = run_child([&] {
    ::signal(SIGXFSZ, SIG_DFL);
    const rlimit limit{6000, 6000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 10;
    const Status saved = write_atomically(posix_file_system(), dir / "f", as_bytes(kNew));
    if (saved.ok()) return 11;
    if (saved.error().message().find("EFBIG") == std::string::npos) return 12;
    sigset_t set;
    if (::pthread_sigmask(SIG_BLOCK, nullptr, &set) != 0 || ::sigismember(&set, SIGXFSZ) != 0) return 13;
    if (::sigpending(&set) != 0 || ::sigismember(&set, SIGXFSZ) != 0) return 14;
    return write_atomically(posix_file_system(), dir / "small", as_bytes("fits")).ok() ? 0 : 15;
  });
  CHECK(status.signal() == 0);
  CHECK(status.exit_code() == 0);
  CHECK(slurp(dir / "f") == kOld);
  CHECK(slurp(dir / "small") == "fits");
  CHECK(names_in(dir.path()).size() == 2);
}

TEST_CASE("fault 10: quota, no inodes, too many open files: a failed store that leaves nothing") {
  const TempDir dir;
  spit(dir / "f", kOld);
  for (const int error : {EDQUOT, ENOSPC, EMFILE, ENFILE, ENOMEM}) {
    FaultyFileSystem fs;
    fs.fail_op(Op::open, 1, error);
    CHECK_FALSE(write_atomically(fs, dir / "f", as_bytes(kNew)).ok());
    CHECK(slurp(dir / "f") == kOld);
    CHECK(names_in(dir.path()).size() == 1);
  }
}

TEST_CASE("fault 10: a process without a free descriptor reads a miss and stores nothing") {
  const TempDir dir;
  spit(dir / "f", kOld);
  const ChildStatus status = run_child([&] {
    const rlimit limit{0, 0};
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return 10;
    if (write_atomically(posix_file_system(), dir / "f", as_bytes(kNew)).ok()) return 11;
    const Result<Bytes> bytes = read_regular_file(posix_file_system(), dir / "f", kCap);
    return !bytes.ok() && bytes.error().message().find("EMFILE") != std::string::npos ? 0 : 12;
  });
  CHECK(status.exit_code() == 0);
  CHECK(slurp(dir / "f") == kOld);
  CHECK(names_in(dir.path()).size() == 1);
}

TEST_CASE("fault 10: EINTR at every other call and short writes and reads do not show") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.interrupt_every_other();
  fs.short_writes(13);
  fs.short_reads(17);
  REQUIRE(write_atomically(fs, dir / "f", as_bytes(kNew)).ok());
  CHECK(slurp(dir / "f") == kNew);
  const Result<Bytes> back = read_regular_file(fs, dir / "f", kCap);
  REQUIRE(back.ok());
  CHECK(as_text(*back) == kNew);
}

TEST_CASE(
    "fault 11: EIO at each call of a save: old or new, the old one whenever the file's own sync failed") {
  for (const int error : {EIO, ENOSPC, EDQUOT, EROFS}) {
    bool completed = false;
    for (std::uint64_t call = 1; !completed; ++call) {
      REQUIRE(call < 100);
      const TempDir dir;
      spit(dir / "f", kOld);
      FaultyFileSystem fs;
      fs.fail_call(call, error);
      const Status status = write_atomically(fs, dir / "f", as_bytes(kNew));
      completed = !fs.fired();
      CAPTURE(call);
      const std::string contents = slurp(dir / "f");
      CHECK((contents == kNew || (!status.ok() && contents == kOld)));
      CHECK(names_in(dir.path()).size() ==
            1);  // only a failed unlink or close could leave a temp, and neither is called alone
    }
  }
  for (const Op op : {Op::write, Op::fsync, Op::close, Op::rename}) {
    const TempDir dir;
    spit(dir / "f", kOld);
    FaultyFileSystem fs;
    fs.fail_op(op, 1, EIO);
    CHECK_FALSE(write_atomically(fs, dir / "f", as_bytes(kNew)).ok());
    CHECK(slurp(dir / "f") == kOld);
    CHECK(names_in(dir.path()).size() == 1);
    if (op == Op::fsync) CHECK(fs.calls(Op::fsync) == 1);  // a second fsync might succeed on dropped data
  }
}

TEST_CASE("fault 11: a failed fsync of the folder is told; a file system that has none is passed over") {
  const TempDir dir;
  FaultyFileSystem fs;
  fs.fail_op(Op::fsync, 2, EIO);
  CHECK_FALSE(write_atomically(fs, dir / "f", as_bytes(kNew)).ok());
  for (const int error : {EINVAL, EOPNOTSUPP, ENOSYS}) {
    FaultyFileSystem without;
    without.fail_op(Op::fsync, 2, error);
    CHECK(write_atomically(without, dir / "f", as_bytes(kNew)).ok());
  }
}

TEST_CASE("fault 11: EIO at each call of a read is an error and no bytes") {
  const TempDir dir;
  spit(dir / "f", kNew);
  for (const int error : {EIO, ESTALE, EACCES}) {
    bool completed = false;
    for (std::uint64_t call = 1; !completed; ++call) {
      REQUIRE(call < 100);
      FaultyFileSystem fs;
      fs.short_reads(4000);
      fs.fail_call(call, error);
      const auto bytes = read_regular_file_if_exists(fs, dir / "f", kCap);
      completed = !fs.fired();
      CAPTURE(call);
      if (bytes.ok()) {
        REQUIRE(bytes->has_value());
        CHECK(as_text(**bytes) == kNew);  // closing a file that was read cannot take the bytes back
      } else {
        CHECK_FALSE(completed);
      }
    }
  }
}
