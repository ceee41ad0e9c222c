#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace oracle {

/// fn(i) for every i in [0, n), on up to `threads` threads (0: one per core).
template <class Fn>
void parallel_for(std::int64_t n, int threads, const Fn& fn) {
  std::int64_t count = threads > 0 ? threads : std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  count = std::min(count, n);
  if (count <= 1) {
    for (std::int64_t i = 0; i < n; ++i) fn(i);
    return;
  }
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) fn(i);
  };
  std::vector<std::thread> team;
  for (std::int64_t t = 1; t < count; ++t) team.emplace_back(work);
  work();
  for (auto& t : team) t.join();
}

}  // namespace oracle
