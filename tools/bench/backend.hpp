#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "oracle/random_case.hpp"
#include "tools/bench/options.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"

/// Where the layer runs: both backends go through the public Engine API.
namespace varmoe::tools {

/// Microseconds of one forward: median and spread ((p90 − p10) / median) of the samples.
struct Timing {
  double median_us = 0, spread = 0, best_us = 0;
  static Timing of(std::vector<double> samples_us);
};

struct StepTime {
  std::string name;
  double us = 0;
};

struct Measurement {
  Timing forward;                 ///< what counts: graph replay on a GPU
  std::optional<Timing> eager;    ///< GPU: launched one by one
  std::optional<double> host_us;  ///< GPU: what a forward call costs the host
  std::vector<StepTime> steps;    ///< with --profile
  std::int64_t copies =
      1;  ///< copies of the weights that were rotated, so that L2 holds nothing of the next forward
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
};

Result<std::unique_ptr<Backend>> open_cpu(const BenchOptions& options);
Result<std::unique_ptr<Backend>> open_gpu(const BenchOptions& options, int ordinal);

}  // namespace varmoe::tools
