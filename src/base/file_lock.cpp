#include "base/file_lock.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/text.hpp"

namespace varmoe {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{1};
constexpr milliseconds kLongestPause{25};

void warn_once(const Log& log, const std::string& path, std::string_view reason) {
  log.once(fmt::format("file_lock:{}", parent_path(path)), LogLevel::warn,
           fmt::format("going on without file locks in '{}': {}; processes may do the same work twice",
                       printable(parent_path(path), 4096), reason));
}

/// Opens the lock file, making it where it is missing; what is there must be a plain file with one name.
Result<FileHandle> open_lock_file(FileSystem& fs, const std::string& path) {
  const auto refusal = [&](std::string_view what) {
    return Error(ErrorCode::io_error, fmt::format("'{}' is {}", printable(path, 4096), what));
  };
  // Looking first: opening a FIFO or a device would already be an act.
  FileInfo info;
  if (fs.lstat(path, &info) == 0 && info.type != FileType::regular) return refusal("not a regular file");
  const int fd = open_retrying(fs, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
  if (fd < 0) return io_error("open lock file", path, -fd);
  FileHandle file(fs, fd);
  const int result = fs.stat_fd(fd, &info);
  if (result < 0) return io_error("stat lock file", path, -result);
  if (info.type != FileType::regular) return refusal("not a regular file");
  if (info.links > 1) return refusal("a hard link to a file with other names");
  return file;
}

}  // namespace

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    release();
    fs_ = other.fs_;
    file_ = std::move(other.file_);
    state_ = other.state_;
  }
  return *this;
}

void FileLock::release() noexcept {
  if (!held()) return;
  static_cast<void>(fs_->flock(file_.fd(), LOCK_UN));
  static_cast<void>(file_.close());
}

FileLock FileLock::acquire(FileSystem& fs, const std::string& path, std::chrono::milliseconds wait,
                           const Log& log, const std::atomic<bool>* cancel) {
  FileLock lock;
  Result<FileHandle> file = open_lock_file(fs, path);
  if (!file.ok()) {
    warn_once(log, path, file.error().message());
    return lock;
  }
  const Clock::time_point deadline = Clock::now() + wait;
  milliseconds pause = kFirstPause;
  for (;;) {
    const int result = fs.flock(file->fd(), LOCK_EX | LOCK_NB);
    if (result == 0) {
      lock.fs_ = &fs;
      lock.file_ = std::move(*file);
      lock.state_ = State::held;
      return lock;
    }
    if (result != -EWOULDBLOCK && result != -EINTR) {
      // ENOLCK, EOPNOTSUPP, ENOSYS, ESTALE and whatever else a network file system answers: waiting would not
      // help.
      warn_once(log, path, io_error("lock", path, -result).message());
      lock.state_ = State::unsupported;
      return lock;
    }
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      lock.state_ = State::cancelled;
      return lock;
    }
    const Clock::time_point now = Clock::now();
    if (now >= deadline) {
      lock.state_ = State::timed_out;
      return lock;
    }
    // flock cannot wait for a limited time, so ask again and again: a blocking call could only be ended by a
    // signal.
    std::this_thread::sleep_for(std::min<Clock::duration>(pause, deadline - now));
    pause = std::min(2 * pause, kLongestPause);
  }
}

const char* to_string(FileLock::State state) noexcept {
  switch (state) {
    case FileLock::State::held:
      return "held";
    case FileLock::State::timed_out:
      return "timed_out";
    case FileLock::State::cancelled:
      return "cancelled";
    case FileLock::State::unsupported:
      return "unsupported";
    case FileLock::State::refused:
      return "refused";
  }
  return "unknown";
}

}  // namespace varmoe
