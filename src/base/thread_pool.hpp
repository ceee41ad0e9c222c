#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace varmoe {

/// Threads that live as long as the pool. Thread-safe. After fork the child must not touch a pool made before
/// it.
class ThreadPool {
 public:
  /// 0 threads: one per core that this process may run on.
  explicit ThreadPool(int threads);
  /// Runs what was submitted, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept;

  /// Runs `task` on some thread of the pool, in no order.
  void submit(std::function<void()> task);
  /// Returns when everything submitted so far has run; not from inside a task. Rethrows the first exception
  /// that a task let out.
  void wait();

  /// Calls fn(0) … fn(n − 1), each once, on the pool's threads and the calling one, which also works; returns
  /// when all are done. May be called from several threads at once and from inside a task. The first
  /// exception is rethrown here, and calls not yet begun are left out then.
  void parallel_for(std::size_t n, const std::function<void(std::size_t)>& fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// As ThreadPool::parallel_for with `threads` threads (0: one per core) made for this call, the calling one
/// among them.
void parallel_for(std::size_t n, int threads, const std::function<void(std::size_t)>& fn);

/// Cores that this process may run on (its affinity mask); at least 1.
int available_cores() noexcept;

}  // namespace varmoe
