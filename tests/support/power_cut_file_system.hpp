#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "support/temp_dir.hpp"

namespace varmoe::test {

/// A file system on which the power may fail: it remembers what was synced, and `cut` takes the rest away, as
/// LevelDB's fault tests do. A file's contents last once the file was synced; a name (made, renamed, removed)
/// lasts once its folder was. Knows what write_atomically and the stores do: files written from the
/// beginning, renames and unlinks of files, one process.
class PowerCutFileSystem final : public ForwardingFileSystem {
 public:
  explicit PowerCutFileSystem(FileSystem& next = posix_file_system()) : ForwardingFileSystem(next) {}

  /// Unsynced names may or may not have reached the disk before unsynced contents; both happen.
  enum class Names { lost, kept };

  /// Puts the disk into the state after a power cut now. Files must be closed or not used any more.
  void cut(Names names) {
    const std::lock_guard lock(mutex_);
    if (names == Names::lost) {
      for (auto change = journal_.rbegin(); change != journal_.rend(); ++change) undo(*change);
    }
    for (const auto& [path, contents] : contents_) {
      if (contents.dirty && std::filesystem::exists(path)) spit(path, contents.synced);
    }
    journal_.clear();
    contents_.clear();
    open_.clear();
  }

  int open(const std::string& path, int flags, mode_t mode) noexcept override {
    const bool existed = std::filesystem::exists(path);
    const int fd = next_.open(path, flags, mode);
    const std::lock_guard lock(mutex_);
    if (fd < 0) return fd;
    open_[fd] = path;
    if (!existed) {
      journal_.push_back({path, {}, {}});
      contents_[path] = {};
    }
    return fd;
  }
  ssize_t write(int fd, const void* data, std::size_t size) noexcept override {
    const std::lock_guard lock(mutex_);
    Contents& contents = contents_[open_[fd]];
    if (!contents.dirty) {
      contents.synced = slurp(open_[fd]);
      contents.dirty = true;
    }
    return next_.write(fd, data, size);
  }
  int fsync(int fd) noexcept override {
    const int result = next_.fsync(fd);
    const std::lock_guard lock(mutex_);
    if (result != 0) return result;
    const std::string& path = open_[fd];
    if (std::filesystem::is_directory(path)) {
      std::erase_if(journal_, [&](const Change& change) { return parent_path(change.path) == path; });
    } else {
      contents_[path] = {};
    }
    return 0;
  }
  int close(int fd) noexcept override {
    const std::lock_guard lock(mutex_);
    open_.erase(fd);
    return next_.close(fd);
  }
  int rename(const std::string& from, const std::string& to) noexcept override {
    const std::lock_guard lock(mutex_);
    Change change{to, from, {}};
    if (std::filesystem::exists(to)) change.replaced = slurp(to);
    const int result = next_.rename(from, to);
    if (result != 0) return result;
    journal_.push_back(std::move(change));
    contents_[to] = contents_[from];
    contents_.erase(from);
    for (auto& [fd, path] : open_) {
      if (path == from) path = to;
    }
    return 0;
  }
  int unlink(const std::string& path) noexcept override {
    const std::lock_guard lock(mutex_);
    Change change{path, {}, {}};
    if (std::filesystem::exists(path)) change.replaced = slurp(path);
    const int result = next_.unlink(path);
    if (result == 0) journal_.push_back(std::move(change));
    return result;
  }

 private:
  struct Contents {
    std::string synced;  ///< what the disk has, when dirty
    bool dirty = false;
  };
  /// A name that was made (neither), taken over by a rename (`from`), or removed (`replaced` alone).
  struct Change {
    std::string path, from;
    std::optional<std::string> replaced;
  };

  void undo(const Change& change) {
    if (!change.from.empty()) {
      std::error_code ignored;
      std::filesystem::rename(change.path, change.from, ignored);
      contents_[change.from] = contents_[change.path];
      contents_.erase(change.path);
    } else if (!change.replaced) {
      std::error_code ignored;
      std::filesystem::remove(change.path, ignored);
    }
    if (change.replaced) spit(change.path, *change.replaced);
  }

  std::mutex mutex_;
  std::map<int, std::string> open_;
  std::map<std::string, Contents> contents_;
  std::vector<Change> journal_;
};

}  // namespace varmoe::test
