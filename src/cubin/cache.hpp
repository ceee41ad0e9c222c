#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/digest.hpp"
#include "base/kernel_artifact.hpp"
#include "base/log.hpp"
#include "cubin/at_hand.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

namespace varmoe {
class FileSystem;
}

/// The cubin cache: memory → the user's folder → read-only layers. Knows no CUDA and no compiler.
///
///   <folder>/cubin/<2 hex>/<key>-<major>.<minor>.<build>.vmc1   one entry (grammar: entry.hpp)
///   <folder>/cubin/locks/<3 hex>    held while such a key is compiled; empty, never removed
///   <folder>/cubin/locks/gc         held by the one garbage collection at work
///   <folder>/cubin/quarantine/0…7   the last damaged files, for a look
///   <folder>/cubin/compilers        compiler_stamps.hpp
///
/// A read-only layer is such a folder, copied or mounted. Cubins are disposable: whatever is damaged, foreign
/// or mismatched is a miss, set aside, and made again; nothing found in a folder is ever an error. Failing
/// writes cost one warning and the next process's compile time, nothing else.
///
/// Trust: cubins are code that runs on the GPU with this process's data. The checksum finds accidents, not
/// attackers. Against those there is ownership: the folder is ours (0700, or at least not writable by
/// others), entries in it are ours or root's, and read-only layers belong to root or us and are writable by
/// nobody else. Who can write as us can replace cubins.
namespace varmoe::cubin {

struct CacheOptions {
  /// The user's cache folder, as resolve_cache_dir (base/cache_dir.hpp) answered. Empty: memory and read-only
  /// layers only.
  std::string dir;
  /// rw; ro: the folder is read like a read-only layer and never written; off: it is neither read nor written,
  /// and new kernels are kept in memory for this CubinCache alone. Read-only layers serve in every mode.
  CacheMode mode = CacheMode::rw;
  /// Bound on the bytes of the folder's entries; 0: none. Least recently used entries go first.
  std::uint64_t max_bytes = std::uint64_t{5} << 30;
  /// Prebuilt layers (VARMOE_CUBIN_PATH), first wins.
  std::vector<std::string> read_only_layers;
  /// How long a process waits for another one that compiles the same key before it compiles the key itself.
  std::chrono::milliseconds lock_wait{10000};
  /// Bound on the bytes of images kept in memory; least recently used ones go first. 0: none.
  std::uint64_t max_memory_bytes = std::uint64_t{512} << 20;
  /// null: the POSIX one. Must outlive the cache.
  FileSystem* file_system = nullptr;
};

enum class Origin : std::uint8_t { memory, disk, read_only, compiled };

/// A kernel and where it came from. The binary is immutable and shared.
struct Fetched {
  std::shared_ptr<const KernelBinary> binary;
  Origin origin = Origin::memory;
  std::string layer;    ///< the folder, for read_only
  bool stored = false;  ///< for compiled: written to the folder
  /// "memory", "disk", "readonly:<path>", "compiled".
  std::string origin_text() const;
};

struct FetchOptions {
  AtHand at_hand;
  /// Looked at while waiting for another thread or process; true: fetch_or_build returns `cancelled`.
  const std::atomic<bool>* cancel = nullptr;
};

/// Counters of one folder in this process, shared by every CubinCache on it.
struct CacheCounters {
  std::uint64_t memory_hits = 0, disk_hits = 0, read_only_hits = 0, misses = 0;
  std::uint64_t builds = 0, failed_builds = 0;
  std::uint64_t stores = 0, failed_stores = 0;
  std::uint64_t defects = 0;        ///< damaged, foreign or mismatched files met
  std::uint64_t other_builds = 0;   ///< sound entries passed over because another NVRTC made them
  std::uint64_t lock_timeouts = 0;  ///< another process took too long, so the key was compiled here too
  std::uint64_t evictions = 0;
};

/// What lies in a folder.
struct EntryInfo {
  Digest key;
  CompilerVersion compiler;
  std::string arch, entry_name;
  bool is_ptx = false;
  std::uint64_t image_bytes = 0, file_bytes = 0;
  std::int64_t last_used_ns = 0;  ///< since the epoch, within ten minutes or so
  std::string path;
  std::string layer;  ///< empty: the user's own folder
};

struct FolderStats {
  std::string dir;        ///< <folder>/cubin
  bool own = false;       ///< the user's own folder, not a read-only layer
  bool readable = false;  ///< false: absent or refused; `note` says why
  std::string note;
  std::uint64_t entries = 0, bytes = 0;
  std::uint64_t set_aside = 0, set_aside_bytes = 0;
  std::uint64_t temporaries = 0, foreign = 0;
};
struct CacheStats {
  std::vector<FolderStats> folders;  ///< the user's own first, then layers in order
  std::uint64_t max_bytes = 0;
  std::uint64_t memory_entries = 0, memory_bytes = 0;
  CacheCounters counters;
};

struct GcReport {
  bool ran = false;  ///< false: nothing to do here, or another collection is at work
  std::uint64_t entries_before = 0, bytes_before = 0;
  std::uint64_t entries_removed = 0, bytes_removed = 0;
  std::uint64_t leftovers_removed = 0;  ///< old temporaries, abandoned locks, quarantine
};

struct VerifyReport {
  struct Bad {
    std::string path;
    std::string reason;
  };
  std::uint64_t checked = 0, good = 0;
  std::vector<Bad> bad;
};

/// Thread-safe. Cheap to open: engines of one process that open the same folder share memory layer, counters
/// and the one compile per key.
class CubinCache {
 public:
  using Build = std::function<Result<KernelBinary>()>;

