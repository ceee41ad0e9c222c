#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "oracle/random_case.hpp"
#include "tools/common/layer_input.hpp"
#include "tools/common/session.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

class Command;

/// The command line of varmoe-bench.
struct BenchOptions {
  LayerInput input;
  SessionOptions session;
  std::string device = "auto";
  std::string tokens, batch_sizes, seq;
  std::string mode = "forward", gather, scatter = "separate";
  std::string routing = "uniform", storage = "blocks";
  std::uint64_t seed = 1;
  int warmup = -1, iterations = -1;  ///< −1: by the backend
  int cpu_threads = 0;
  std::int64_t search = -1;  ///< −1: no search; 0: every candidate
  std::int64_t check_rows = 16;
  bool router = false;
  std::string logits;  ///< of --router; empty: the model's
  bool recompute = false, accumulate = false, fp32_gradients = false;
  bool no_check = false, inject_error = false, profile = false, detailed = false, json = false;

  void add_options(Command& app);
  /// The token counts to run. Also refuses what this version has not.
  Result<std::vector<std::int64_t>> token_counts() const;
  oracle::Routing parsed_routing() const;
  oracle::Storage parsed_storage() const;
  /// Of an engine on this device number.
  EngineOptions engine_options(int device_number) const;
};

}  // namespace varmoe::tools
