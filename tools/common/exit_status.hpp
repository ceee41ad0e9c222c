#pragma once

#include "varmoe/error.hpp"

/// What the programs return to the shell.
namespace varmoe::tools {

inline constexpr int kDone = 0;
inline constexpr int kSomeFailed = 1;   ///< some kernels, entries or checks failed
inline constexpr int kUsage = 2;        ///< wrong options or input
inline constexpr int kEnvironment = 3;  ///< something is missing on this machine, or a variable is wrong

/// What kind of failure an error is when it ends the program.
int exit_status(ErrorCode code) noexcept;

}  // namespace varmoe::tools
