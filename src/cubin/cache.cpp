#include "cubin/cache.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <exception>

#include "base/cache_dir.hpp"
#include "base/file_lock.hpp"
#include "base/kill_point.hpp"
#include "cubin/cache_state.hpp"
#include "cubin/collect.hpp"

namespace varmoe::cubin {
namespace {

/// The state that engines of one process share, by folder. A folder that exists is known by its inode, so
/// that two paths to it meet.
std::shared_ptr<SharedState> shared_state(FileSystem& fs, const std::string& dir) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<SharedState>> registry;
  FileInfo info;
  const std::string place = !dir.empty() && fs.stat(dir, &info) == 0
                                ? fmt::format("inode {}:{}", info.device, info.inode)
                                : "path " + dir;
  const std::string name = fmt::format("{} {}", fmt::ptr(&fs), place);
  const std::lock_guard lock(mutex);
  std::erase_if(registry, [](const auto& item) { return item.second.expired(); });
  std::weak_ptr<SharedState>& known = registry[name];
  std::shared_ptr<SharedState> state = known.lock();
  if (!state) {
    state = std::make_shared<SharedState>();
    known = state;
  }
  return state;
}

bool cancelled(const FetchOptions& options) {
  return options.cancel != nullptr && options.cancel->load();
}

Error cancelled_error(const Digest& key) {
  return Error(ErrorCode::cancelled,
               fmt::format("cancelled while fetching the kernel of cubin key {}", key.hex()));
}

/// Calls `build`, turning what it throws and what it must not return into errors.
Result<KernelBinary> call_build(const CubinCache::Build& build, const Digest& key, std::string_view arch) {
  const auto bug = [&](const std::string& what) {
    return Error(ErrorCode::internal,
                 fmt::format("compiling cubin key {} for {}: {}", key.hex(), arch, what));
  };
  try {
    Result<KernelBinary> built = build();
    if (!built.ok()) return built;
    if (built->image.empty()) return bug("the compiler returned an empty image and no error");
    if (built->arch != arch) return bug(fmt::format("the compiler returned an image for '{}'", built->arch));
    return built;
  } catch (const std::exception& e) {
    return bug(fmt::format("exception: {}", e.what()));
  } catch (...) {
    return bug("exception of unknown type");
  }
}

}  // namespace

std::string Fetched::origin_text() const {
  switch (origin) {
    case Origin::memory:
      return "memory";
    case Origin::disk:
      return "disk";
    case Origin::read_only:
      return "readonly:" + layer;
    case Origin::compiled:
      return "compiled";
  }
  return "unknown";
}

void CubinCache::State::warn_once(const std::string& kind, const std::string& text) const {
  if (shared->first(kind)) {
    log.warn("{}", text);
  } else {
    log.debug("{}", text);
  }
}

CubinCache CubinCache::open(CacheOptions options, Log log) {
  auto state = std::make_shared<State>();
  state->options = std::move(options);
  state->log = std::move(log);
  const CacheOptions& o = state->options;
  state->fs = o.file_system != nullptr ? o.file_system : &posix_file_system();
  FileSystem& fs = *state->fs;
  const bool off = o.mode == CacheMode::off;
  const std::string root = off || o.dir.empty() ? std::string() : join_path(o.dir, "cubin");
  if (!root.empty() && o.mode == CacheMode::rw) {
    // Failure is not told here: when the folder is there all the same it may be read, and when not, the first
    // store says so.
    static_cast<void>(make_directories(fs, root));
  }
  state->shared = off ? std::make_shared<SharedState>() : shared_state(fs, o.dir);
  const auto refuse = [&](const std::string& dir, bool own, const std::string& why) {
    FolderStats refused;
    refused.dir = dir;
    refused.own = own;
    refused.note = why;
    state->refused.push_back(std::move(refused));
    state->warn_once("refused:" + dir,
                     (own ? "the cubin cache is not used: " : "a read-only cubin layer is not used: ") + why);
  };
  /// The folder and its root must be trusted; a root that is absent yet is not at fault.
  const auto check = [&](const std::string& dir, const std::string& dir_root) -> Status {
    FileInfo info;
    if (fs.stat(dir, &info) == 0) {
      if (Status trusted = check_trusted_directory(fs, dir); !trusted.ok()) return trusted;
    }
    if (fs.stat(dir_root, &info) == 0) return check_trusted_directory(fs, dir_root);
    return {};
  };

  if (!root.empty()) {
    if (Status trusted = check(o.dir, root); !trusted.ok()) {
      refuse(root, true, trusted.error().message());
    } else {
      FileInfo info;
      const bool exists = fs.stat(root, &info) == 0;
      state->writable = o.mode == CacheMode::rw;
      if (const int rc = exists ? fs.access(root, W_OK | X_OK) : 0;
          state->writable && (rc == -EROFS || rc == -EACCES || rc == -EPERM)) {
        // Taken as it is then, like a read-only layer: a kernel made again could not be kept.
        state->writable = false;
        state->warn_once("write",
                         fmt::format("the cubin cache is read-only, new kernels are kept in memory only: {}",
                                     io_error("write to", root, -rc).message()));
      }
      state->own.emplace(fs, root, state->writable ? EntryFolder::Kind::own : EntryFolder::Kind::read_only);
      state->root = root;
    }
  }
  for (const std::string& layer : o.read_only_layers) {
    if (layer.empty()) continue;
    const std::string layer_root = join_path(layer, "cubin");
    FileInfo info;
    Status usable = check(layer, layer_root);
    if (const int rc = fs.stat(layer_root, &info); usable.ok() && rc < 0) {
      usable = io_error("read layer", layer_root, -rc);
    }
    if (!usable.ok()) {
      refuse(layer_root, false, usable.error().message());
      continue;
    }
    state->layers.emplace_back(fs, layer_root, EntryFolder::Kind::read_only);
    state->layer_paths.push_back(layer);
  }
  return CubinCache(std::move(state));
}

