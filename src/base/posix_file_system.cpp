#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <new>

#include "base/file_system.hpp"

namespace varmoe {
namespace {

constexpr std::int64_t kNanosecondsPerSecond = 1'000'000'000;

void convert(const struct stat& from, FileInfo* to) noexcept {
  to->type = S_ISREG(from.st_mode)   ? FileType::regular
             : S_ISDIR(from.st_mode) ? FileType::directory
             : S_ISLNK(from.st_mode) ? FileType::symlink
                                     : FileType::other;
  to->mode = from.st_mode & 07777;
  to->user = from.st_uid;
  to->group = from.st_gid;
  to->size = from.st_size > 0 ? static_cast<std::uint64_t>(from.st_size) : 0;
  to->links = from.st_nlink;
  to->device = from.st_dev;
  to->inode = from.st_ino;
  to->mtime_ns = std::int64_t{from.st_mtim.tv_sec} * kNanosecondsPerSecond + from.st_mtim.tv_nsec;
}

template <class T>
T negated(T result) noexcept {
  return result < 0 ? static_cast<T>(-errno) : result;
}

class PosixFileSystem final : public FileSystem {
 public:
  int open(const std::string& path, int flags, mode_t mode) noexcept override {
    return negated(::open(path.c_str(), flags, mode));
  }
  ssize_t read(int fd, void* data, std::size_t size) noexcept override {
    return negated(::read(fd, data, size));
  }
  ssize_t write(int fd, const void* data, std::size_t size) noexcept override {
    return negated(::write(fd, data, size));
  }
  int fsync(int fd) noexcept override { return negated(::fsync(fd)); }
  int close(int fd) noexcept override { return negated(::close(fd)); }
  int flock(int fd, int operation) noexcept override { return negated(::flock(fd, operation)); }

  int stat_fd(int fd, FileInfo* info) noexcept override {
    struct stat status;
    if (::fstat(fd, &status) < 0) return -errno;
    convert(status, info);
    return 0;
  }
  int stat(const std::string& path, FileInfo* info) noexcept override {
    struct stat status;
    if (::stat(path.c_str(), &status) < 0) return -errno;
    convert(status, info);
    return 0;
  }
  int lstat(const std::string& path, FileInfo* info) noexcept override {
    struct stat status;
    if (::lstat(path.c_str(), &status) < 0) return -errno;
    convert(status, info);
    return 0;
  }

  int rename(const std::string& from, const std::string& to) noexcept override {
    return negated(::rename(from.c_str(), to.c_str()));
  }
  int link(const std::string& from, const std::string& to) noexcept override {
    return negated(::link(from.c_str(), to.c_str()));
  }
  int unlink(const std::string& path) noexcept override { return negated(::unlink(path.c_str())); }
  int mkdir(const std::string& path, mode_t mode) noexcept override {
    return negated(::mkdir(path.c_str(), mode));
  }
  int rmdir(const std::string& path) noexcept override { return negated(::rmdir(path.c_str())); }

  int list(const std::string& path, std::vector<std::string>* names) noexcept override {
    DIR* directory = ::opendir(path.c_str());
    if (directory == nullptr) return -errno;
    int result = 0;
    try {
      names->clear();
      for (;;) {
        errno = 0;
        const dirent* entry = ::readdir(directory);
        if (entry == nullptr) {
          result = -errno;
          break;
        }
        if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) {
          names->emplace_back(entry->d_name);
        }
      }
    } catch (const std::bad_alloc&) {
      result = -ENOMEM;
    }
    ::closedir(directory);
    return result;
  }

  int access(const std::string& path, int mode) noexcept override {
    return negated(::faccessat(AT_FDCWD, path.c_str(), mode, AT_EACCESS));
  }
  int set_mtime(const std::string& path, std::int64_t mtime_ns) noexcept override {
    timespec times[2];
    times[0].tv_sec = 0;
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_sec = static_cast<time_t>(mtime_ns / kNanosecondsPerSecond);
    times[1].tv_nsec = static_cast<long>(mtime_ns % kNanosecondsPerSecond);
    return negated(::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW));
  }

  std::uint32_t user() noexcept override { return ::geteuid(); }
  std::int64_t now_ns() noexcept override {
    timespec now;
    ::clock_gettime(CLOCK_REALTIME, &now);
    return std::int64_t{now.tv_sec} * kNanosecondsPerSecond + now.tv_nsec;
  }
};

}  // namespace

FileSystem& posix_file_system() noexcept {
  // Never destroyed: engines in static storage may outlive any order of destruction.
  alignas(PosixFileSystem) static unsigned char storage[sizeof(PosixFileSystem)];
  static FileSystem* instance = new (storage) PosixFileSystem;
  return *instance;
}

}  // namespace varmoe
