#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace varmoe::cpu {

/// Threads that run one function together: less general than ThreadPool, and nothing is allocated per run.
class Team {
 public:
  /// `threads` ≥ 1, the caller of `run` among them. Fewer where the system refuses more.
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

  /// Members that so many multiply-adds keep busy, from 1 to size().
  int worth(double multiply_adds) const noexcept;

  /// fn(context, member) on `active` ≤ size() threads, members 0 (the caller) … active − 1, all at the same
  /// time; returns when all have. Concurrent calls take turns. `fn` must not throw.
  void run(int active, void (*fn)(void* context, int member), void* context) noexcept;

 private:
  void work(int member) noexcept;

  std::mutex turn_;  // held for a whole run
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::uint64_t generation_ = 0;  // below: guarded by mutex_
  int active_ = 0;
  int unfinished_ = 0;
  bool stop_ = false;
  void (*fn_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> workers_;
};

/// Where `count` threads of a run meet, again and again.
class Barrier {
 public:
  explicit Barrier(int count) noexcept : count_(count) {}
  void wait() noexcept;

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  std::atomic<std::uint32_t> round_{0};
};

}  // namespace varmoe::cpu
