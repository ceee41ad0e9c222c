#pragma once

#include <string_view>

#include "fuzz/outcome.hpp"

/// Entry points of the fuzzers of src/tuningdb.
namespace varmoe::fuzz {

/// The text as a file of tuning records: what is read is sound, and what is written of it reads back.
Outcome tuning_records(std::string_view text);

/// The text as AITER's CSV and as a file of vLLM's.
Outcome tuning_csv(std::string_view text);

}  // namespace varmoe::fuzz
