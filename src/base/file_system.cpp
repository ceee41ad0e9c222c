#include "base/file_system.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/text.hpp"

namespace varmoe {
namespace {

/// EINTR is retried this often: signals arrive one by one, so more in a row means that something is broken.
constexpr int kMaxInterrupts = 1000;

template <class Call>
auto retry_interrupted(Call&& call) noexcept {
  auto result = call();
  for (int i = 0; result == -EINTR && i < kMaxInterrupts; ++i) result = call();
  return result;
}

const char* errno_name(int number) noexcept {
  switch (number) {
#define VARMOE_ERRNO(name) \
  case name:               \
    return #name;
    VARMOE_ERRNO(EACCES)
    VARMOE_ERRNO(EAGAIN)
    VARMOE_ERRNO(EBADF)
    VARMOE_ERRNO(EBUSY)
    VARMOE_ERRNO(EDQUOT)
    VARMOE_ERRNO(EEXIST)
    VARMOE_ERRNO(EFBIG)
    VARMOE_ERRNO(EINTR)
    VARMOE_ERRNO(EINVAL)
    VARMOE_ERRNO(EIO)
    VARMOE_ERRNO(EISDIR)
    VARMOE_ERRNO(ELOOP)
    VARMOE_ERRNO(EMFILE)
    VARMOE_ERRNO(EMLINK)
    VARMOE_ERRNO(ENAMETOOLONG)
    VARMOE_ERRNO(ENFILE)
    VARMOE_ERRNO(ENODEV)
    VARMOE_ERRNO(ENOENT)
    VARMOE_ERRNO(ENOLCK)
    VARMOE_ERRNO(ENOMEM)
    VARMOE_ERRNO(ENOSPC)
    VARMOE_ERRNO(ENOSYS)
    VARMOE_ERRNO(ENOTDIR)
    VARMOE_ERRNO(ENOTEMPTY)
    VARMOE_ERRNO(ENXIO)
    VARMOE_ERRNO(EOPNOTSUPP)
    VARMOE_ERRNO(EPERM)
    VARMOE_ERRNO(EROFS)
    VARMOE_ERRNO(ESTALE)
    VARMOE_ERRNO(ETIMEDOUT)
    VARMOE_ERRNO(ETXTBSY)
    VARMOE_ERRNO(EXDEV)
#undef VARMOE_ERRNO
  }
  return nullptr;
}

}  // namespace

int ForwardingFileSystem::open(const std::string& path, int flags, mode_t mode) noexcept {
  return next_.open(path, flags, mode);
}
ssize_t ForwardingFileSystem::read(int fd, void* data, std::size_t size) noexcept {
  return next_.read(fd, data, size);
}
ssize_t ForwardingFileSystem::write(int fd, const void* data, std::size_t size) noexcept {
  return next_.write(fd, data, size);
}
int ForwardingFileSystem::fsync(int fd) noexcept {
  return next_.fsync(fd);
}
int ForwardingFileSystem::close(int fd) noexcept {
  return next_.close(fd);
}
int ForwardingFileSystem::flock(int fd, int operation) noexcept {
  return next_.flock(fd, operation);
}
int ForwardingFileSystem::stat_fd(int fd, FileInfo* info) noexcept {
  return next_.stat_fd(fd, info);
}
int ForwardingFileSystem::stat(const std::string& path, FileInfo* info) noexcept {
  return next_.stat(path, info);
}
int ForwardingFileSystem::lstat(const std::string& path, FileInfo* info) noexcept {
  return next_.lstat(path, info);
}
int ForwardingFileSystem::rename(const std::string& from, const std::string& to) noexcept {
  return next_.rename(from, to);
}
int ForwardingFileSystem::link(const std::string& from, const std::string& to) noexcept {
  return next_.link(from, to);
}
int ForwardingFileSystem::unlink(const std::string& path) noexcept {
  return next_.unlink(path);
}
int ForwardingFileSystem::mkdir(const std::string& path, mode_t mode) noexcept {
  return next_.mkdir(path, mode);
}
int ForwardingFileSystem::rmdir(const std::string& path) noexcept {
  return next_.rmdir(path);
}
int ForwardingFileSystem::list(const std::string& path, std::vector<std::string>* names) noexcept {
  return next_.list(path, names);
}
int ForwardingFileSystem::access(const std::string& path, int mode) noexcept {
  return next_.access(path, mode);
}
int ForwardingFileSystem::set_mtime(const std::string& path, std::int64_t mtime_ns) noexcept {
  return next_.set_mtime(path, mtime_ns);
}
std::uint32_t ForwardingFileSystem::user() noexcept {
  return next_.user();
}
std::int64_t ForwardingFileSystem::now_ns() noexcept {
  return next_.now_ns();
}

FileHandle& FileHandle::operator=(FileHandle&& other) noexcept {
  if (this != &other) {
    static_cast<void>(close());
    fs_ = other.fs_;
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

int FileHandle::close() noexcept {
  if (fd_ < 0) return 0;
  const int result = fs_->close(std::exchange(fd_, -1));
  // Linux frees the descriptor before it can be interrupted; closing again might close somebody else's.
  return result == -EINTR ? 0 : result;
}

Error io_error(std::string_view action, std::string_view path, int error_number) {
  const std::string sentence = std::error_code(error_number, std::generic_category()).message();
  const char* name = errno_name(error_number);
  return Error(ErrorCode::io_error,
               fmt::format("cannot {} '{}': {} ({})", action, printable(path, 4096), sentence,
                           name != nullptr ? std::string(name) : fmt::format("errno {}", error_number)));
}

int open_retrying(FileSystem& fs, const std::string& path, int flags, mode_t mode) noexcept {
  return retry_interrupted([&] { return fs.open(path, flags | O_CLOEXEC, mode); });
}

int write_all(FileSystem& fs, int fd, std::span<const std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t written = retry_interrupted([&] { return fs.write(fd, bytes.data(), bytes.size()); });
    if (written < 0) return static_cast<int>(written);
    if (written == 0 || static_cast<std::size_t>(written) > bytes.size()) return -EIO;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return 0;
}

ssize_t read_up_to(FileSystem& fs, int fd, void* data, std::size_t size) noexcept {
  auto* to = static_cast<std::byte*>(data);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = retry_interrupted([&] { return fs.read(fd, to + done, size - done); });
    if (got < 0) return got;
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return static_cast<ssize_t>(done);
}

int fsync_retrying(FileSystem& fs, int fd) noexcept {
  return retry_interrupted([&] { return fs.fsync(fd); });
}

Status make_directories(FileSystem& fs, const std::string& path, mode_t mode) {
  if (path.empty()) return Error(ErrorCode::io_error, "cannot make a directory: its path is empty");
  FileInfo info;
  int result = fs.stat(path, &info);
  if (result == 0) {
    if (info.type == FileType::directory) return {};
    return io_error("make directory", path, ENOTDIR);
  }
  if (result != -ENOENT) return io_error("make directory", path, -result);
  // Parents first, from the shortest prefix that is missing. Another process may make any of them meanwhile.
  for (std::size_t end = path.find_first_not_of('/');; end = path.find_first_not_of('/', end)) {
    if (end == std::string::npos) break;
    end = path.find('/', end);
    const std::string prefix = path.substr(0, end);
    result = retry_interrupted([&] { return fs.mkdir(prefix, mode); });
    if (result < 0) {
      // mkdir of what exists may also say EROFS or EACCES (automounts), so look before believing it.
      const int stat_result = fs.stat(prefix, &info);
      if (stat_result != 0) return io_error("make directory", prefix, -result);
      if (info.type != FileType::directory) return io_error("make directory", prefix, ENOTDIR);
    }
    if (end == std::string::npos) break;
  }
  return {};
}

int fsync_directory(FileSystem& fs, const std::string& path) noexcept {
  const int fd = open_retrying(fs, path, O_RDONLY | O_DIRECTORY);
  // A folder that may be written but not read (mode 0300) cannot be synced by us.
  if (fd == -EACCES) return 0;
  if (fd < 0) return fd;
  FileHandle folder(fs, fd);
  const int result = fsync_retrying(fs, fd);
  // Several network and FUSE file systems do not know fsync of a directory.
  if (result == -EINVAL || result == -ENOTSUP || result == -ENOSYS) return 0;
  return result;
}

std::string parent_path(std::string_view path) {
  const std::size_t last = path.find_last_not_of('/');
  if (last == std::string_view::npos) return path.empty() ? "." : "/";
  const std::size_t slash = path.find_last_of('/', last);
  if (slash == std::string_view::npos) return ".";
  const std::size_t end = path.find_last_not_of('/', slash);
  return end == std::string_view::npos ? "/" : std::string(path.substr(0, end + 1));
}

std::string join_path(std::string_view folder, std::string_view name) {
  std::string path(folder);
  if (!path.empty() && path.back() != '/') path.push_back('/');
  path.append(name);
  return path;
}

}  // namespace varmoe
