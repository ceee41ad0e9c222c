#include "base/cache_dir.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/text.hpp"

namespace varmoe {
namespace {

constexpr std::uint32_t kWritableByOthers = 022;
constexpr std::uint32_t kRoot = 0;

bool is_absolute(std::string_view path) noexcept {
  return !path.empty() && path.front() == '/';
}

/// Owner and mode of `what` ("folder", "file"), with the remedy when they will not do.
Status check_owner_and_mode(FileSystem& fs, std::string_view what, const std::string& path,
                            const FileInfo& info) {
  const std::uint32_t user = fs.user();
  if (info.user != user && info.user != kRoot) {
    return Error(
        ErrorCode::io_error,
        fmt::format(
            "refused {} '{}': it belongs to user {}, and what is cached is taken only from user {} "
            "(this process) or root; remedy: `chown {} '{}'`, or name another folder",
            what, printable(path, 4096), info.user, user, user, printable(path, 4096)));
  }
  if ((info.mode & kWritableByOthers) != 0) {
    return Error(
        ErrorCode::io_error,
        fmt::format(
            "refused {} '{}': its mode {:04o} lets group or others write, and with that run code in this "
            "process; remedy: `chmod go-w '{}'`, or name another folder",
            what, printable(path, 4096), info.mode, printable(path, 4096)));
  }
  return {};
}

/// stat and check; `info` receives what stat said.
Status check_directory(FileSystem& fs, const std::string& path, FileInfo* info) {
  const int result = fs.stat(path, info);
  if (result < 0) return io_error("use folder", path, -result);
  if (info->type != FileType::directory) return io_error("use folder", path, ENOTDIR);
  return check_owner_and_mode(fs, "folder", path, *info);
}

struct Choice {
  std::string path, source, problem;
};

/// Where the sources say that the cache is; nothing is touched.
Choice choose(FileSystem& fs, const CacheDirSources& sources) {
  const auto named = [](const char* source, const std::string& path) {
    Choice choice{path, source, {}};
    if (!is_absolute(path)) {
      choice.problem = fmt::format(
          "{} is '{}', which is not an absolute path (it would change with the working directory)", source,
          printable(path));
    }
    return choice;
  };
  if (!sources.api.empty()) return named("cache_dir", sources.api);
  if (!sources.variable.empty()) return named("VARMOE_CACHE_DIR", sources.variable);

  std::string why = "XDG_CACHE_HOME is not set";
  if (sources.xdg_cache_home && !sources.xdg_cache_home->empty()) {
    if (is_absolute(*sources.xdg_cache_home))
      return {join_path(*sources.xdg_cache_home, "varmoe"), "XDG_CACHE_HOME", {}};
    why = fmt::format("XDG_CACHE_HOME '{}' is not an absolute path", printable(*sources.xdg_cache_home));
  }
  // Not asked of the user database: a uid without an entry is common in containers, and HOME is what its
  // owner set.
  if (!sources.home || sources.home->empty()) return {{}, {}, why + ", and HOME is not set"};
  if (!is_absolute(*sources.home)) {
    return {{}, {}, fmt::format("{}, and HOME '{}' is not an absolute path", why, printable(*sources.home))};
  }
  FileInfo info;
  if (fs.stat(*sources.home, &info) < 0 || info.type != FileType::directory) {
    // A service's /nonexistent must not come into being because we run as root.
    return {
        {}, {}, fmt::format("{}, and HOME '{}' is not an existing folder", why, printable(*sources.home))};
  }
  return {join_path(join_path(*sources.home, ".cache"), "varmoe"), "HOME", {}};
}

CacheDir memory_only(std::string source, std::string problem, const Log& log) {
  CacheDir dir;
  dir.source = std::move(source);
  dir.problem = std::move(problem);
  log.once(
      "cache_dir:" + dir.problem, LogLevel::warn,
      fmt::format(
          "compiled kernels are kept in memory only, and are compiled again by the next process: {}. Set "
          "VARMOE_CACHE_DIR to a folder of this user's own, or VARMOE_CACHE=off to do without",
          dir.problem));
  return dir;
}

}  // namespace

const char* to_string(CacheDir::Mode mode) noexcept {
  switch (mode) {
    case CacheDir::Mode::read_write:
      return "read_write";
    case CacheDir::Mode::read_only:
      return "read_only";
    case CacheDir::Mode::memory_only:
      return "memory_only";
  }
  return "unknown";
}

Status check_trusted_directory(FileSystem& fs, const std::string& path) {
  FileInfo info;
  return check_directory(fs, path, &info);
}

Status check_trusted_file(FileSystem& fs, const std::string& path, const FileInfo& info) {
  return check_owner_and_mode(fs, "file", path, info);
}

CacheDir resolve_cache_dir(FileSystem& fs, const CacheDirSources& sources, CacheMode mode, const Log& log) {
  if (mode == CacheMode::off) return {};
  Choice choice = choose(fs, sources);
  if (!choice.problem.empty()) return memory_only(choice.source, choice.problem, log);

  FileInfo info;
  const int result = fs.stat(choice.path, &info);
  if (result == -ENOENT) {
    if (mode == CacheMode::ro) {
      log.info("the cache folder '{}' ({}) does not exist, and is not made since the cache is read-only",
               printable(choice.path, 4096), choice.source);
      CacheDir dir;
      dir.source = choice.source;
      return dir;
    }
    if (Status made = make_directories(fs, choice.path); !made.ok()) {
      return memory_only(choice.source, made.error().message(), log);
    }
  }
  if (Status trusted = check_directory(fs, choice.path, &info); !trusted.ok()) {
    return memory_only(choice.source, trusted.error().message(), log);
  }
  if (const int access = fs.access(choice.path, R_OK | X_OK); access < 0) {
    return memory_only(choice.source, io_error("read folder", choice.path, -access).message(), log);
  }

  CacheDir dir{CacheDir::Mode::read_only, choice.path, choice.source, {}};
  if (mode == CacheMode::ro) return dir;
  const int writable = info.user == fs.user() ? fs.access(choice.path, W_OK) : -EACCES;
  if (writable == 0) {
    dir.mode = CacheDir::Mode::read_write;
    return dir;
  }
  dir.problem = io_error("write to folder", choice.path, -writable).message();
  log.once("cache_dir:" + dir.problem, LogLevel::warn,
           fmt::format("the kernel cache is read-only: {}. New kernels are kept in memory only; set "
                       "VARMOE_CACHE=ro if this is "
                       "meant",
                       dir.problem));
  return dir;
}

}  // namespace varmoe