CubinCache::CubinCache(std::shared_ptr<State> state) : state_(std::move(state)) {}
CubinCache::CubinCache(CubinCache&&) noexcept = default;
CubinCache& CubinCache::operator=(CubinCache&&) noexcept = default;
CubinCache::~CubinCache() = default;

std::shared_ptr<const KernelBinary> CubinCache::State::read(const EntryFolder& folder, const Digest& key,
                                                            const CompilerVersion& compiler,
                                                            std::string_view arch) const {
  EntryFolder::ReadResult result = folder.read(key, compiler, arch);
  if (result.binary || result.defect.empty()) return std::move(result.binary);
  ++shared->counters.defects;
  if (!result.foreign) {
    warn_once("read",
              fmt::format("cubin cache: reading failed, kernels are compiled instead: {}", result.defect));
  } else if (folder.kind() == EntryFolder::Kind::own) {
    const std::string path = folder.entry_path(key, compiler);
    const std::string fate = folder.set_aside(path, result.info);
    log.info("cubin cache: {}; set aside ({}) and made again", result.defect, fate);
  } else if (own && folder.root() == own->root()) {
    log.info("cubin cache: {}; made again, in memory only", result.defect);
  } else {
    warn_once("defect:" + folder.root(),
              fmt::format("cubin cache: passed over in a read-only layer: {}", result.defect));
  }
  return nullptr;
}

void CubinCache::State::keep(const Digest& key, std::shared_ptr<const KernelBinary> binary,
                             bool as_is) const {
  shared->memory.insert(key, {std::move(binary), as_is}, options.max_memory_bytes);
}

std::optional<Fetched> CubinCache::State::find_in_memory(const Digest& key, std::string_view arch,
                                                         const AtHand& at_hand) const {
  // The question is asked outside of the layer's lock, and only when there is something to compare.
  for (const MemoryLayer::Record& record : shared->memory.find(key)) {
    if (record.binary->arch != arch) continue;
    if (!record.as_is && writable) {
      const std::optional<CompilerVersion> version = at_hand();
      if (version && *version != record.binary->compiler) continue;
    }
    shared->memory.touch(key, record.binary.get());
    ++shared->counters.memory_hits;
    Fetched fetched;
    fetched.binary = record.binary;
    fetched.origin = Origin::memory;
    return fetched;
  }
  return std::nullopt;
}

std::optional<Fetched> CubinCache::State::find_in_own(const Digest& key, std::string_view arch,
                                                      const AtHand& at_hand) const {
  if (!own) return std::nullopt;
  std::vector<CompilerVersion> versions = own->candidates(key);
  if (versions.empty()) return std::nullopt;
  if (writable) {
    // Only now does it matter which compiler is at hand.
    if (const std::optional<CompilerVersion> version = at_hand()) {
      const std::size_t all = versions.size();
      std::erase_if(versions, [&](const CompilerVersion& v) { return v != *version; });
      shared->counters.other_builds += all - versions.size();
    }
  }
  for (const CompilerVersion& version : versions) {
    if (std::shared_ptr<const KernelBinary> binary = read(*own, key, version, arch)) {
      ++shared->counters.disk_hits;
      Fetched fetched;
      fetched.binary = binary;
      fetched.origin = Origin::disk;
      keep(key, std::move(binary), !writable);
      return fetched;
    }
  }
  return std::nullopt;
}

