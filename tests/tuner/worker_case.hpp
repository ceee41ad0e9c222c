#pragma once

#include <dirent.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "support/capture_log.hpp"
#include "tuner/landscape.hpp"
#include "tuner/misbehaviour.hpp"
#include "tuner/worker_process.hpp"

/// Workers that misbehave, and what is left of them.
namespace varmoe::test {

inline tuner::WorkerOptions worker_options(std::vector<std::string> arguments = {}) {
  tuner::WorkerOptions options;
  options.argv = {VARMOE_MISBEHAVING_WORKER};
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  options.name = "GPU 0";
  options.start_timeout = std::chrono::seconds(20);
  options.config_timeout = std::chrono::seconds(20);
  options.log = CaptureLog();
  return options;
}

inline std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

/// No child at all, running or dead.
inline bool childless() {
  return ::waitpid(-1, nullptr, WNOHANG) < 0 && errno == ECHILD;
}

/// A config that the misbehaving worker answers well, told from others by its raster.
inline LayerConfig good_config(int raster) {
  LayerConfig config;
  config.fc1.raster = raster;
  return config;
}

/// A bad config between good ones.
inline tuner::MeasureRequest around(Misbehaviour what) {
  tuner::MeasureRequest request{kUniform, 64, tuner::Effort::quick, {}};
  request.configs = {good_config(1), good_config(2), config_that(what), good_config(3), good_config(4)};
  return request;
}

}  // namespace varmoe::test
