#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

/// The one table of VARMOE_* variables and the one place that reads them.
namespace varmoe {

enum class EnvKind : std::uint8_t {
  choice,  ///< one of a fixed list of words
  integer,
  byte_size,  ///< "10GiB"
  absolute_path,
  path,
  path_list,  ///< absolute paths, separated by ':'
  library,    ///< an absolute path, or a bare file name for the loader to find
  arch,       ///< "sm_90a"
  text,
};

/// One variable, for people: `varmoe-tune env` and the README print this.
struct EnvVariable {
  const char* name;  ///< with the prefix: "VARMOE_CACHE_DIR"
  EnvKind kind;
  const char* default_value;  ///< as it would be written; "" when there is none
  const char* choices;        ///< what is accepted
  const char* help;           ///< one line
};

/// Every variable, in the order in which people should read them.
std::span<const EnvVariable> env_table() noexcept;


inline constexpr std::uint64_t kDefaultCacheMaxBytes = std::uint64_t{5} << 30;
inline constexpr LogLevel kDefaultLogLevel = LogLevel::warn;

/// What the environment says: read once, then unchanging, whatever happens to the process's environment.
/// Values are checked for form here; what they name (a folder, a device profile, a tile) is checked by
/// whoever uses it. An unset variable and an empty one are the same. Copyable; const access is thread-safe.
class Environment {
 public:
  /// Nothing is set.
  Environment() = default;

  /// Of this process. Must not run while another thread changes the environment (setenv has no lock to
  /// share).
  static Result<Environment> read();
  /// Of a block "NAME=value", null-terminated, as `environ`. A bad value is invalid_environment naming
  /// variable, value and choices. Of a name that occurs twice the first counts, as for getenv, with a
  /// warning. An unknown VARMOE_* name is a warning with the nearest known name.
  static Result<Environment> read(const char* const* block);

  // Each is nullopt or empty when its variable is not set.
  std::string cache_dir;                        ///< VARMOE_CACHE_DIR
  std::optional<CacheMode> cache;               ///< VARMOE_CACHE
  std::optional<std::uint64_t> cache_max_size;  ///< VARMOE_CACHE_MAX_SIZE; 0: no limit
  std::vector<std::string> cubin_path;          ///< VARMOE_CUBIN_PATH
  std::optional<JitMode> jit;                   ///< VARMOE_JIT
  std::string arch;                             ///< VARMOE_ARCH, e.g. "sm_90a"
  std::string device_profile;                   ///< VARMOE_DEVICE_PROFILE
  std::string nvrtc_lib;                        ///< VARMOE_NVRTC_LIB
  std::optional<int> compile_threads;           ///< VARMOE_COMPILE_THREADS; 0: one per core
  std::optional<LogLevel> log;                  ///< VARMOE_LOG
  std::string dump_dir;                         ///< VARMOE_DUMP_DIR
  std::string kernels_dir;                      ///< VARMOE_KERNELS_DIR
  std::optional<bool> lineinfo;                 ///< VARMOE_LINEINFO
  std::string config;                           ///< VARMOE_CONFIG: tile overrides, unparsed
  std::string fc1_config;                       ///< VARMOE_FC1_CONFIG
  std::string fc2_config;                       ///< VARMOE_FC2_CONFIG
  std::string dh_config, dx_config;             ///< VARMOE_DH_CONFIG, VARMOE_DX_CONFIG
  std::string dw1_config, dw2_config;           ///< VARMOE_DW1_CONFIG, VARMOE_DW2_CONFIG
  std::vector<std::string> tuning_db;           ///< VARMOE_TUNING_DB
  std::optional<TuneMode> tune;                 ///< VARMOE_TUNE
  std::string record_misses;                    ///< VARMOE_RECORD_MISSES

  // Not ours, but needed to place the cache; unchecked.
  std::optional<std::string> xdg_cache_home;  ///< XDG_CACHE_HOME
  std::optional<std::string> home;            ///< HOME

  /// Sentences for the log: unknown names, names given twice.
  std::vector<std::string> warnings;

  /// The variables that are set, in table order, with their values as given.
  struct Setting {
    std::string name;
    std::string value;
  };
  std::vector<Setting> settings;
};

}  // namespace varmoe