std::optional<Fetched> CubinCache::State::find_in_layers(const Digest& key, std::string_view arch) const {
  if (layers.empty() || shared->is_rejected(key)) return std::nullopt;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const CompilerVersion& version : layers[i].candidates(key)) {
      if (std::shared_ptr<const KernelBinary> binary = read(layers[i], key, version, arch)) {
        ++shared->counters.read_only_hits;
        Fetched fetched;
        fetched.binary = binary;
        fetched.origin = Origin::read_only;
        fetched.layer = layer_paths[i];
        keep(key, std::move(binary), true);
        return fetched;
      }
    }
  }
  return std::nullopt;
}

std::optional<Fetched> CubinCache::State::find(const Digest& key, std::string_view arch,
                                               const AtHand& at_hand) const {
  if (std::optional<Fetched> hit = find_in_memory(key, arch, at_hand)) return hit;
  if (std::optional<Fetched> hit = find_in_own(key, arch, at_hand)) return hit;
  return find_in_layers(key, arch);
}

std::optional<Fetched> CubinCache::lookup(const Digest& key, std::string_view arch,
                                          const AtHand& at_hand) const {
  std::optional<Fetched> hit = state_->find(key, arch, at_hand);
  if (!hit) ++state_->shared->counters.misses;
  return hit;
}

Result<Fetched> CubinCache::State::lead(const Digest& key, std::string_view arch, const Build& build,
                                        const FetchOptions& fetch) const {
  FileLock lock;
  if (writable && make_directories(*fs, own->locks_folder()).ok()) {
    // A lock that cannot be had is told through this cache's own once, so that a folder gone bad is one
    // warning, not two.
    std::string told;
    const Log listener(LogLevel::warn,
                       [&told](LogLevel, std::string_view text) { told = std::string(text); });
    lock = FileLock::acquire(*fs, own->lock_path(key), options.lock_wait, listener, fetch.cancel);
    switch (lock.state()) {
      case FileLock::State::held:
        break;
      case FileLock::State::timed_out:
        ++shared->counters.lock_timeouts;
        log.info("cubin cache: another process has held the lock for {} for {} ms; compiling here as well",
                 key.hex(), options.lock_wait.count());
        break;
      case FileLock::State::cancelled:
        return cancelled_error(key);
      case FileLock::State::unsupported:
        warn_once("locks", told.empty() ? "going on without file locks" : told);
        break;
      case FileLock::State::refused:
        log.debug("{}", told);
        break;
    }
    VARMOE_KILL_POINT("cubin:locked");
    // Whoever held the lock before has made the entry, most likely.
    if (std::optional<Fetched> hit = find_in_own(key, arch, fetch.at_hand)) return *std::move(hit);
  }
  if (cancelled(fetch)) return cancelled_error(key);

  ++shared->counters.misses;
  ++shared->counters.builds;
  Result<KernelBinary> built = call_build(build, key, arch);
  VARMOE_KILL_POINT("cubin:built");
  if (!built.ok()) {
    ++shared->counters.failed_builds;
    return std::move(built).error();
  }
  Fetched fetched;
  fetched.origin = Origin::compiled;
  auto binary = std::make_shared<const KernelBinary>(*std::move(built));
  fetched.binary = binary;
  keep(key, binary, false);
  fetched.stored = writable && write(key, *binary).ok();
  lock.release();
  if (fetched.stored) collect_when_due(binary->image.size());
  return fetched;
}

