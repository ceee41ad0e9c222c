#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/cache_dir.hpp"
#include "base/file_system.hpp"
#include "base/log.hpp"
#include "varmoe/tuning.hpp"

/// The writable store of records: one folder, one file per device.
///
///   <cache folder>/tuning/nvidia-h200.json            records; replaced as a whole, never changed in place
///   <cache folder>/tuning/nvidia-h200.json.lock       held while the file is read, merged and replaced;
///   empty, never removed <cache folder>/tuning/nvidia-h200.json.damaged-0  up to -7: what stood there and
///   was no file of records
///
/// Records cost GPU hours. A save reads the file, merges, and puts the result in its place, under the lock:
/// whoever saves at the same moment loses nothing. Never is the records' own file locked: a lock on a file
/// that is renamed excludes nobody.
namespace varmoe::tuningdb {

/// The user's folder of records, beside the cubin cache; empty where that is in memory only.
std::string user_tuning_folder(const CacheDir& cache);

struct SaveReport {
  std::size_t saved = 0;  ///< records that are in the files now as they were given
  std::size_t kept = 0;   ///< records that were not taken, since the file has a better one of that key
  std::vector<std::string> files;      ///< written, or found to hold all of it already
  std::vector<std::string> set_aside;  ///< damaged files, by their new paths
};

struct StoreOptions {
  /// How long a save waits for another one of the same file. It then fails, rather than lose what the other
  /// one saves.
  std::chrono::milliseconds lock_wait{30000};
  mode_t file_mode = 0600;  ///< of files written, less the umask; 0644 for a folder that others read
  FileSystem* file_system = nullptr;  ///< null: the POSIX one. Must outlive the store
};

/// Thread-safe; saves of one file wait for each other, in this process and in others.
class TuningStore {
 public:
  /// `folder` is made (0700) by the first save.
  TuningStore(std::string folder, Log log, StoreOptions options = {});

  /// Merges records into the files of their devices; of two with one key the better is kept
  /// (record_order.hpp). Once it has returned they survive a crash.
  ///
  /// invalid_argument or invalid_config for a record that is out of range or outside the config space: then
  /// nothing is saved. io_error: what was acknowledged before is intact, and the records of one device are
  /// saved or not as a whole; a relative folder, one that is not ours or that others may write, a file that
  /// is a link or no regular one, and a lock that cannot be had are such errors. `unsupported`: the file is
  /// of a newer schema, and left as it is. A damaged file is set aside, with a warning. Where the file system
  /// has no locks, that is said once, and saving goes on without.
  Result<SaveReport> save(std::span<const TuningRecord> records) const;

  const std::string& folder() const noexcept { return folder_; }

 private:
  Status save_file(const std::string& path, std::span<const TuningRecord* const> records,
                   SaveReport& report) const;
  Result<std::string> set_aside(const std::string& path) const;

  std::string folder_;
  Log log_;
  StoreOptions options_;
  FileSystem* fs_;
};

}  // namespace varmoe::tuningdb
