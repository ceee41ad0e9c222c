#pragma once

#include <cstdint>
#include <vector>

#include "oracle/compare.hpp"
#include "oracle/random_case.hpp"
#include "tools/bench/backend.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// What the check of one token count found.
struct CheckResult {
  oracle::Comparison comparison;
  bool repeatable = false;  ///< a second run gave the same bits
  bool pass() const { return comparison.pass && repeatable; }
};

/// Runs the layer twice into poisoned memory and compares sampled rows with the fp64 oracle. With
/// `inject_error`, one weight that these rows use is altered between the oracle's turn and the backend's, and
/// put back afterwards.
Result<CheckResult> check(Backend& backend, oracle::RandomCase& layer_case, std::int64_t tokens,
                          std::int64_t rows, bool inject_error);

}  // namespace varmoe::tools