Result<Fetched> CubinCache::fetch_or_build(const Digest& key, std::string_view arch, const Build& build,
                                           const FetchOptions& options) const {
  SharedState& shared = *state_->shared;
  while (true) {
    if (std::optional<Fetched> hit = state_->find_in_memory(key, arch, options.at_hand))
      return *std::move(hit);
    std::shared_ptr<Flight> flight;
    bool leader = false;
    {
      const std::lock_guard lock(shared.flights_mutex);
      std::shared_ptr<Flight>& slot = shared.flights[key];
      if (!slot) {
        slot = std::make_shared<Flight>();
        leader = true;
      }
      flight = slot;
    }

    if (leader) {
      // A flight may have landed between the look into memory and the start of this one: find() looks there
      // once more.
      std::optional<Fetched> hit;
      Result<Fetched> result = Error(ErrorCode::internal, "fetching ended with an exception");
      try {
        hit = state_->find(key, arch, options.at_hand);
        result = hit ? Result<Fetched>(*std::move(hit)) : state_->lead(key, arch, build, options);
      } catch (const std::bad_alloc&) {
        result = Error(ErrorCode::out_of_memory, fmt::format("no memory to fetch cubin key {}", key.hex()));
      } catch (const std::exception& e) {
        result = Error(ErrorCode::internal, fmt::format("fetching cubin key {}: {}", key.hex(), e.what()));
      }
      {
        const std::lock_guard lock(shared.flights_mutex);
        shared.flights.erase(key);
      }
      {
        const std::lock_guard lock(flight->mutex);
        flight->done = true;
        if (!result.ok() && result.error().code() == ErrorCode::compile_failed)
          flight->error = result.error();
      }
      flight->changed.notify_all();
      return result;
    }

    std::unique_lock lock(flight->mutex);
    while (!flight->done) {
      if (options.cancel == nullptr) {
        flight->changed.wait(lock);
      } else {
        flight->changed.wait_for(lock, std::chrono::milliseconds(20));
        if (!flight->done && cancelled(options)) return cancelled_error(key);
      }
    }
    if (flight->error) return *flight->error;
    // Landed well: memory has it now. Failed for the leader's own reasons (cancelled, no compiler in its
    // engine): next round.
  }
}

Status CubinCache::State::write(const Digest& key, const KernelBinary& binary) const {
  if (options.max_bytes != 0 && binary.image.size() > options.max_bytes) {
    return Error(
        ErrorCode::io_error,
        fmt::format("the kernel of cubin key {} has {} bytes, more than the whole cache may have ({})",
                    key.hex(), binary.image.size(), options.max_bytes));
  }
  if (Status written = own->write(key, binary); !written.ok()) {
    ++shared->counters.failed_stores;
    warn_once("write",
              fmt::format("the cubin cache cannot be written, such kernels are kept in memory only: {}",
                          written.error().message()));
    return written;
  }
  ++shared->counters.stores;
  return {};
}

void CubinCache::State::collect_when_due(std::uint64_t bytes_written) const {
  if (options.max_bytes == 0) return;
  {
    const std::lock_guard lock(shared->mutex);
    shared->bytes_since_collection += bytes_written;
    // Once a process, and then each time that this process alone may have gone 1/32 above the bound.
    if (shared->collected && shared->bytes_since_collection < options.max_bytes / 32) return;
    shared->collected = true;
    shared->bytes_since_collection = 0;
  }
  // Down to 31/32, so that this process's writes until the next collection fit in.
  const GcReport report = collect_garbage(*own, options.max_bytes - options.max_bytes / 32, log);
  shared->counters.evictions += report.entries_removed;
}

Status CubinCache::store(const Digest& key, const KernelBinary& binary) const {
  // What cannot be encoded is refused before it is kept anywhere.
  if (Result<std::vector<std::byte>> encoded = encode_entry(key, binary); !encoded.ok()) {
    return std::move(encoded).error();
  }
  state_->keep(key, std::make_shared<const KernelBinary>(binary), false);
  if (!state_->writable) return {};
  Status written = state_->write(key, binary);
  if (written.ok()) state_->collect_when_due(binary.image.size());
  return written;
}

void CubinCache::reject(const Digest& key) const {
  SharedState& shared = *state_->shared;
  {
    const std::lock_guard lock(shared.mutex);
    shared.rejected.insert(key);
  }
  shared.memory.erase(key);
  if (!state_->writable) return;
  for (const CompilerVersion& version : state_->own->candidates(key)) {
    const std::string path = state_->own->entry_path(key, version);
    FileInfo info;
    if (state_->fs->lstat(path, &info) < 0) continue;
    state_->log.info("cubin cache: '{}' was refused by the driver; {}", path,
                     state_->own->set_aside(path, info));
  }
}

CacheCounters CubinCache::counters() const {
  const auto& c = state_->shared->counters;
  CacheCounters result;
  result.memory_hits = c.memory_hits;
  result.disk_hits = c.disk_hits;
  result.read_only_hits = c.read_only_hits;
  result.misses = c.misses;
  result.builds = c.builds;
  result.failed_builds = c.failed_builds;
  result.stores = c.stores;
  result.failed_stores = c.failed_stores;
  result.defects = c.defects;
  result.other_builds = c.other_builds;
  result.lock_timeouts = c.lock_timeouts;
  result.evictions = c.evictions;
  return result;
}

bool CubinCache::writable() const {
  return state_->writable;
}
const std::string& CubinCache::root() const {
  return state_->root;
}

}  // namespace varmoe::cubin
