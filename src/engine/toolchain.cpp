#include "engine/toolchain.hpp"

#include <optional>
#include <utility>

#include "base/cache_dir.hpp"
#include "base/file_system.hpp"
#include "tuningdb/store.hpp"

namespace varmoe::engine {

Log open_log(const EngineOptions& options, const Environment& environment) {
  return Log(environment.log.value_or(kDefaultLogLevel), options.log);
}

Result<Toolchain> Toolchain::open(const EngineOptions& options, const Environment& environment,
                                  const FinderMaker& finder) {
  const auto first = [](const std::string& a, const std::string& b) { return a.empty() ? b : a; };
  if (options.compile_threads < 0)
    return Error(ErrorCode::invalid_argument,
                 "EngineOptions::compile_threads = " + std::to_string(options.compile_threads) +
                     ": must be 0 (one per core) or more");
  Toolchain t;
  t.environment = environment;
  t.log = open_log(options, environment);
  for (const std::string& warning : environment.warnings) t.log.once(warning, LogLevel::warn, warning);
  t.jit = options.jit.value_or(environment.jit.value_or(JitMode::on));
  t.threads = options.compile_threads > 0 ? options.compile_threads : environment.compile_threads.value_or(0);
  t.dump_dir = first(options.dump_dir, environment.dump_dir);
  const auto backward = [](const std::string& api, const std::string& env, const char* api_name,
                           const char* env_name) {
    return api.empty() ? OverrideText{env, env_name, ErrorCode::invalid_environment}
                       : OverrideText{api, api_name, ErrorCode::invalid_config};
  };
  t.overrides = {
      options.fc1_config,
      options.fc2_config,
      environment.fc1_config,
      environment.fc2_config,
      environment.config,
      backward(options.dh_config, environment.dh_config, "EngineOptions::dh_config", "VARMOE_DH_CONFIG"),
      backward(options.dx_config, environment.dx_config, "EngineOptions::dx_config", "VARMOE_DX_CONFIG"),
      backward(options.dw1_config, environment.dw1_config, "EngineOptions::dw1_config", "VARMOE_DW1_CONFIG"),
      backward(options.dw2_config, environment.dw2_config, "EngineOptions::dw2_config", "VARMOE_DW2_CONFIG")};
  if (!environment.kernels_dir.empty()) {
    if (Status status = emit::use_kernels_dir(environment.kernels_dir); !status)
      return std::move(status).error();
  }

  FileSystem& fs = posix_file_system();
  const CacheMode mode = options.cache_mode.value_or(environment.cache.value_or(CacheMode::rw));
  cubin::CacheOptions cache;
  cache.max_bytes =
      options.cache_max_bytes.value_or(environment.cache_max_size.value_or(kDefaultCacheMaxBytes));
  cache.read_only_layers = options.cubin_path.empty() ? environment.cubin_path : options.cubin_path;
  cache.mode = mode;
  t.tune = options.tune.value_or(environment.tune.value_or(TuneMode::replay));
  if (t.tune == TuneMode::online) {
    const std::string why = "tuning while serving is not in this version; replay uses records that are there";
    if (!options.tune) return Error(ErrorCode::invalid_environment, "VARMOE_TUNE=online: " + why);
    return Error(ErrorCode::unsupported, "EngineOptions::tune = online: " + why);
  }
  t.tuning_sources.paths = options.tuning_db;
  t.tuning_sources.environment = environment.tuning_db;
  if (mode != CacheMode::off) {
    const CacheDirSources sources{options.cache_dir, environment.cache_dir, environment.xdg_cache_home,
                                  environment.home};
    const CacheDir dir = resolve_cache_dir(fs, sources, mode, t.log);
    t.tuning_sources.user_folder = tuningdb::user_tuning_folder(dir);
    cache.dir = dir.path;
    if (dir.mode == CacheDir::Mode::read_only) cache.mode = CacheMode::ro;
  }
  std::optional<cubin::CompilerStamps> stamps;
  if (!cache.dir.empty() && cache.mode == CacheMode::rw) stamps.emplace(fs, cache.dir);
  t.cache = std::make_shared<cubin::CubinCache>(cubin::CubinCache::open(std::move(cache), t.log));
  std::string nvrtc = first(options.nvrtc_lib, environment.nvrtc_lib);
  t.compiler = std::make_shared<CompilerSource>(
      finder ? finder(std::move(nvrtc)) : nvrtc_finder(std::move(nvrtc)), std::move(stamps), t.log);
  return t;
}

tuningdb::TuningSnapshot Toolchain::load_tuning(const model::DeviceProfile& device) const {
  if (tune == TuneMode::off) return {};
  return tuningdb::TuningSnapshot::load(tuning_sources, log, &device);
}

Result<ConfigChooser> Toolchain::chooser(const model::DeviceProfile& device) const {
  std::shared_ptr<tuningdb::MissFile> misses;
  if (!environment.record_misses.empty() && tune != TuneMode::off)
    misses = std::make_shared<tuningdb::MissFile>(environment.record_misses, log);
  return ConfigChooser::create(device, overrides, load_tuning(device), log, std::move(misses));
}

BuilderSettings Toolchain::builder_settings(std::string arch) const {
  BuilderSettings settings;
  settings.cache = cache;
  settings.compiler = compiler;
  settings.arch = std::move(arch);
  settings.dump_dir = dump_dir;
  settings.line_info = environment.lineinfo.value_or(false);
  settings.jit = jit;
  settings.threads = threads;
  settings.log = log;
  return settings;
}

}  // namespace varmoe::engine
