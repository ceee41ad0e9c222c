#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "fuzz/outcome.hpp"

/// Entry points of the fuzzers of src/model. Each takes any bytes and returns what is wrong: null when every
/// promise was kept. A crash or a sanitizer's report is found by whoever runs them.
namespace varmoe::fuzz {

/// The text as a model file, a device profile, a list of tile overrides and every enumerator's name.
Outcome model_text(std::string_view text);

/// The bytes as the fields of a layer spec, a GEMM config and a device.
Outcome model_spec(std::span<const std::uint8_t> bytes);

}  // namespace varmoe::fuzz