  /// Never fails: a folder that is refused (not ours, writable by others) or cannot be made is one warning
  /// with the remedy, and the cache works in memory; a refused layer is one warning and left out.
  static CubinCache open(CacheOptions options, Log log);

  CubinCache(CubinCache&&) noexcept;
  CubinCache& operator=(CubinCache&&) noexcept;
  ~CubinCache();

  /// Memory, then the folder, then the layers. In the user's own writable folder an entry of another build
  /// than at_hand() is passed over; elsewhere, and where at_hand() is nullopt, entries are taken as they are.
  std::optional<Fetched> lookup(const Digest& key, std::string_view arch, const AtHand& at_hand = {}) const;

  /// The whole road: lookup; else one of the threads and (where locks work) processes that want this key
  /// calls `build`, the others get what it made. The result is kept in memory and stored. `compile_failed` is
  /// returned to all threads that waited for it; after any other error, which is the caller's own affair
  /// (cancelled, no compiler in its engine), the next waiting thread tries itself. Errors are remembered
  /// nowhere. `build` may be called concurrently for different keys; it must not fetch the same key; what it
  /// throws becomes `internal`. A binary of another arch than asked for, or without image, is `internal`.
  Result<Fetched> fetch_or_build(const Digest& key, std::string_view arch, const Build& build,
                                 const FetchOptions& options = {}) const;

  /// Keeps a binary in memory and writes it to the folder. io_error when it could not be written (warned of
  /// once as well); ok when there is no writable folder.
  Status store(const Digest& key, const KernelBinary& binary) const;

  /// The driver refused this kernel as invalid: forgets it, sets the own entry aside, and ignores read-only
  /// layers for this key from now on, so that the next fetch_or_build makes it once more. Not for a driver
  /// that is too old.
  void reject(const Digest& key) const;

  CacheStats stats() const;
  /// Every sound entry of the own folder, then of the layers, sorted by key in each.
  std::vector<EntryInfo> list() const;
  /// Reads and checks every entry. `set_aside`: moves bad ones of the own folder to its quarantine.
  VerifyReport verify(bool set_aside = false) const;
  /// The entry of a key for whatever arch, of the newest compiler where there are several, from the files
  /// alone.
  std::optional<Fetched> find(const Digest& key) const;
  /// Writes the raw image (cubin or PTX) of a key to a file, replacing it. io_error naming the key when there
  /// is none.
  Status extract(const Digest& key, const std::string& out_path) const;

  /// Evicts down to `max_bytes` (default: the cache's own bound) and sweeps leftovers. Safe against readers,
  /// writers and other collections; runs by itself now and then after stores.
  GcReport gc(std::optional<std::uint64_t> max_bytes = std::nullopt) const;
  /// Removes every entry of the own folder and everything set aside, and forgets the memory layer. io_error
  /// lists what could not be removed. Temporaries of writers at work survive.
  Result<GcReport> clear() const;

  CacheCounters counters() const;
  /// Whether stores go to a folder.
  bool writable() const;
  /// <folder>/cubin, or empty.
  const std::string& root() const;

 private:
  struct State;
  explicit CubinCache(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace varmoe::cubin
