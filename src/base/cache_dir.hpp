#pragma once

#include <optional>
#include <string>

#include "base/file_system.hpp"
#include "base/log.hpp"
#include "varmoe/engine.hpp"

/// Where the writable cubin cache lies, and whom to trust. Cubins are machine code: whoever can write the
/// folder can run code in every process that reads it. So the cache is ours alone, and read-only layers
/// belong to root or to us.
namespace varmoe {

/// What the choice is made from; see Environment for where the values come from.
struct CacheDirSources {
  std::string api = {};       ///< EngineOptions::cache_dir, or a command line's --cache-dir
  std::string variable = {};  ///< VARMOE_CACHE_DIR
  std::optional<std::string> xdg_cache_home = {};  ///< XDG_CACHE_HOME; ignored unless absolute
  std::optional<std::string> home =
      {};  ///< HOME; ignored unless it is an absolute path of an existing folder
};

struct CacheDir {
  enum class Mode : std::uint8_t { read_write, read_only, memory_only };
  Mode mode = Mode::memory_only;
  std::string path;  ///< empty when memory_only
  std::string
      source;  ///< "cache_dir", "VARMOE_CACHE_DIR", "XDG_CACHE_HOME", "HOME", or "" when there is none
  std::string
      problem;  ///< why it is not read_write though that was asked for, with the remedy; empty otherwise
};

const char* to_string(CacheDir::Mode mode) noexcept;

/// The first source that names a folder decides: api → VARMOE_CACHE_DIR → $XDG_CACHE_HOME/varmoe →
/// $HOME/.cache/varmoe; none: memory only. Never /tmp by itself, never relative to the working directory. The
/// folder is made (0700) where it is missing and `mode` is rw. A folder that fails check_directory is
/// not used: memory only, one warning with the remedy. A sound one that cannot be written (read-only mount,
/// owned by root) is read_only, with one warning when rw was asked for.
CacheDir resolve_cache_dir(FileSystem& fs, const CacheDirSources& sources, CacheMode mode, const Log& log);

/// Ours or root's, and not writable by group or others; follows a symlink to the folder. The error carries
/// the remedy. This is the condition for read-only layers too (VARMOE_CUBIN_PATH: root-built images run under
/// arbitrary users).
Status check_trusted_directory(FileSystem& fs, const std::string& path);

/// As check_trusted_directory for one open file's owner and mode: the entry `path` with what fstat said of
/// it.
Status check_trusted_file(FileSystem& fs, const std::string& path, const FileInfo& info);

}  // namespace varmoe
