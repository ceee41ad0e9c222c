#pragma once

#include <atomic>
#include <chrono>
#include <string>

#include "base/file_system.hpp"
#include "base/log.hpp"

namespace varmoe {

/// An exclusive advisory lock (flock) on a file that exists for nothing else: it is never renamed, written or
/// removed, since either would let two processes hold "the" lock. Released when this goes out of scope, and
/// by the kernel when the process dies. Excludes threads of one process as well as processes. A child of fork
/// shares the lock until both let go; exec drops it.
///
/// Not having the lock is never an error here: callers save duplicate work with it, and go on without.
class FileLock {
 public:
  enum class State : std::uint8_t {
    held,
    timed_out,  ///< somebody else held it all the while
    cancelled,
    unsupported,  ///< this file system has no locks (said once)
    refused,      ///< no lock file could be opened there, or what is there is no plain file of its own (said
                  ///< once)
  };

  /// Waits at most `wait`. `log` is told, once for a folder, of locks that are unsupported or refused.
  static FileLock acquire(FileSystem& fs, const std::string& path, std::chrono::milliseconds wait,
                          const Log& log, const std::atomic<bool>* cancel = nullptr);

  FileLock() noexcept = default;  ///< holds nothing
  ~FileLock() { release(); }
  FileLock(FileLock&& other) noexcept = default;
  FileLock& operator=(FileLock&& other) noexcept;

  State state() const noexcept { return state_; }
  bool held() const noexcept { return state_ == State::held && file_.valid(); }
  void release() noexcept;

 private:
  FileSystem* fs_ = nullptr;
  FileHandle file_;
  State state_ = State::refused;
};

const char* to_string(FileLock::State state) noexcept;

}  // namespace varmoe
