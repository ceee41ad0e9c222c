#include "tools/tune/worker_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>

#include "base/thread_pool.hpp"

namespace varmoe::tools {

std::vector<std::unique_ptr<tuner::WorkerProcess>> make_workers(const Gpus& gpus,
                                                                const SessionOptions& session,
                                                                std::chrono::milliseconds config_timeout,
                                                                const Log& log) {
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  // The workers compile at the same time: the cores are shared out.
  const int share = (available_cores() - 2) / static_cast<int>(gpus.ordinals.size());
  const int jobs = session.threads > 0 ? session.threads : std::max(1, share);
  std::vector<std::unique_ptr<tuner::WorkerProcess>> workers;
  for (const int ordinal : gpus.ordinals) {
    tuner::WorkerOptions options;
    options.argv = {failed ? "/proc/self/exe" : self.string(),
                    "worker",
                    "--gpu",
                    std::to_string(ordinal),
                    "--jobs",
                    std::to_string(jobs)};
    if (!session.cache_dir.empty()) {
      options.argv.emplace_back("--cache-dir");
      options.argv.push_back(absolute_path(session.cache_dir));
    }
    if (session.verbose) options.argv.emplace_back("--verbose");
    options.name = fmt::format("GPU {}", ordinal);
    options.config_timeout = config_timeout;
    options.cancel = &interrupted;
    options.log = log;
    workers.push_back(std::make_unique<tuner::WorkerProcess>(std::move(options)));
  }
  return workers;
}

}  // namespace varmoe::tools
