#include "engine/fork_guard.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>

namespace varmoe::engine {
namespace {

std::atomic<std::uint32_t> generation{0};

void count_fork() {
  generation.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

ForkGuard::ForkGuard() : pid_(getpid()) {
  static const int registered = pthread_atfork(nullptr, nullptr, &count_fork);
  static_cast<void>(registered);
  generation_ = generation.load(std::memory_order_relaxed);
}

bool ForkGuard::same_process() const noexcept {
  return generation.load(std::memory_order_relaxed) == generation_;
}

Error ForkGuard::error() const {
  return {
      ErrorCode::unsupported,
      fmt::format(
          "this engine was made by process {} and is used in process {}, forked from it: CUDA contexts and "
          "threads do not survive fork. Create the engine after the fork, or start the child with exec "
          "(spawn)",
          pid_, static_cast<long>(getpid()))};
}

}  // namespace varmoe::engine
