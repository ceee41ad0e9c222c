#include "base/env.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <set>

#include "base/text.hpp"

extern char** environ;

namespace varmoe {
namespace {

constexpr std::string_view kPrefix = "VARMOE_";
constexpr std::size_t kMaxUnknownWarnings = 16;
constexpr std::uint64_t kMaxCompileThreads = 1024;

constexpr const char* kTilesHelp =
    "[tokens=1-64,]block_m=128,block_n=256,…; several separated by ';'; keys left out keep the value chosen "
    "without it";

constexpr const char* kGradientHelp =
    "schedule=wgmma,block_m=128,block_n=256,stages=4; keys left out keep the value chosen without it";

// In the order in which `varmoe-tune env` and the README show them.
constexpr EnvVariable kTable[] = {
    {"VARMOE_CACHE_DIR", EnvKind::absolute_path, "", "absolute path",
     "folder of the compiled-kernel cache; else $XDG_CACHE_HOME/varmoe, else $HOME/.cache/varmoe, else "
     "memory only"},
    {"VARMOE_CACHE", EnvKind::choice, "rw", "rw, ro, off", "how that folder is used; off: not at all (VARMOE_CUBIN_PATH still is)"},
    {"VARMOE_CACHE_MAX_SIZE", EnvKind::byte_size, "5GiB", "bytes, or a number with K, M, G or T; 0: no limit",
     "above this size the kernels used longest ago are removed"},
    {"VARMOE_CUBIN_PATH", EnvKind::path_list, "", "absolute paths, separated by ':'",
     "folders of prebuilt kernels, read only; the first that has a kernel serves it"},
    {"VARMOE_JIT", EnvKind::choice, "on", "on, cached_only",
     "cached_only: a kernel that no cache has is an error, not compiled"},
    {"VARMOE_NVRTC_LIB", EnvKind::library, "", "absolute path of the file or its folder, or a bare file name",
     "the NVRTC to load, instead of searching for one"},
    {"VARMOE_COMPILE_THREADS", EnvKind::integer, "0", "0 … 1024; 0: one per core",
     "kernels compiled at the same time"},
    {"VARMOE_LOG", EnvKind::choice, "warn", "trace, debug, info, warn, error, off",
     "least severe messages that are logged"},
    {"VARMOE_ARCH", EnvKind::arch, "", "sm_<number>, optionally with a or f: sm_80, sm_90a, sm_120",
     "architecture to compile for, instead of the device's own"},
    {"VARMOE_DEVICE_PROFILE", EnvKind::text, "", "name of a device profile, or path of a profile file",
     "device profile for predicting configs, instead of the one of the device found"},
    {"VARMOE_CONFIG", EnvKind::text, "", kTilesHelp, "tile override of fc1 and fc2"},
    {"VARMOE_FC1_CONFIG", EnvKind::text, "", kTilesHelp, "tile override of fc1; goes before VARMOE_CONFIG"},
    {"VARMOE_FC2_CONFIG", EnvKind::text, "", kTilesHelp, "tile override of fc2; goes before VARMOE_CONFIG"},
    {"VARMOE_DH_CONFIG", EnvKind::text, "", kTilesHelp, "tile override of the backward product dout·W2"},
    {"VARMOE_DX_CONFIG", EnvKind::text, "", kTilesHelp, "tile override of the backward product dz·W1"},
    {"VARMOE_DW1_CONFIG", EnvKind::text, "", kGradientHelp, "tile override of fc1's weight gradient"},
    {"VARMOE_DW2_CONFIG", EnvKind::text, "", kGradientHelp, "tile override of fc2's weight gradient"},
    {"VARMOE_DUMP_DIR", EnvKind::path, "", "path",
     "each compiled kernel's source, cubin, resource use and log are written there"},
    {"VARMOE_KERNELS_DIR", EnvKind::path, "", "path",
     "kernel text is read from there, while developing kernels"},
    {"VARMOE_LINEINFO", EnvKind::choice, "off", "on, off, 1, 0",
     "compile kernels with line information, for profilers"},
    {"VARMOE_TUNING_DB", EnvKind::path_list, "", "absolute paths, separated by ':'",
     "folders or files of tuning records, read before the user's own; first wins"},
    {"VARMOE_TUNE", EnvKind::choice, "replay", "replay, off, online",
     "replay: use tuning records; off: the cost model alone; online: not in this version"},
    {"VARMOE_RECORD_MISSES", EnvKind::path, "", "path",
     "layers and token buckets without an exact tuning record are appended there, for varmoe-tune tune "
     "--misses"},
};
constexpr std::size_t kCount = std::size(kTable);

/// Longer values cannot be meant: the cap bounds memory and what a message quotes.
constexpr std::size_t max_bytes(EnvKind kind) noexcept {
  switch (kind) {
    case EnvKind::choice:
    case EnvKind::integer:
    case EnvKind::byte_size:
    case EnvKind::arch:
      return 64;
    case EnvKind::absolute_path:
    case EnvKind::path:
    case EnvKind::library:
    case EnvKind::text:
      return 4095;
    case EnvKind::path_list:
      return 65535;
  }
  return 0;
}

Error bad_value(const EnvVariable& variable, std::string_view value) {
  return Error(
      ErrorCode::invalid_environment,
      fmt::format("{}='{}' is not valid; expected: {}", variable.name, printable(value), variable.choices));
}

/// One variable's value on its way into its field.
struct Reader {
  const EnvVariable& variable;
  std::string_view value;

