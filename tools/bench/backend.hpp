#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "oracle/random_case.hpp"
#include "tools/bench/options.hpp"
#include "tools/gpu/timing.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"

/// Where the layer runs: both backends go through the public Engine API.
namespace varmoe::tools {

struct StepTime {
  std::string name;
  double us = 0;
};

struct Measurement {
  Timing forward;                 ///< what counts: on a GPU the lower of replay and flushed
  std::optional<Timing> replay;   ///< GPU: graph replays without a pause
  std::optional<Timing> flushed;  ///< GPU with NVRTC at hand: one forward at a time, L2 flushed before each
  std::optional<Timing> eager;    ///< GPU: launched one by one
  std::optional<double> host_us;  ///< GPU: what a forward call costs the host
  std::vector<StepTime> steps;    ///< with --profile
  std::int64_t copies =
      1;  ///< copies of the weights that were rotated, so that L2 holds nothing of the next forward
};

/// A pair of GEMM configs to try, and what came of it.
struct Trial {
  GemmConfig fc1, fc2;
  double fc1_us = 0, fc2_us = 0;  ///< each step alone
  double layer_us = 0;            ///< the whole layer, as Measurement::forward
  bool pass = false;              ///< against the oracle, twice the same bits
  std::string failure;            ///< why there are no times, or what the check said
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string description() const = 0;
  /// Null on the CPU.
  virtual const model::DeviceProfile* profile() const = 0;
  /// Makes the layer and its weights ready for all these token counts. `layer_case` outlives the backend's
  /// use of it.
  virtual Result<PrepareReport> load(oracle::RandomCase& layer_case,
                                     const std::vector<std::int64_t>& tokens) = 0;
  /// Copies one altered element of a weight buffer of the case to where the next run() reads it.
  virtual Status reload_weight(oracle::Part part, std::int64_t element) = 0;
  /// One forward into poisoned memory; `out` receives T rows.
  virtual Status run(std::int64_t tokens, oracle::Buffer16& out) = 0;
  virtual Result<Measurement> measure(std::int64_t tokens) = 0;
  /// Compiles, checks (against `reference`, the oracle's rows of `sample`) and times every trial. After
  /// load().
  virtual Status try_configs(std::int64_t tokens, const std::vector<double>& reference,
                             const std::vector<std::int64_t>& sample, std::vector<Trial>& trials) = 0;
};

Result<std::unique_ptr<Backend>> open_cpu(const BenchOptions& options);
Result<std::unique_ptr<Backend>> open_gpu(const BenchOptions& options, int ordinal);

}  // namespace varmoe::tools
