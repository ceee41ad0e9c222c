#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "engine/config_choice.hpp"
#include "engine/toolchain.hpp"
#include "model/device_profile.hpp"
#include "tuningdb/layers.hpp"
#include "varmoe/error.hpp"

/// What the verbs have in common: environment, log, cache, compiler, overrides, target device.
namespace varmoe::tools {

class Command;

/// Options that stand above variables, which stand above defaults.
struct SessionOptions {
  std::string device;  ///< profile id, driver name or path of a profile
  std::string cache_dir;
  std::string fc1_config, fc2_config;
  std::string dh_config, dx_config, dw1_config, dw2_config;  ///< of add_backward_overrides
  std::vector<std::string> tuning_db;
  int threads = 0;
  bool verbose = false;

  void add_device(Command& app);
  void add_cache(Command& app);
  void add_overrides(Command& app);           ///< tile overrides, tuning records
  void add_backward_overrides(Command& app);  ///< tile overrides of a backward pass
  void add_build(Command& app);               ///< cache, threads, overrides

  EngineOptions engine_options() const;
};

/// Reads the environment and opens cache and overrides; loads no compiler and no driver.
Result<engine::Toolchain> open_toolchain(const SessionOptions& options);

/// The device that kernels are for: --device, else VARMOE_DEVICE_PROFILE, else the first GPU here;
/// VARMOE_ARCH replaces its arch.
Result<model::DeviceProfile> target_device(const SessionOptions& options, const Environment& environment);

/// On a command line the working directory is what a relative path means.
std::string absolute_path(const std::string& path);

/// Where tuning records are read from: the paths given and nothing else, or, without any, all that a look-up
/// would see.
Result<tuningdb::TuningSources> record_sources(const SessionOptions& options,
                                               const std::vector<std::string>& paths);

/// Becomes true at the first Ctrl-C or SIGTERM; the second one ends the program. Set up by handle_signals().
extern std::atomic<bool> interrupted;
/// Also ignores SIGXFSZ, so that a file size limit is a failed write and not the end of the program.
void handle_signals();

}  // namespace varmoe::tools
