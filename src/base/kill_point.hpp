#pragma once

/// Named places where a test may kill the process: VARMOE_KILL_POINT("cubin:before_publish"). They are
/// compiled in only where the build defines VARMOE_KILL_POINTS (builds with tests), and then do nothing until
/// a test installs a handler; no variable or option of a user reaches them.
#if defined(VARMOE_KILL_POINTS)

namespace varmoe {

using KillPointHandler = void (*)(const char* name) noexcept;

/// Null: none. Returns the one before. Process-wide.
KillPointHandler set_kill_point_handler(KillPointHandler handler) noexcept;
void reach_kill_point(const char* name) noexcept;

}  // namespace varmoe

#define VARMOE_KILL_POINT(name) ::varmoe::reach_kill_point(name)
#else
#define VARMOE_KILL_POINT(name) static_cast<void>(0)
#endif
