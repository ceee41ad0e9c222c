#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/kernel_artifact.hpp"

namespace varmoe::compile {

/// What a good kernel must not show: every ptxas advisory about tensor-core or register-count instructions
/// that it could not honour (the lines with a C75xx code), spills, a stack frame of the entry or of a
/// function it calls. Each is one line for people. Empty: nothing to complain of. Works on a KernelBinary of
/// any origin, since the log travels with it.
std::vector<std::string> findings(const KernelBinary& binary);

/// The same of a log alone.
std::vector<std::string> log_findings(std::string_view log);

}  // namespace varmoe::compile
