#include "tuningdb/store.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <map>

#include "base/atomic_file.hpp"
#include "base/file_lock.hpp"
#include "base/kill_point.hpp"
#include "base/text.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_file.hpp"

namespace varmoe::tuningdb {
namespace {

constexpr int kMaxSetAside = 8;

/// The lock, or why nothing may be saved. Without locks in the file system it holds nothing.
Result<FileLock> lock_file(FileSystem& fs, const std::string& path, std::chrono::milliseconds wait,
                           const Log& log) {
  const std::string lock_path = path + ".lock";
  FileLock lock = FileLock::acquire(fs, lock_path, wait, Log());
  const std::string shown = printable(lock_path, 4096);
  switch (lock.state()) {
    case FileLock::State::held:
      return lock;
    case FileLock::State::unsupported:
      log.once("tuningdb:lock:" + parent_path(path), LogLevel::warn,
               fmt::format("the file system of '{}' has no locks: tuning records are saved without; "
                           "processes that save at "
                           "the same moment may lose each other's",
                           printable(parent_path(path), 4096)));
      return lock;
    case FileLock::State::timed_out:
    case FileLock::State::cancelled:
      return Error(
          ErrorCode::io_error,
          fmt::format("'{}' was held by another process for {} ms; nothing was saved", shown, wait.count()));
    case FileLock::State::refused:
      break;
  }
  return Error(ErrorCode::io_error,
               fmt::format("'{}' cannot be opened as a lock file of our own; nothing was saved", shown));
}

Status check_all(std::span<const TuningRecord> records) {
  for (const TuningRecord& record : records) {
    const auto named = [&record](const Error& error) {
      return Error(error.code(), fmt::format("record of {}: {}", to_string(record.key), error.message()));
    };
    if (Status status = check_record(record); !status) return named(status.error());
    if (Status status = check_config(record); !status) return named(status.error());
  }
  return {};
}

}  // namespace

std::string user_tuning_folder(const CacheDir& cache) {
  return cache.path.empty() ? std::string() : join_path(cache.path, "tuning");
}

TuningStore::TuningStore(std::string folder, Log log, StoreOptions options)
    : folder_(std::move(folder)),
      log_(std::move(log)),
      options_(options),
      fs_(options.file_system != nullptr ? options.file_system : &posix_file_system()) {}

Result<SaveReport> TuningStore::save(std::span<const TuningRecord> records) const {
  if (folder_.empty() || folder_.front() != '/') {
    return Error(ErrorCode::io_error,
                 fmt::format("tuning records cannot be saved in '{}', which is not an absolute path",
                             printable(folder_)));
  }
  if (Status status = check_all(records); !status) return std::move(status).error();
  std::map<std::string, std::vector<const TuningRecord*>> by_file;
  for (const TuningRecord& record : records) by_file[record_file_name(record.key.device)].push_back(&record);

  if (Status status = make_directories(*fs_, folder_); !status) return std::move(status).error();
  if (Status status = check_trusted_directory(*fs_, folder_); !status) return std::move(status).error();
  SaveReport report;
  for (const auto& [name, of_file] : by_file) {
    const std::string path = join_path(folder_, name);
    if (Status status = save_file(path, of_file, report); !status) return std::move(status).error();
    report.files.push_back(path);
  }
  return report;
}

Status TuningStore::save_file(const std::string& path, std::span<const TuningRecord* const> records,
                              SaveReport& report) const {
  auto lock = lock_file(*fs_, path, options_.lock_wait, log_);
  if (!lock) return std::move(lock).error();
  VARMOE_KILL_POINT("tuningdb:locked");
  sweep_temps(*fs_, folder_);

  FileInfo info;
  auto bytes = read_regular_file_if_exists(*fs_, path, kMaxFileBytes, HardLinks::refuse, &info);
  if (!bytes) return std::move(bytes).error();
  RecordFile file;
  std::string before;
  if (bytes->has_value()) {
    if (Status trusted = check_trusted_file(*fs_, path, info); !trusted) return trusted;
    before = as_text(**bytes);
    auto parsed = parse_record_file(before, path);
    if (parsed) {
      file = std::move(*parsed);
    } else if (parsed.error().code() == ErrorCode::unsupported) {
      return std::move(parsed).error();
    } else {
      auto moved = set_aside(path);
      if (!moved) return std::move(moved).error();
      log_.warn("{}; it was moved to '{}', and a new file is begun", parsed.error().message(),
                printable(*moved, 4096));
      report.set_aside.push_back(std::move(*moved));
      before.clear();
    }
  }
  VARMOE_KILL_POINT("tuningdb:read");

  std::size_t saved = 0;
  for (const TuningRecord* record : records) saved += merge_record(file, *record) ? 1 : 0;
  const auto text = record_file_text(file);
  if (!text)
    return Error(text.error().code(), fmt::format("'{}': {}", printable(path, 4096), text.error().message()));
  if (*text != before) {
    AtomicWriteOptions options;
    options.mode = options_.file_mode;
    if (Status status = write_atomically(*fs_, path, as_bytes(*text), options); !status) return status;
  }
  VARMOE_KILL_POINT("tuningdb:saved");
  report.saved += saved;
  report.kept += records.size() - saved;
  return {};
}

Result<std::string> TuningStore::set_aside(const std::string& path) const {
  for (int i = 0; i < kMaxSetAside; ++i) {
    const std::string to = fmt::format("{}.damaged-{}", path, i);
    FileInfo info;
    const int status = fs_->lstat(to, &info);
    if (status == 0) continue;
    if (status != -ENOENT) return io_error("stat", to, -status);
    if (const int moved = fs_->rename(path, to); moved < 0)
      return io_error("rename a damaged file to", to, -moved);
    return to;
  }
  return Error(
      ErrorCode::io_error,
      fmt::format("'{}' is damaged, and {} such files were set aside before; look at them and remove them",
                  printable(path, 4096), kMaxSetAside));
}

}  // namespace varmoe::tuningdb