  Status bad() const { return bad_value(variable, value); }

  template <class T>
  Status choice(std::optional<T>* out, std::initializer_list<std::pair<std::string_view, T>> choices) const {
    for (const auto& [word, meaning] : choices) {
      if (word == value) {
        *out = meaning;
        return {};
      }
    }
    return bad();
  }

  Status text(std::string* out) const {
    *out = value;
    return {};
  }

  Status absolute_path(std::string* out) const {
    if (value.front() != '/') return bad();
    return text(out);
  }

  Status path_list(std::vector<std::string>* out) const {
    for (std::string_view part : split(value, ':')) {
      if (part.empty()) continue;  // as in PATH-like lists joined from parts that may be empty
      if (part.front() != '/') return bad_value(variable, part);
      out->emplace_back(part);
    }
    return {};
  }

  Status library(std::string* out) const {
    if (value.front() != '/' && value.find('/') != std::string_view::npos) return bad();
    return text(out);
  }

  Status byte_size(std::optional<std::uint64_t>* out) const {
    *out = parse_byte_size(value);
    return out->has_value() ? Status() : bad();
  }

  Status integer(std::optional<int>* out, std::uint64_t largest) const {
    const std::optional<std::uint64_t> number = parse_uint64(value);
    if (!number || *number > largest) return bad();
    *out = static_cast<int>(*number);
    return {};
  }

