#pragma once

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/kill_point.hpp"

#if !defined(VARMOE_KILL_POINTS)
#error "tests need the kill points: configure with VARMOE_BUILD_TESTS=ON"
#endif

namespace varmoe::test {

/// The kill points of write_atomically, in order. Those before "atomic_file:after_rename" leave the old file,
/// the others the new one.
inline constexpr const char* kAtomicFileKillPoints[] = {
    "atomic_file:before_open",  "atomic_file:after_open",  "atomic_file:mid_write",
    "atomic_file:before_fsync", "atomic_file:after_fsync", "atomic_file:before_rename",
    "atomic_file:after_rename", "atomic_file:done",
};

namespace detail {
inline std::atomic<const char*> kill_name{nullptr};
inline std::atomic<int> kill_countdown{0};
inline void kill_handler(const char* name) noexcept {
  const char* wanted = kill_name.load();
  if (wanted != nullptr && std::strcmp(name, wanted) == 0 && kill_countdown.fetch_sub(1) == 1) {
    ::kill(::getpid(), SIGKILL);
  }
}
}  // namespace detail

/// In a child: this process gets SIGKILL the nth time that it reaches the point. `name` must have static
/// storage.
inline void kill_at(const char* name, int nth = 1) {
  detail::kill_name = name;
  detail::kill_countdown = nth;
  set_kill_point_handler(&detail::kill_handler);
}

}  // namespace varmoe::test
