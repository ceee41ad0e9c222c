#pragma once

#include <string>

#include "varmoe/error.hpp"

namespace varmoe::tools {

/// "90", "90s", "10m", "1.5h" → seconds, above 0. The error names `option`.
Result<double> parse_duration(const std::string& text, const char* option);

}  // namespace varmoe::tools
