#pragma once

#include <cstdint>

#include "oracle/random_case.hpp"
#include "tools/bench/backend.hpp"
#include "tools/common/output.hpp"
#include "varmoe/error.hpp"

namespace varmoe::tools {

/// What a search found for one token count.
struct SearchResult {
  Trial predicted;  ///< the cost model's own choice
  Trial best;       ///< the fastest layer that passed its check
  std::size_t tried = 0, failed = 0;
};

/// Tries the `width` candidates of each GEMM that the cost model ranks first (0: all), fc1's i-th beside
/// fc2's i-th, then the fastest few of each together. Says what each trial gave.
Result<SearchResult> search(Backend& backend, const oracle::RandomCase& layer_case, std::int64_t tokens,
                            std::int64_t rows, std::size_t width, const Output& out);

}  // namespace varmoe::tools
