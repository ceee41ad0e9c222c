#include "base/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace varmoe {
namespace {

/// While this lives, threads that are made start with the host's asynchronous signals blocked: its handlers
/// expect to run on its own threads. Faults and profiling signals still reach them.
class QuietSignals {
 public:
  QuietSignals() noexcept {
    sigset_t quiet;
    sigfillset(&quiet);
    for (int loud : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF})
      sigdelset(&quiet, loud);
    pthread_sigmask(SIG_BLOCK, &quiet, &before_);
  }
  ~QuietSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  QuietSignals(const QuietSignals&) = delete;
  QuietSignals& operator=(const QuietSignals&) = delete;

 private:
  sigset_t before_;
};

/// One parallel_for: shared by the caller and its helpers, and outliving the caller's frame for helpers that
/// come too late.
class Loop {
 public:
  Loop(std::size_t n, const std::function<void(std::size_t)>& fn) : n_(n), fn_(fn) {}

  /// Takes indices until there are none. `fn_` is touched only with an index in hand, which keeps the caller
  /// waiting.
  void work() {
    for (;;) {
      const std::size_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= n_) return;
      std::size_t finished = 1;
      try {
        fn_(i);
      } catch (...) {
        const std::size_t next = next_.exchange(n_, std::memory_order_relaxed);
        finished += n_ - std::min(next, n_);
        const std::lock_guard lock(mutex_);
        if (!exception_) exception_ = std::current_exception();
      }
      finish(finished);
    }
  }

  void wait() {
    std::unique_lock lock(mutex_);
    all_done_.wait(lock, [&] { return done_.load(std::memory_order_acquire) == n_; });
    if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
  }

 private:
  void finish(std::size_t count) {
    if (done_.fetch_add(count, std::memory_order_acq_rel) + count != n_) return;
    const std::lock_guard lock(mutex_);  // so that the caller is either waiting or has yet to look
    all_done_.notify_all();
  }

  const std::size_t n_;
  const std::function<void(std::size_t)>& fn_;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
  std::exception_ptr exception_;
};

}  // namespace

struct ThreadPool::Impl {
  std::mutex mutex;
  std::condition_variable work_came, work_done;
  std::deque<std::function<void()>> queue;
  std::size_t unfinished = 0;  // queued or running
  bool stopping = false;
  std::exception_ptr exception;
  std::vector<std::thread> threads;

  void run_one(std::function<void()> task) {
    std::exception_ptr thrown;
    try {
      task();
    } catch (...) {
      thrown = std::current_exception();
    }
    task = nullptr;  // what it captured goes before it counts as done
    const std::lock_guard lock(mutex);
    if (thrown && !exception) exception = thrown;
    if (--unfinished == 0) work_done.notify_all();
  }

  void serve() {
    std::unique_lock lock(mutex);
    for (;;) {
      work_came.wait(lock, [&] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      std::function<void()> task = std::move(queue.front());
      queue.pop_front();
      lock.unlock();
      run_one(std::move(task));
      lock.lock();
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  if (threads <= 0) threads = available_cores();
  const QuietSignals quiet;
  impl_->threads.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) {
    try {
      impl_->threads.emplace_back([impl = impl_.get()] { impl->serve(); });
    } catch (const std::system_error&) {
      break;  // a limit on threads: fewer do the same work, and none leaves it to the caller
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work_came.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

int ThreadPool::size() const noexcept {
  return static_cast<int>(impl_->threads.size());
}

void ThreadPool::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->threads.empty()) {
      impl_->queue.push_back(std::move(task));
      ++impl_->unfinished;
      impl_->work_came.notify_one();
      return;
    }
    ++impl_->unfinished;
  }
  impl_->run_one(std::move(task));
}

void ThreadPool::wait() {
  std::unique_lock lock(impl_->mutex);
  impl_->work_done.wait(lock, [&] { return impl_->unfinished == 0; });
  if (impl_->exception) std::rethrow_exception(std::exchange(impl_->exception, nullptr));
}

void ThreadPool::parallel_for(std::size_t n, const std::function<void(std::size_t)>& fn) {
  if (n == 0) return;
  const auto loop = std::make_shared<Loop>(n, fn);
  const std::size_t helpers = std::min(n - 1, impl_->threads.size());
  for (std::size_t i = 0; i < helpers; ++i) submit([loop] { loop->work(); });
  loop->work();
  loop->wait();
}

void parallel_for(std::size_t n, int threads, const std::function<void(std::size_t)>& fn) {
  std::size_t wanted = static_cast<std::size_t>(threads > 0 ? threads : available_cores());
  wanted = std::min(wanted, n);
  if (wanted <= 1) {
    for (std::size_t i = 0; i < n; ++i) fn(i);
    return;
  }
  ThreadPool(static_cast<int>(wanted) - 1).parallel_for(n, fn);
}

int available_cores() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
  // More cores than the set has room for.
  return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1u));
}

}  // namespace varmoe
