#include "cpu/team.hpp"

#include <algorithm>
#include <system_error>

namespace varmoe::cpu {

int Team::worth(double multiply_adds) const noexcept {
  // Waking a further thread costs some ten microseconds.
  constexpr double kWorkPerThread = 250e3;
  return static_cast<int>(std::clamp(multiply_adds / kWorkPerThread, 1.0, static_cast<double>(size())));
}

Team::Team(int threads) {
  workers_.reserve(static_cast<std::size_t>(threads > 1 ? threads - 1 : 0));
  try {
    for (int member = 1; member < threads; ++member) workers_.emplace_back([this, member] { work(member); });
  } catch (const std::system_error&) {
    // A process limit: fewer threads compute the same bits.
  }
}

Team::~Team() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Team::run(int active, void (*fn)(void*, int), void* context) noexcept {
  if (active <= 1) {
    fn(context, 0);
    return;
  }
  const std::lock_guard turn(turn_);
  {
    const std::lock_guard lock(mutex_);
    fn_ = fn;
    context_ = context;
    active_ = active;
    unfinished_ = active - 1;
    ++generation_;
  }
  wake_.notify_all();
  fn(context, 0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return unfinished_ == 0; });
}

void Team::work(int member) noexcept {
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
    if (stop_) return;
    seen = generation_;
    if (member >= active_) continue;
    const auto fn = fn_;
    void* const context = context_;
    lock.unlock();
    fn(context, member);
    lock.lock();
    if (--unfinished_ == 0) done_.notify_one();
  }
}

void Barrier::wait() noexcept {
  if (count_ == 1) return;
  const std::uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  // Phases are short and evenly split, so the others are usually near; then sleep.
  for (int spin = 0; spin < 4000; ++spin) {
    if (round_.load(std::memory_order_acquire) != round) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  while (round_.load(std::memory_order_acquire) == round) round_.wait(round, std::memory_order_acquire);
}

}  // namespace varmoe::cpu
