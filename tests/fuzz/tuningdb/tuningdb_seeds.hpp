#pragma once

#include <string>
#include <vector>

/// Inputs that the fuzzers of src/tuningdb begin with.
namespace varmoe::fuzz {

/// Files of records; each has one at least that is accepted.
std::vector<std::string> record_seeds();
/// Files without a record that is accepted.
std::vector<std::string> refused_record_seeds();
/// AITER's CSV and vLLM's files, each with something that is accepted.
std::vector<std::string> csv_seeds();
/// The same without anything that is.
std::vector<std::string> refused_csv_seeds();

/// Files of records of layers that AITER's CSV cannot say, each for another reason.
std::vector<std::string> inexpressible_record_seeds();

}  // namespace varmoe::fuzz
