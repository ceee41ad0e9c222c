#include "tools/common/session.hpp"

#include <fmt/core.h>

#include <csignal>
#include <filesystem>
#include <utility>

#include "base/env.hpp"
#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "tools/common/command_line.hpp"

namespace varmoe::tools {

std::atomic<bool> interrupted{false};

extern "C" {
static void varmoe_tools_on_signal(int signal) {
  interrupted.store(true);
  std::signal(signal, SIG_DFL);
}
}

void handle_signals() {
  std::signal(SIGINT, varmoe_tools_on_signal);
  std::signal(SIGTERM, varmoe_tools_on_signal);
  std::signal(SIGXFSZ, SIG_IGN);
}

void SessionOptions::add_device(Command& app) {
  app.add_option("--device", device,
                 "profile of the target: h200, a100 …, a driver's device name, or a profile's path; "
                 "default VARMOE_DEVICE_PROFILE, else the GPU here");
}

void SessionOptions::add_cache(Command& app) {
  app.add_option("--cache-dir", cache_dir,
                 "writable cubin cache; default VARMOE_CACHE_DIR, else the user's cache folder");
  app.add_flag("--verbose", verbose, "print every line of the log to stderr");
}

void SessionOptions::add_overrides(Command& app) {
  app.add_option("--fc1-config", fc1_config,
                 "tile override, e.g. block_m=64,stages=4; other keys keep their values");
  app.add_option("--fc2-config", fc2_config, "the same for fc2");
  app.add_option("--tuning-db", tuning_db,
                 "folder or file of tuning records, looked up first; may be given several times");
}

void SessionOptions::add_backward_overrides(Command& app) {
  app.add_option("--dh-config", dh_config,
                 "training: tile override of the backward product dout·W2, as --fc1-config");
  app.add_option("--dx-config", dx_config, "training: of dz·W1");
  app.add_option("--dw1-config", dw1_config,
                 "training: of fc1's weight gradient, e.g. "
                 "schedule=wgmma,block_m=128,block_n=256,stages=4,gather=fused");
  app.add_option("--dw2-config", dw2_config, "training: of fc2's weight gradient");
}

void SessionOptions::add_build(Command& app) {
  add_cache(app);
  app.add_option("--jobs,-j", threads, "compile threads; 0: one per core")->range(0, 1024);
  add_overrides(app);
}

EngineOptions SessionOptions::engine_options() const {
  EngineOptions options;
  if (!cache_dir.empty()) options.cache_dir = absolute_path(cache_dir);
  for (const std::string& path : tuning_db) options.tuning_db.push_back(absolute_path(path));
  options.fc1_config = fc1_config;
  options.fc2_config = fc2_config;
  options.dh_config = dh_config;
  options.dx_config = dx_config;
  options.dw1_config = dw1_config;
  options.dw2_config = dw2_config;
  options.compile_threads = threads;
  return options;
}

std::string absolute_path(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

Result<tuningdb::TuningSources> record_sources(const SessionOptions& options,
                                               const std::vector<std::string>& paths) {
  if (paths.empty()) {
    auto toolchain = open_toolchain(options);
    if (!toolchain) return std::move(toolchain).error();
    return std::move(toolchain->tuning_sources);
  }
  tuningdb::TuningSources sources;
  for (const std::string& path : paths) sources.paths.push_back(absolute_path(path));
  sources.shipped = {};
  return sources;
}

Result<engine::Toolchain> open_toolchain(const SessionOptions& options) {
  auto environment = Environment::read();
  if (!environment) return environment.error();
  if (options.verbose) environment->log = LogLevel::debug;
  return engine::Toolchain::open(options.engine_options(), *environment);
}

Result<model::DeviceProfile> target_device(const SessionOptions& options, const Environment& environment) {
  const bool by_option = !options.device.empty();
  const std::string& name = by_option ? options.device : environment.device_profile;
  model::DeviceProfile profile;
  if (!name.empty()) {
    auto found = model::find_profile(name);
    if (!found) {
      if (by_option) return Error(ErrorCode::invalid_argument, "--device: " + found.error().message());
      return Error(ErrorCode::invalid_environment, "VARMOE_DEVICE_PROFILE: " + found.error().message());
    }
    profile = *std::move(found);
  } else {
    auto driver = cuda::Driver::load();
    if (!driver) {
      return Error(ErrorCode::no_device,
                   fmt::format("no GPU here to take for the target ({}); name one: --device h200, or "
                               "set VARMOE_DEVICE_PROFILE",
                               driver.error().message()));
    }
    auto device = cuda::Device::open(*driver, 0);
    if (!device) return device.error();
    const cuda::DeviceAttributes& a = (*device)->attributes();
    auto found = model::find_profile(a.name);
    profile = found ? *std::move(found)
                    : model::generic_profile(a.compute_major, a.compute_minor, a.sm_count, a.smem_per_block,
                                             a.smem_per_sm, a.l2_bytes);
    if (!found) profile.name = a.name;  // tuning records are kept by the board's name
  }
  if (!environment.arch.empty()) profile.arch = environment.arch;
  return profile;
}

}  // namespace varmoe::tools
