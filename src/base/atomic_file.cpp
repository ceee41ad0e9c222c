#include "base/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <ctime>
#include <new>

#include "base/kill_point.hpp"
#include "base/text.hpp"

namespace varmoe {
namespace {

constexpr std::string_view kTempPrefix = ".varmoe-";
constexpr std::string_view kTempSuffix = ".tmp";
constexpr int kMaxTempNames = 16;

/// Holds SIGXFSZ back from this thread: a write beyond RLIMIT_FSIZE then fails with EFBIG instead of ending
/// the host's process.
class FileSizeSignalGuard {
 public:
  FileSizeSignalGuard() noexcept {
    sigset_t pending;
    sigemptyset(&pending);
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGXFSZ) == 1;
    sigemptyset(&signal_);
    sigaddset(&signal_, SIGXFSZ);
    blocked_ = pthread_sigmask(SIG_BLOCK, &signal_, &before_) == 0;
  }
  ~FileSizeSignalGuard() {
    if (!blocked_) return;
    // What our write raised is pending on this thread; take it, or unblocking delivers it. One from before is
    // not ours.
    if (!was_pending_) {
      const timespec no_wait{};
      while (sigtimedwait(&signal_, nullptr, &no_wait) == SIGXFSZ) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  FileSizeSignalGuard(const FileSizeSignalGuard&) = delete;
  FileSizeSignalGuard& operator=(const FileSizeSignalGuard&) = delete;

 private:
  sigset_t signal_{}, before_{};
  bool was_pending_ = false, blocked_ = false;
};

std::string temp_name(FileSystem& fs) {
  // Any name not in use will do (O_EXCL decides); randomness only makes collisions rare, also between hosts
  // on one share.
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof random, GRND_NONBLOCK) != static_cast<ssize_t>(sizeof random)) {
    static std::atomic<std::uint64_t> counter{0};
    random = static_cast<std::uint64_t>(fs.now_ns()) + (counter.fetch_add(1) << 40);
  }
  return fmt::format("{}{}-{:016x}{}", kTempPrefix, ::getpid(), random, kTempSuffix);
}

/// Opens a temp file that did not exist before in `folder`.
Result<FileHandle> open_temp(FileSystem& fs, const std::string& folder, mode_t mode, bool create_folder,
                             std::string* temp_path) {
  int fd = -EEXIST;
  for (int i = 0; i < kMaxTempNames; ++i) {
    *temp_path = join_path(folder, temp_name(fs));
    fd = open_retrying(fs, *temp_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY, mode);
    if (fd == -ENOENT && create_folder) {
      create_folder = false;
      if (Status made = make_directories(fs, folder); !made.ok()) return made.error();
      continue;
    }
    if (fd != -EEXIST) break;
  }
  if (fd < 0) return io_error("create", *temp_path, -fd);
  return FileHandle(fs, fd);
}

/// Everything up to the rename: the bytes are in the temp file, and on the disk if `sync`.
Status fill_temp(FileSystem& fs, FileHandle& file, const std::string& temp_path,
                 std::span<const std::byte> bytes, bool sync) {
  // In two parts, so that a test can end the process between them.
  const std::size_t half = bytes.size() / 2;
  int result = write_all(fs, file.fd(), bytes.first(half));
  VARMOE_KILL_POINT("atomic_file:mid_write");
  if (result == 0) result = write_all(fs, file.fd(), bytes.subspan(half));
  if (result < 0) return io_error("write", temp_path, -result);
  VARMOE_KILL_POINT("atomic_file:before_fsync");
  if (sync) {
    result = fsync_retrying(fs, file.fd());
    if (result < 0) return io_error("fsync", temp_path, -result);
  }
  VARMOE_KILL_POINT("atomic_file:after_fsync");
  result = file.close();
  if (result < 0) return io_error("close", temp_path, -result);
  return {};
}

Error refusal(std::string_view path, std::string_view what) {
  return Error(ErrorCode::io_error, fmt::format("refused to read '{}': {}", printable(path, 4096), what));
}

/// Why a file is not one that may be read; empty when it may.
std::string_view unfit(const FileInfo& info, HardLinks hard_links) noexcept {
  switch (info.type) {
    case FileType::regular:
      break;
    case FileType::directory:
      return "it is a directory, not a regular file";
    case FileType::symlink:
      return "it is a symbolic link, not a regular file";
    case FileType::other:
      return "it is a FIFO, socket or device, not a regular file";
  }
  if (hard_links == HardLinks::refuse && info.links > 1) return "it has other names (hard links)";
  return {};
}

}  // namespace

