#include "tools/tune/duration.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

#include "base/text.hpp"

namespace varmoe::tools {

Result<double> parse_duration(const std::string& text, const char* option) {
  constexpr double kLongest = 365.0 * 24 * 3600;
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  const std::string unit = end;
  const double factor = unit.empty() || unit == "s" ? 1 : unit == "m" ? 60 : unit == "h" ? 3600 : 0;
  const double seconds = number * factor;
  if (end == text.c_str() || !(seconds > 0 && seconds <= kLongest)) {
    return Error(ErrorCode::invalid_argument,
                 fmt::format("{}: '{}' is no time; write it as 90s, 10m or 2h", option, printable(text, 40)));
  }
  return seconds;
}

}  // namespace varmoe::tools
