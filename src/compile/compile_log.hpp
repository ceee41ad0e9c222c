#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/kernel_artifact.hpp"

/// Reading what `ptxas -v` wrote.
namespace varmoe::compile {

/// At most kMaxLogBytes of a log: its head and its tail.
std::string bounded_log(std::string_view log);

/// The resources of one entry function; nothing when the log does not have its "Used n registers" line.
std::optional<ResourceUsage> parse_resources(std::string_view log, std::string_view entry_name);

}  // namespace varmoe::compile
