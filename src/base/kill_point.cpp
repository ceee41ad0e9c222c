#include "base/kill_point.hpp"

#if defined(VARMOE_KILL_POINTS)

#include <atomic>

namespace varmoe {
namespace {
std::atomic<KillPointHandler> g_handler{nullptr};
}  // namespace

KillPointHandler set_kill_point_handler(KillPointHandler handler) noexcept {
  return g_handler.exchange(handler);
}

void reach_kill_point(const char* name) noexcept {
  if (KillPointHandler handler = g_handler.load(std::memory_order_acquire)) handler(name);
}

}  // namespace varmoe

#endif
