#pragma once

#include <string>
#include <vector>

#include "oracle/random_case.hpp"

/// Golden vectors: small layers with every input and the oracle's output, as JSON files in tests/golden/.
/// They pin the oracle itself, and give another implementation something to check against without this code.
namespace oracle {

struct GoldenCase {
  std::string name;  ///< file name without ".json"
  varmoe::LayerSpec spec;
  CaseOptions options;
};

/// The cases, in a fixed order.
std::vector<GoldenCase> golden_cases();

/// The file's text: spec, inputs and outputs. Elements of the 16-bit formats as their bits, four hexadecimal
/// digits each, a row a string; gate, up and down of each expert as [outputs][reduction] whatever the
/// storage.
std::string golden_text(const GoldenCase& golden);

}  // namespace oracle