Status write_atomically(FileSystem& fs, const std::string& path, std::span<const std::byte> bytes,
                        const AtomicWriteOptions& options) {
  const FileSizeSignalGuard guard;
  const std::string folder = parent_path(path);
  VARMOE_KILL_POINT("atomic_file:before_open");
  std::string temp_path;
  Result<FileHandle> file = open_temp(fs, folder, options.mode, options.create_folder, &temp_path);
  if (!file.ok()) return std::move(file).error();
  VARMOE_KILL_POINT("atomic_file:after_open");
  Status status = fill_temp(fs, *file, temp_path, bytes, options.sync);
  if (status.ok()) {
    VARMOE_KILL_POINT("atomic_file:before_rename");
    int result = fs.rename(temp_path, path);
    for (int i = 0; result == -EINTR && i < kMaxTempNames; ++i) result = fs.rename(temp_path, path);
    if (result < 0) status = io_error("rename a temporary file to", path, -result);
  }
  if (!status.ok()) {
    static_cast<void>(file->close());
    static_cast<void>(fs.unlink(temp_path));  // what stays behind is swept later
    return status;
  }
  VARMOE_KILL_POINT("atomic_file:after_rename");
  if (options.sync) {
    const int result = fsync_directory(fs, folder);
    if (result < 0) return io_error("fsync", folder, -result);
  }
  VARMOE_KILL_POINT("atomic_file:done");
  return {};
}

Result<std::optional<Bytes>> read_regular_file_if_exists(FileSystem& fs, const std::string& path,
                                                         std::uint64_t size_cap, HardLinks hard_links,
                                                         FileInfo* info_out) {
  // Looking first means that nothing but a regular file is opened at all: opening a FIFO or a device is an
  // act in itself (it lets a waiting writer go on, rewinds a tape). fstat then tells whether it is still what
  // it was.
  FileInfo info;
  int result = fs.lstat(path, &info);
  if (result == -ENOENT || result == -ENOTDIR) return std::optional<Bytes>();
  if (result < 0) return io_error("read", path, -result);
  if (const std::string_view why = unfit(info, hard_links); !why.empty()) return refusal(path, why);

  const int fd = open_retrying(fs, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  if (fd == -ENOENT || fd == -ENOTDIR) return std::optional<Bytes>();
  if (fd < 0) return io_error("read", path, -fd);
  const FileHandle file(fs, fd);
  result = fs.stat_fd(fd, &info);
  if (result < 0) return io_error("read", path, -result);
  if (const std::string_view why = unfit(info, hard_links); !why.empty()) return refusal(path, why);
  if (info.size > size_cap) {
    return refusal(path, fmt::format("it has {} bytes, at most {} are accepted", info.size, size_cap));
  }

  try {
    Bytes bytes(static_cast<std::size_t>(info.size));
    const ssize_t got = read_up_to(fs, fd, bytes.data(), bytes.size());
    if (got < 0) return io_error("read", path, static_cast<int>(-got));
    // Files here are replaced, never changed; one that shrinks under our eyes is not one of ours.
    if (static_cast<std::uint64_t>(got) != info.size) {
      return refusal(path, fmt::format("it ended after {} of {} bytes", got, info.size));
    }
    if (info_out != nullptr) *info_out = info;
    return std::optional<Bytes>(std::move(bytes));
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::out_of_memory,
                 fmt::format("no memory to read '{}' ({} bytes)", printable(path, 4096), info.size));
  }
}

Result<Bytes> read_regular_file(FileSystem& fs, const std::string& path, std::uint64_t size_cap,
                                HardLinks hard_links, FileInfo* info) {
  Result<std::optional<Bytes>> bytes = read_regular_file_if_exists(fs, path, size_cap, hard_links, info);
  if (!bytes.ok()) return std::move(bytes).error();
  if (!bytes->has_value()) return io_error("read", path, ENOENT);
  return std::move(**bytes);
}

bool is_temp_name(std::string_view name) noexcept {
  if (name.size() <= kTempPrefix.size() + kTempSuffix.size()) return false;
  if (!name.starts_with(kTempPrefix) || !name.ends_with(kTempSuffix)) return false;
  name.remove_prefix(kTempPrefix.size());
  name.remove_suffix(kTempSuffix.size());
  // <pid>-<16 hex digits>
  const std::size_t dash = name.find('-');
  return dash != std::string_view::npos && dash > 0 && name.size() == dash + 17 &&
         name.find_first_not_of("0123456789") == dash &&
         name.substr(dash + 1).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::size_t sweep_temps(FileSystem& fs, const std::string& folder, std::chrono::seconds min_age) {
  std::vector<std::string> names;
  if (fs.list(folder, &names) < 0) return 0;
  const std::int64_t newest = fs.now_ns() - std::chrono::nanoseconds(min_age).count();
  std::size_t removed = 0;
  for (const std::string& name : names) {
    if (!is_temp_name(name)) continue;
    const std::string path = join_path(folder, name);
    FileInfo info;
    if (fs.lstat(path, &info) < 0) continue;
    if (info.type == FileType::directory || info.mtime_ns > newest) continue;
    if (fs.unlink(path) == 0) ++removed;
  }
  return removed;
}

}  // namespace varmoe
