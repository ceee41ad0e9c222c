#include "cubin/collect.hpp"

#include <algorithm>
#include <tuple>

#include "base/atomic_file.hpp"
#include "base/file_lock.hpp"
#include "base/kill_point.hpp"

namespace varmoe::cubin {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kRecent = 3600 * kSecond;
constexpr std::int64_t kQuarantineAge = 7 * 24 * 3600 * kSecond;

/// Smaller goes first.
std::tuple<int, std::int64_t> eviction_rank(const FileInfo& info, std::int64_t now) {
  if (info.mtime_ns > now) return {1, info.mtime_ns};
  return {now - info.mtime_ns > kRecent ? 0 : 2, info.mtime_ns};
}

bool remove(FileSystem& fs, const std::string& path, const FileInfo& info) {
  if (info.type == FileType::directory) return fs.rmdir(path) == 0;
  return fs.unlink(path) == 0;
}

}  // namespace

GcReport collect_garbage(const EntryFolder& folder, std::uint64_t max_bytes, const Log& log) {
  GcReport report;
  FileSystem& fs = folder.file_system();
  FileLock lock;
  if (make_directories(fs, folder.locks_folder()).ok()) {
    // Whoever has no lock to take (file system without locks) may collect too: removing twice harms nobody.
    lock = FileLock::acquire(fs, join_path(folder.locks_folder(), "gc"), std::chrono::milliseconds(0), Log());
    if (lock.state() == FileLock::State::timed_out) return report;
  }
  report.ran = true;

  std::vector<EntryFolder::File> entries;
  for (EntryFolder::File& file : folder.files()) {
    if (!file.entry_of_any_format) continue;
    report.bytes_before += file.info.size;
    entries.push_back(std::move(file));
  }
  report.entries_before = entries.size();
  VARMOE_KILL_POINT("cubin:gc_listed");

  const std::int64_t now = fs.now_ns();
  std::uint64_t bytes = report.bytes_before;
  const bool over = max_bytes != 0 && bytes > max_bytes;
  if (over) {
    std::sort(entries.begin(), entries.end(), [now](const EntryFolder::File& a, const EntryFolder::File& b) {
      const auto rank_a = eviction_rank(a.info, now);
      const auto rank_b = eviction_rank(b.info, now);
      return rank_a != rank_b ? rank_a < rank_b : a.name < b.name;
    });
  }
  for (const EntryFolder::File& file : entries) {
    FileInfo info;
    if (over && bytes > max_bytes) {
      // Spared when somebody used or replaced it since the listing. Between this look and the removal it
      // still may be; then its user has it open, or misses next time.
      if (fs.lstat(file.path, &info) < 0) {
        bytes -= file.info.size;  // gone already
      } else if (info.inode == file.info.inode && info.mtime_ns == file.info.mtime_ns &&
                 remove(fs, file.path, info)) {
        bytes -= file.info.size;
        report.bytes_removed += file.info.size;
        ++report.entries_removed;
        VARMOE_KILL_POINT("cubin:gc_removed");
      }
      continue;
    }
    if (file.info.mtime_ns > now && file.info.type == FileType::regular && file.info.links == 1) {
      static_cast<void>(fs.set_mtime(file.path, now));
    }
  }

  for (const std::string& shard : folder.shards()) {
    report.leftovers_removed += sweep_temps(fs, join_path(folder.root(), shard));
  }
  report.leftovers_removed += sweep_temps(fs, folder.root());
  for (const EntryFolder::File& file : folder.quarantine()) {
    if (!over && now - file.info.mtime_ns < kQuarantineAge) continue;
    if (remove(fs, file.path, file.info)) ++report.leftovers_removed;
  }
  if (report.entries_removed > 0) {
    log.debug("cubin cache '{}': evicted {} of {} entries ({} of {} bytes) to keep within {} bytes",
              folder.root(), report.entries_removed, report.entries_before, report.bytes_removed,
              report.bytes_before, max_bytes);
  }
  return report;
}

}  // namespace varmoe::cubin
