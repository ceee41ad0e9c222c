#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "varmoe/error.hpp"

namespace varmoe {

using Bytes = std::vector<std::byte>;

enum class FileType : std::uint8_t { regular, directory, symlink, other };

struct FileInfo {
  FileType type = FileType::other;
  std::uint32_t mode = 0;  ///< permission bits, 07777
  std::uint32_t user = 0;
  std::uint32_t group = 0;
  std::uint64_t size = 0;
  std::uint64_t links = 0;
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::int64_t mtime_ns = 0;  ///< since the epoch
};

/// The one seam between varmoe's stores and the operating system: every call that a save, a read, a lock or a
/// sweep makes goes through here, so that tests can make any one of them fail.
///
/// The calls have the meaning of their POSIX namesakes, once each: no retry after EINTR, no loop over short
/// writes (the functions below the class do that). They return a value ≥ 0, or −errno. Implementations are
/// thread-safe and do not throw.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  virtual int open(const std::string& path, int flags, mode_t mode) noexcept = 0;
  virtual ssize_t read(int fd, void* data, std::size_t size) noexcept = 0;
  virtual ssize_t write(int fd, const void* data, std::size_t size) noexcept = 0;
  virtual int fsync(int fd) noexcept = 0;
  virtual int close(int fd) noexcept = 0;
  virtual int flock(int fd, int operation) noexcept = 0;

  /// Of an open file.
  virtual int stat_fd(int fd, FileInfo* info) noexcept = 0;
  /// Follows symlinks.
  virtual int stat(const std::string& path, FileInfo* info) noexcept = 0;
  /// Does not follow a symlink in the last component.
  virtual int lstat(const std::string& path, FileInfo* info) noexcept = 0;

  virtual int rename(const std::string& from, const std::string& to) noexcept = 0;
  virtual int link(const std::string& from, const std::string& to) noexcept = 0;
  virtual int unlink(const std::string& path) noexcept = 0;
  virtual int mkdir(const std::string& path, mode_t mode) noexcept = 0;
  virtual int rmdir(const std::string& path) noexcept = 0;
  /// Names in a directory, without "." and "..", in no order.
  virtual int list(const std::string& path, std::vector<std::string>* names) noexcept = 0;
  /// access(2) with the effective user: R_OK, W_OK, X_OK.
  virtual int access(const std::string& path, int mode) noexcept = 0;
  /// Sets the modification time of a path (a symlink itself, not its target).
  virtual int set_mtime(const std::string& path, std::int64_t mtime_ns) noexcept = 0;

  /// The effective user.
  virtual std::uint32_t user() noexcept = 0;
  /// Wall clock, nanoseconds since the epoch.
  virtual std::int64_t now_ns() noexcept = 0;
};

/// The operating system's own; static storage.
FileSystem& posix_file_system() noexcept;

/// Passes every call on to another file system: the base for ones that watch or alter some calls.
class ForwardingFileSystem : public FileSystem {
 public:
  explicit ForwardingFileSystem(FileSystem& next) noexcept : next_(next) {}
  int open(const std::string& path, int flags, mode_t mode) noexcept override;
  ssize_t read(int fd, void* data, std::size_t size) noexcept override;
  ssize_t write(int fd, const void* data, std::size_t size) noexcept override;
  int fsync(int fd) noexcept override;
  int close(int fd) noexcept override;
  int flock(int fd, int operation) noexcept override;
  int stat_fd(int fd, FileInfo* info) noexcept override;
  int stat(const std::string& path, FileInfo* info) noexcept override;
  int lstat(const std::string& path, FileInfo* info) noexcept override;
  int rename(const std::string& from, const std::string& to) noexcept override;
  int link(const std::string& from, const std::string& to) noexcept override;
  int unlink(const std::string& path) noexcept override;
  int mkdir(const std::string& path, mode_t mode) noexcept override;
  int rmdir(const std::string& path) noexcept override;
  int list(const std::string& path, std::vector<std::string>* names) noexcept override;
  int access(const std::string& path, int mode) noexcept override;
  int set_mtime(const std::string& path, std::int64_t mtime_ns) noexcept override;
  std::uint32_t user() noexcept override;
  std::int64_t now_ns() noexcept override;

 protected:
  FileSystem& next_;
};

/// An open file that is closed when it goes out of scope. Move-only.
class FileHandle {
 public:
  FileHandle() noexcept = default;
  FileHandle(FileSystem& fs, int fd) noexcept : fs_(&fs), fd_(fd) {}
  FileHandle(FileHandle&& other) noexcept : fs_(other.fs_), fd_(std::exchange(other.fd_, -1)) {}
  FileHandle& operator=(FileHandle&& other) noexcept;
  ~FileHandle() { static_cast<void>(close()); }

  bool valid() const noexcept { return fd_ >= 0; }
  int fd() const noexcept { return fd_; }
  /// Closes now; 0 or −errno (an error here may be the first news of a failed write). The descriptor is gone
  /// either way.
  int close() noexcept;

 private:
  FileSystem* fs_ = nullptr;
  int fd_ = -1;
};

/// Code io_error with the system\'s sentence and the errno by name:
/// "cannot <action> '<path>': No such file or directory (ENOENT)".
Error io_error(std::string_view action, std::string_view path, int error_number);

/// Opens with O_CLOEXEC, again after EINTR. ≥ 0 or −errno.
int open_retrying(FileSystem& fs, const std::string& path, int flags, mode_t mode = 0) noexcept;
/// Writes all bytes, again after EINTR and short writes. 0 or −errno; a write that makes no progress is −EIO.
int write_all(FileSystem& fs, int fd, std::span<const std::byte> bytes) noexcept;
/// Reads until `size` bytes or the end, again after EINTR. Bytes read or −errno.
ssize_t read_up_to(FileSystem& fs, int fd, void* data, std::size_t size) noexcept;
/// fsync, again after EINTR. Any other error is final: after a failed fsync the kernel may have dropped the
/// data.
int fsync_retrying(FileSystem& fs, int fd) noexcept;

/// Makes the directory and its missing parents with `mode`. Ready for others doing the same at once. The
/// error names the component that stood in the way.
Status make_directories(FileSystem& fs, const std::string& path, mode_t mode = 0700);

/// fsync of a directory, so that renames in it survive a power cut. File systems that cannot do it are passed
/// over.
int fsync_directory(FileSystem& fs, const std::string& path) noexcept;

/// "/a/b" of "/a/b/c"; "/" of "/a"; "." of "a".
std::string parent_path(std::string_view path);
/// "a/b" of "a" and "b", with one slash.
std::string join_path(std::string_view folder, std::string_view name);

}  // namespace varmoe