  Status arch(std::string* out) const {
    constexpr std::string_view kSm = "sm_";
    if (!value.starts_with(kSm)) return bad();
    std::string_view number = value.substr(kSm.size());
    if (number.ends_with('a') || number.ends_with('f')) number.remove_suffix(1);
    if (number.size() < 2 || number.size() > 3 || number.front() == '0' || !parse_uint64(number))
      return bad();
    return text(out);
  }
};

Status assign(Environment& e, std::string_view name, const Reader& r) {
  using enum LogLevel;
  if (name == "CACHE_DIR") return r.absolute_path(&e.cache_dir);
  if (name == "CACHE") {
    return r.choice<CacheMode>(&e.cache,
                               {{"rw", CacheMode::rw}, {"ro", CacheMode::ro}, {"off", CacheMode::off}});
  }
  if (name == "CACHE_MAX_SIZE") return r.byte_size(&e.cache_max_size);
  if (name == "CUBIN_PATH") return r.path_list(&e.cubin_path);
  if (name == "JIT")
    return r.choice<JitMode>(&e.jit, {{"on", JitMode::on}, {"cached_only", JitMode::cached_only}});
  if (name == "NVRTC_LIB") return r.library(&e.nvrtc_lib);
  if (name == "COMPILE_THREADS") return r.integer(&e.compile_threads, kMaxCompileThreads);
  if (name == "LOG") {
    return r.choice<LogLevel>(
        &e.log,
        {{"trace", trace}, {"debug", debug}, {"info", info}, {"warn", warn}, {"error", error}, {"off", off}});
  }
  if (name == "ARCH") return r.arch(&e.arch);
  if (name == "DEVICE_PROFILE") return r.text(&e.device_profile);
  if (name == "CONFIG") return r.text(&e.config);
  if (name == "FC1_CONFIG") return r.text(&e.fc1_config);
  if (name == "FC2_CONFIG") return r.text(&e.fc2_config);
  if (name == "DH_CONFIG") return r.text(&e.dh_config);
  if (name == "DX_CONFIG") return r.text(&e.dx_config);
  if (name == "DW1_CONFIG") return r.text(&e.dw1_config);
  if (name == "DW2_CONFIG") return r.text(&e.dw2_config);
  if (name == "DUMP_DIR") return r.text(&e.dump_dir);
  if (name == "KERNELS_DIR") return r.text(&e.kernels_dir);
  if (name == "LINEINFO")
    return r.choice<bool>(&e.lineinfo, {{"on", true}, {"off", false}, {"1", true}, {"0", false}});
  if (name == "TUNING_DB") return r.path_list(&e.tuning_db);
  if (name == "TUNE") {
    return r.choice<TuneMode>(
        &e.tune, {{"replay", TuneMode::replay}, {"off", TuneMode::off}, {"online", TuneMode::online}});
  }
  if (name == "RECORD_MISSES") return r.text(&e.record_misses);
  return Error(ErrorCode::internal, fmt::format("VARMOE_{} is in the table but not read", name));
}

std::size_t index_of(std::string_view name) noexcept {
  std::size_t i = 0;
  while (i < kCount && name != kTable[i].name) ++i;
  return i;
}

std::string unknown_warning(std::string_view name) {
  std::array<std::string_view, kCount> known;
  std::transform(std::begin(kTable), std::end(kTable), known.begin(), [](const EnvVariable& variable) {
    return std::string_view(variable.name).substr(kPrefix.size());
  });
  // Compared without the prefix, which would make every name look alike.
  return fmt::format("unknown environment variable {} is ignored; the nearest known name is {}{}",
                     printable(name, 80), kPrefix, nearest(name.substr(kPrefix.size()), known));
}

}  // namespace

std::span<const EnvVariable> env_table() noexcept {
  return kTable;
}

Result<Environment> Environment::read() {
  return read(environ);
}

Result<Environment> Environment::read(const char* const* block) {
  std::array<std::optional<std::string_view>, kCount> values;
  std::bitset<kCount> repeated;
  Environment result;
  std::set<std::string_view> unknown;

  for (; block != nullptr && *block != nullptr; ++block) {
    const std::string_view entry = *block;
    const std::size_t equals = entry.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view name = entry.substr(0, equals);
    const std::string_view value = entry.substr(equals + 1);
    if (name == "XDG_CACHE_HOME") {
      if (!result.xdg_cache_home) result.xdg_cache_home = value;
    } else if (name == "HOME") {
      if (!result.home) result.home = value;
    } else if (name.starts_with(kPrefix)) {
      const std::size_t i = index_of(name);
      if (i == kCount) {
        unknown.insert(name);
      } else if (values[i]) {
        repeated.set(i);
      } else {
        values[i] = value;
      }
    }
  }

  for (std::size_t i = 0; i < kCount; ++i) {
    const EnvVariable& variable = kTable[i];
    if (repeated.test(i)) {
      result.warnings.push_back(
          fmt::format("{} is in the environment more than once; the first, '{}', counts", variable.name,
                      printable(*values[i])));
    }
    if (!values[i] || values[i]->empty()) continue;
    if (values[i]->size() > max_bytes(variable.kind)) {
      return Error(ErrorCode::invalid_environment,
                   fmt::format("{}='{}' is too long: at most {} bytes; expected: {}", variable.name,
                               printable(*values[i], 40), max_bytes(variable.kind), variable.choices));
    }
    const std::string_view short_name = std::string_view(variable.name).substr(kPrefix.size());
    if (Status status = assign(result, short_name, Reader{variable, *values[i]}); !status.ok())
      return status.error();
    result.settings.push_back({variable.name, std::string(*values[i])});
  }

  std::size_t shown = 0;
  for (std::string_view name : unknown) {
    if (shown == kMaxUnknownWarnings) {
      result.warnings.push_back(
          fmt::format("{} more unknown VARMOE_ variables are ignored", unknown.size() - shown));
      break;
    }
    result.warnings.push_back(unknown_warning(name));
    ++shown;
  }
  return result;
}

}  // namespace varmoe
