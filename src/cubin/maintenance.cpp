// The verbs of `varmoe-tune cache …`: they look at files, never at the memory layer.
#include <fmt/format.h>

#include <algorithm>

#include "base/atomic_file.hpp"
#include "cubin/cache.hpp"
#include "cubin/cache_state.hpp"
#include "cubin/collect.hpp"

namespace varmoe::cubin {
namespace {

FolderStats stats_of(const EntryFolder& folder, bool own) {
  FolderStats stats;
  stats.dir = folder.root();
  stats.own = own;
  FileInfo info;
  const int rc = folder.file_system().stat(folder.root(), &info);
  stats.readable = rc == 0 && info.type == FileType::directory;
  if (!stats.readable) {
    stats.note = rc == 0 ? "not a directory" : io_error("read", folder.root(), -rc).message();
    return stats;
  }
  for (const EntryFolder::File& file : folder.files()) {
    if (file.entry_of_any_format) {
      ++stats.entries;
      stats.bytes += file.info.size;
    } else if (file.temporary) {
      ++stats.temporaries;
    } else {
      ++stats.foreign;
    }
  }
  for (const EntryFolder::File& file : folder.quarantine()) {
    ++stats.set_aside;
    stats.set_aside_bytes += file.info.size;
  }
  return stats;
}

}  // namespace

CacheStats CubinCache::stats() const {
  CacheStats stats;
  if (state_->own) stats.folders.push_back(stats_of(*state_->own, true));
  for (const EntryFolder& layer : state_->layers) stats.folders.push_back(stats_of(layer, false));
  for (const FolderStats& refused : state_->refused) stats.folders.push_back(refused);
  stats.max_bytes = state_->options.max_bytes;
  stats.memory_entries = state_->shared->memory.entries();
  stats.memory_bytes = state_->shared->memory.bytes();
  stats.counters = counters();
  return stats;
}

std::vector<EntryInfo> CubinCache::list() const {
  std::vector<EntryInfo> result;
  const auto add = [&](const EntryFolder& folder, const std::string& layer) {
    for (const EntryFolder::File& file : folder.files()) {
      if (!file.entry) continue;
      // Reading touches what was not used for a while; a listing is no use.
      const EntryFolder reader(folder.file_system(), folder.root(), EntryFolder::Kind::read_only);
      const EntryFolder::ReadResult read = reader.read(file.entry->key, file.entry->compiler, {});
      if (!read.binary) continue;
      EntryInfo info;
      info.key = file.entry->key;
      info.compiler = file.entry->compiler;
      info.arch = read.binary->arch;
      info.entry_name = read.binary->entry_name;
      info.is_ptx = read.binary->is_ptx;
      info.image_bytes = read.binary->image.size();
      info.file_bytes = file.info.size;
      info.last_used_ns = file.info.mtime_ns;
      info.path = file.path;
      info.layer = layer;
      result.push_back(std::move(info));
    }
  };
  if (state_->own) add(*state_->own, {});
  for (std::size_t i = 0; i < state_->layers.size(); ++i) add(state_->layers[i], state_->layer_paths[i]);
  return result;
}

VerifyReport CubinCache::verify(bool set_aside) const {
  VerifyReport report;
  const auto check = [&](const EntryFolder& folder) {
    for (const EntryFolder::File& file : folder.files()) {
      // Other format versions are other libraries' business; a good name in the wrong shard is nobody's
      // entry.
      if (!file.entry) {
        if (parse_entry_file_name(file.name)) {
          ++report.checked;
          report.bad.push_back({file.path, "in the wrong folder for its key"});
          if (set_aside && folder.kind() == EntryFolder::Kind::own) folder.set_aside(file.path, file.info);
        }
        continue;
      }
      EntryFolder::ReadResult read = folder.read(file.entry->key, file.entry->compiler, {});
      if (!read.binary && read.defect.empty()) continue;  // gone meanwhile
      ++report.checked;
      if (read.binary) {
        ++report.good;
        continue;
      }
      if (set_aside && read.foreign && folder.kind() == EntryFolder::Kind::own)
        folder.set_aside(file.path, read.info);
      report.bad.push_back({file.path, std::move(read.defect)});
    }
  };
  if (state_->own) check(*state_->own);
  for (const EntryFolder& layer : state_->layers) check(layer);
  return report;
}

Status CubinCache::extract(const Digest& key, const std::string& out_path) const {
  const std::optional<Fetched> found = find(key);
  if (!found) {
    return Error(ErrorCode::io_error,
                 fmt::format("no sound entry of cubin key {} in the cache or its layers; `varmoe-tune "
                             "cache stats` says where they are",
                             key.hex()));
  }
  AtomicWriteOptions options;
  options.mode = 0644;
  return write_atomically(*state_->fs, out_path, found->binary->image, options);
}

std::optional<Fetched> CubinCache::find(const Digest& key) const {
  const auto look = [&](const EntryFolder& folder, Origin origin,
                        const std::string& layer) -> std::optional<Fetched> {
    for (const CompilerVersion& version : folder.candidates(key)) {
      EntryFolder::ReadResult read = folder.read(key, version, {});
      if (!read.binary) continue;
      Fetched fetched;
      fetched.binary = std::move(read.binary);
      fetched.origin = origin;
      fetched.layer = layer;
      return fetched;
    }
    return std::nullopt;
  };
  if (state_->own) {
    if (std::optional<Fetched> found = look(*state_->own, Origin::disk, {})) return found;
  }
  for (std::size_t i = 0; i < state_->layers.size(); ++i) {
    if (std::optional<Fetched> found = look(state_->layers[i], Origin::read_only, state_->layer_paths[i]))
      return found;
  }
  return std::nullopt;
}

GcReport CubinCache::gc(std::optional<std::uint64_t> max_bytes) const {
  if (!state_->writable) return {};
  const GcReport report =
      collect_garbage(*state_->own, max_bytes.value_or(state_->options.max_bytes), state_->log);
  state_->shared->counters.evictions += report.entries_removed;
  return report;
}

Result<GcReport> CubinCache::clear() const {
  state_->shared->memory.clear();
  GcReport report;
  if (!state_->own) return report;
  if (!state_->writable) {
    return Error(ErrorCode::io_error,
                 fmt::format("the cubin cache '{}' is read-only and was not cleared", state_->root));
  }
  report.ran = true;
  FileSystem& fs = *state_->fs;
  std::uint64_t failed = 0;
  std::string first_failure;
  const auto remove = [&](const EntryFolder::File& file) {
    const int rc = file.info.type == FileType::directory ? fs.rmdir(file.path) : fs.unlink(file.path);
    if (rc == 0) return true;
    if (rc != -ENOENT && failed++ == 0) first_failure = io_error("remove", file.path, -rc).message();
    return false;
  };
  for (const EntryFolder::File& file : state_->own->files()) {
    if (!file.entry_of_any_format) continue;
    ++report.entries_before;
    report.bytes_before += file.info.size;
    if (!remove(file)) continue;
    ++report.entries_removed;
    report.bytes_removed += file.info.size;
  }
  for (const EntryFolder::File& file : state_->own->quarantine()) {
    if (remove(file)) ++report.leftovers_removed;
  }
  static_cast<void>(fs.unlink(state_->own->stamps_path()));
  for (const std::string& shard : state_->own->shards()) {
    // The folders stay: a writer may be about to use one.
    report.leftovers_removed += sweep_temps(fs, join_path(state_->root, shard));
  }
  if (failed > 0) {
    return Error(ErrorCode::io_error,
                 fmt::format("{} of the cubin cache's files could not be removed; the first: {}", failed,
                             first_failure));
  }
  return report;
}

}  // namespace varmoe::cubin
