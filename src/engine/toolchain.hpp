#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/env.hpp"
#include "base/log.hpp"
#include "engine/config_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "tuningdb/snapshot.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// Makes the finder of a compiler from an explicit path; nvrtc_finder outside of tests.
using FinderMaker = std::function<CompilerFinder(std::string explicit_path)>;

/// The device-independent half of an engine: log, cubin cache, compiler, overrides; options before
/// environment before default. The command line opens one where there is no GPU.
struct Toolchain {
  Environment environment;
  Log log;
  std::shared_ptr<cubin::CubinCache> cache;
  std::shared_ptr<CompilerSource> compiler;
  std::string dump_dir;
  JitMode jit = JitMode::on;
  int threads = 0;
  OverrideTexts overrides;
  TuneMode tune = TuneMode::replay;
  tuningdb::TuningSources tuning_sources;

  /// Opens cache folder and layers; loads no compiler. Warnings of the environment go to the log. `device`,
  /// `cpu_threads` of the options are not read.
  static Result<Toolchain> open(const EngineOptions& options, const Environment& environment,
                                const FinderMaker& finder = {});
  BuilderSettings builder_settings(std::string arch) const;
  /// The records for a device, as they are now; none with TuneMode::off.
  tuningdb::TuningSnapshot load_tuning(const model::DeviceProfile& device) const;
  /// Overrides, records and cost model of a device.
  Result<ConfigChooser> chooser(const model::DeviceProfile& device) const;
};

/// The log that options and environment ask for.
Log open_log(const EngineOptions& options, const Environment& environment);

}  // namespace varmoe::engine
