#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/file_system.hpp"

namespace varmoe::test {

enum class Op : std::uint8_t {
  open,
  read,
  write,
  fsync,
  close,
  flock,
  stat,
  rename,
  link,
  unlink,
  mkdir,
  rmdir,
  list,
  access,
  set_mtime,
};

/// A file system that misbehaves on request; otherwise it passes calls on. Thread-safe once set up.
///
/// The pattern: for n = 1, 2, 3, … until the operation completes with !fired():
///   FaultyFileSystem fs; fs.fail_call(n, EIO); operation(fs); assert the invariants through the real file
///   system.
class FaultyFileSystem final : public ForwardingFileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& next = posix_file_system()) : ForwardingFileSystem(next) {}

  static constexpr std::uint64_t kAll = 0;

  /// Call number n (from 1, of any kind) fails with `error`; `and_after`: every later one too, as if the disk
  /// were gone.
  void fail_call(std::uint64_t n, int error, bool and_after = false) { any_ = {n, error, and_after}; }
  /// Call number n of one kind fails; kAll: each of them.
  void fail_op(Op op, std::uint64_t n, int error) {
    by_op_[op] = n == kAll ? Fault{1, error, true} : Fault{n, error, false};
  }
  /// No write takes more than `bytes`.
  void short_writes(std::size_t bytes) { write_limit_ = bytes; }
  /// No read gives more than `bytes`.
  void short_reads(std::size_t bytes) { read_limit_ = bytes; }
  /// Every other call that may be interrupted (open, read, write, fsync, flock, rename) is.
  void interrupt_every_other() { interrupt_ = true; }
  /// A disk with so much room: writes fill it, then fail with `error` (ENOSPC, EDQUOT).
  void set_free_bytes(std::size_t bytes, int error = ENOSPC) {
    free_bytes_ = bytes;
    full_error_ = error;
  }
  /// As if we ran as this user; as if `path` belonged to that one.
  void set_user(std::uint32_t user) { user_ = user; }
  void set_owner(const std::string& path, std::uint32_t user) { owners_[path] = user; }
  void set_now_ns(std::int64_t now) { now_ns_ = now; }
  /// Called before each call with its kind and its number (from 1, of any kind): a place for kill() or a
  /// rival's act.
  void before_call(std::function<void(Op, std::uint64_t)> hook) { hook_ = std::move(hook); }

  /// How many calls were made, and whether any was made to fail with fail_call, fail_op or set_free_bytes.
  std::uint64_t calls() const {
    const std::lock_guard lock(mutex_);
    return total_;
  }
  std::uint64_t calls(Op op) const {
    const std::lock_guard lock(mutex_);
    const auto found = counts_.find(op);
    return found == counts_.end() ? 0 : found->second;
  }
  bool fired() const {
    const std::lock_guard lock(mutex_);
    return fired_;
  }

  int open(const std::string& path, int flags, mode_t mode) noexcept override {
    if (int e = enter(Op::open, true)) return -e;
    return next_.open(path, flags, mode);
  }
  ssize_t read(int fd, void* data, std::size_t size) noexcept override {
    if (int e = enter(Op::read, true)) return -e;
    return next_.read(fd, data, std::min(size, read_limit_));
  }
  ssize_t write(int fd, const void* data, std::size_t size) noexcept override {
    if (int e = enter(Op::write, true)) return -e;
    size = std::min(size, write_limit_);
    {
      const std::lock_guard lock(mutex_);
      if (free_bytes_) {
        if (*free_bytes_ == 0 && size > 0) {
          fired_ = true;
          return -full_error_;
        }
        size = std::min(size, *free_bytes_);
        *free_bytes_ -= size;
      }
    }
    return next_.write(fd, data, size);
  }
  int fsync(int fd) noexcept override {
    if (int e = enter(Op::fsync, true)) return -e;
    return next_.fsync(fd);
  }
  int close(int fd) noexcept override {
    const int e = enter(Op::close);
    const int result = next_.close(fd);  // the descriptor goes, whatever is said
    return e != 0 ? -e : result;
  }
  int flock(int fd, int operation) noexcept override {
    if (int e = enter(Op::flock, true)) return -e;
    return next_.flock(fd, operation);
  }
  int stat_fd(int fd, FileInfo* info) noexcept override {
    if (int e = enter(Op::stat)) return -e;
    return next_.stat_fd(fd, info);
  }
  int stat(const std::string& path, FileInfo* info) noexcept override {
    if (int e = enter(Op::stat)) return -e;
    return owned(path, next_.stat(path, info), info);
  }
  int lstat(const std::string& path, FileInfo* info) noexcept override {
    if (int e = enter(Op::stat)) return -e;
    return owned(path, next_.lstat(path, info), info);
  }
  int rename(const std::string& from, const std::string& to) noexcept override {
    if (int e = enter(Op::rename, true)) return -e;
    return next_.rename(from, to);
  }
  int link(const std::string& from, const std::string& to) noexcept override {
    if (int e = enter(Op::link)) return -e;
    return next_.link(from, to);
  }
  int unlink(const std::string& path) noexcept override {
    if (int e = enter(Op::unlink)) return -e;
    return next_.unlink(path);
  }
  int mkdir(const std::string& path, mode_t mode) noexcept override {
    if (int e = enter(Op::mkdir)) return -e;
    return next_.mkdir(path, mode);
  }
  int rmdir(const std::string& path) noexcept override {
    if (int e = enter(Op::rmdir)) return -e;
    return next_.rmdir(path);
  }
  int list(const std::string& path, std::vector<std::string>* names) noexcept override {
    if (int e = enter(Op::list)) return -e;
    return next_.list(path, names);
  }
  int access(const std::string& path, int mode) noexcept override {
    if (int e = enter(Op::access)) return -e;
    return next_.access(path, mode);
  }
  int set_mtime(const std::string& path, std::int64_t mtime_ns) noexcept override {
    if (int e = enter(Op::set_mtime)) return -e;
    return next_.set_mtime(path, mtime_ns);
  }
  std::uint32_t user() noexcept override { return user_ ? *user_ : next_.user(); }
  std::int64_t now_ns() noexcept override { return now_ns_ ? *now_ns_ : next_.now_ns(); }

 private:
  struct Fault {
    std::uint64_t at = 0;
    int error = 0;
    bool and_after = false;
    bool hits(std::uint64_t n) const { return at != 0 && (n == at || (and_after && n > at)); }
  };

  /// Counts the call; the errno with which it must fail, or 0.
  int enter(Op op, bool interruptible = false) noexcept {
    std::uint64_t number;
    int error = 0;
    {
      const std::lock_guard lock(mutex_);
      number = ++total_;
      const std::uint64_t of_kind = ++counts_[op];
      const auto found = by_op_.find(op);
      if (any_.hits(number)) {
        error = any_.error;
      } else if (found != by_op_.end() && found->second.hits(of_kind)) {
        error = found->second.error;
      }
      if (error != 0) fired_ = true;
      if (error == 0 && interruptible && interrupt_ && (++interruptible_calls_ % 2) == 1) error = EINTR;
    }
    if (hook_) hook_(op, number);
    return error;
  }

  int owned(const std::string& path, int result, FileInfo* info) const noexcept {
    const auto found = owners_.find(path);
    if (result == 0 && found != owners_.end()) info->user = found->second;
    return result;
  }

  mutable std::mutex mutex_;
  std::uint64_t total_ = 0, interruptible_calls_ = 0;
  std::map<Op, std::uint64_t> counts_;
  bool fired_ = false;
  Fault any_;
  std::map<Op, Fault> by_op_;
  std::size_t write_limit_ = std::numeric_limits<std::size_t>::max();
  std::size_t read_limit_ = std::numeric_limits<std::size_t>::max();
  bool interrupt_ = false;
  std::optional<std::size_t> free_bytes_;
  int full_error_ = ENOSPC;
  std::optional<std::uint32_t> user_;
  std::map<std::string, std::uint32_t> owners_;
  std::optional<std::int64_t> now_ns_;
  std::function<void(Op, std::uint64_t)> hook_;
};

}  // namespace varmoe::test
