#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "base/log.hpp"
#include "tools/common/session.hpp"
#include "tools/tune/gpus.hpp"
#include "tuner/worker_process.hpp"

namespace varmoe::tools {

/// One worker a GPU: this program again, as `varmoe-tune worker`. Nothing is started yet. They stop at
/// Ctrl-C.
std::vector<std::unique_ptr<tuner::WorkerProcess>> make_workers(const Gpus& gpus,
                                                                const SessionOptions& session,
                                                                std::chrono::milliseconds config_timeout,
                                                                const Log& log);

}  // namespace varmoe::tools
