#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cubin/cache.hpp"
#include "cubin/entry_folder.hpp"
#include "cubin/memory_layer.hpp"

namespace varmoe::cubin {

/// One compile under way; the threads that want the same key wait here.
struct Flight {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::optional<Error> error;  ///< of the build, when it concerns everyone; valid when done
};

/// What all CubinCaches of this process on one folder have in common.
struct SharedState {
  MemoryLayer memory;

  std::mutex flights_mutex;
  std::map<Digest, std::shared_ptr<Flight>> flights;

  struct {
    std::atomic<std::uint64_t> memory_hits{0}, disk_hits{0}, read_only_hits{0}, misses{0}, builds{0},
        failed_builds{0}, stores{0}, failed_stores{0}, defects{0}, other_builds{0}, lock_timeouts{0},
        evictions{0};
  } counters;

  std::mutex mutex;
  std::set<std::string> said;  ///< warnings given, by kind
  std::set<Digest> rejected;   ///< keys for which read-only layers are ignored
  bool collected = false;      ///< a collection was tried in this process
  std::uint64_t bytes_since_collection = 0;

  /// Whether a warning of this kind is given for the first time.
  bool first(const std::string& kind) {
    const std::lock_guard lock(mutex);
    return said.insert(kind).second;
  }
  bool is_rejected(const Digest& key) {
    const std::lock_guard lock(mutex);
    return rejected.count(key) != 0;
  }
};

struct CubinCache::State {
  CacheOptions options;
  Log log;
  FileSystem* fs = nullptr;
  std::shared_ptr<SharedState> shared;
  std::optional<EntryFolder> own;
  bool writable = false;
  std::vector<EntryFolder> layers;
  std::vector<std::string> layer_paths;  ///< as given, beside `layers`
  std::vector<FolderStats> refused;      ///< folders that are not used, with why
  std::string root;                      ///< of `own`

  void warn_once(const std::string& kind, const std::string& text) const;

  std::optional<Fetched> find_in_memory(const Digest& key, std::string_view arch,
                                        const AtHand& at_hand) const;
  std::optional<Fetched> find_in_own(const Digest& key, std::string_view arch, const AtHand& at_hand) const;
  std::optional<Fetched> find_in_layers(const Digest& key, std::string_view arch) const;
  std::optional<Fetched> find(const Digest& key, std::string_view arch, const AtHand& at_hand) const;
  void keep(const Digest& key, std::shared_ptr<const KernelBinary> binary, bool as_is) const;
  /// The binary of a sound entry, or null; defects are counted, told, and set aside where the folder is ours.
  std::shared_ptr<const KernelBinary> read(const EntryFolder& folder, const Digest& key,
                                           const CompilerVersion& compiler, std::string_view arch) const;

  Result<Fetched> lead(const Digest& key, std::string_view arch, const Build& build,
                       const FetchOptions& options) const;
  Status write(const Digest& key, const KernelBinary& binary) const;
  void collect_when_due(std::uint64_t bytes_written) const;
};

}  // namespace varmoe::cubin
