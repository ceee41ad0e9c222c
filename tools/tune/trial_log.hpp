#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tuner/search.hpp"
#include "varmoe/error.hpp"
#include "varmoe/tuning.hpp"

/// The tuner's log of trials: one JSON object a line, appended to, for `varmoe-tune report`.
namespace varmoe::tools {

/// What stands for a key in the log: 32 hex digits.
std::string key_digest(const TuningKey& key);

class TrialLog {
 public:
  /// Opens for appending. io_error.
  static Result<TrialLog> open(const std::string& path);
  void add(const TuningKey& key, const tuner::Trial& trial);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  explicit TrialLog(std::FILE* file) : file_(file) {}
  std::unique_ptr<std::FILE, Close> file_;
};

/// A line of the log.
struct LoggedTrial {
  std::string effort, failure;
  std::map<std::string, std::string> configs;  ///< by GEMM: fc1, fc2; dh, dx, fc1_gradient, fc2_gradient
  std::map<std::string, double> gemm_us;       ///< of those; none where the trial failed
  double us = 0, skewed_us = 0, spread = 0;
};
/// By key_digest. Lines that are no trials are passed over: the last one of a killed run may be cut.
/// io_error; a file that is not there is empty.
Result<std::map<std::string, std::vector<LoggedTrial>>> read_trials(const std::string& path);

}  // namespace varmoe::tools
