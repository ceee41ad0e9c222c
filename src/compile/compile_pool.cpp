#include "compile/compile_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "base/thread_pool.hpp"

namespace varmoe::compile {
namespace {

using Clock = std::chrono::steady_clock;

/// After `limit` a compile is asked to stop; this long after that it is given up.
constexpr std::chrono::milliseconds kGrace{1000};
constexpr std::chrono::milliseconds kCancelPoll{10};

enum class Phase { waiting, running, delivering, done };

struct Job {
  CompileRequest request;
  Phase phase = Phase::waiting;
  Clock::time_point started;
  bool late = false;              // asked to stop because of its limit
  bool abandoned = false;         // its thread has been left behind and must touch nothing any more
  std::atomic<bool> stop{false};  // what the compiler looks at
  std::size_t worker = 0;
  std::optional<Result<KernelBinary>> result;
};

/// Shared by the caller and the threads; a thread that hangs in the compiler keeps it alive.
struct Batch {
  std::shared_ptr<Compiler> compiler;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;
  std::size_t next = 0;
  std::size_t done = 0;
  // The caller's; a thread left behind does not touch it, so it is never used after compile_all has returned.
  const CompileAllOptions* options = nullptr;
  std::mutex callback_mutex;
  std::size_t delivered = 0;
};

Error late_error(const Job& job, std::chrono::milliseconds limit) {
  return {ErrorCode::compile_failed,
          fmt::format("compiling {} for {} took longer than {} ms and was given up", job.request.entry_name,
                      job.request.arch, limit.count())};
}

bool user_cancelled(const CompileAllOptions& options) {
  return options.cancel && options.cancel->load(std::memory_order_relaxed);
}

/// Hands a job's result to the callbacks and marks it done. Its phase is `delivering`, so that nobody else
/// touches it.
void deliver(Batch& batch, std::size_t index, Result<KernelBinary> result) {
  {
    const std::lock_guard lock(batch.callback_mutex);
    try {
      if (batch.options->on_result) batch.options->on_result(index, result);
      ++batch.delivered;
      if (batch.options->progress) batch.options->progress(batch.delivered, batch.jobs.size());
    } catch (const std::exception& e) {
      result = Error(ErrorCode::internal, fmt::format("a callback threw: {}", e.what()));
    } catch (...) {
      result = Error(ErrorCode::internal, "a callback threw");
    }
  }
  const std::lock_guard lock(batch.mutex);
  batch.jobs[index].result = std::move(result);
  batch.jobs[index].phase = Phase::done;
  ++batch.done;
  batch.changed.notify_all();
}

Result<KernelBinary> compile_one(Compiler& compiler, const CompileRequest& request) {
  try {
    return compiler.compile(request);
  } catch (const std::exception& e) {
    return Error(ErrorCode::internal, fmt::format("compiling {}: {}", request.entry_name, e.what()));
  } catch (...) {
    return Error(ErrorCode::internal, fmt::format("compiling {} threw", request.entry_name));
  }
}

void work(const std::shared_ptr<Batch>& batch, std::size_t worker) {
  for (;;) {
    std::size_t index = 0;
    bool cancelled = false;
    {
      const std::lock_guard lock(batch->mutex);
      if (batch->next == batch->jobs.size()) return;
      index = batch->next++;
      cancelled = user_cancelled(*batch->options);
      Job& job = batch->jobs[index];
      job.phase = cancelled ? Phase::delivering : Phase::running;
      job.worker = worker;
      job.started = Clock::now();
      batch->changed.notify_all();  // there is a new deadline
    }
    Job& job = batch->jobs[index];
    if (cancelled) {
      deliver(*batch, index,
              Error(ErrorCode::cancelled, fmt::format("compiling {} was cancelled", job.request.entry_name)));
      continue;
    }
    Result<KernelBinary> result = compile_one(*batch->compiler, job.request);
    {
      const std::lock_guard lock(batch->mutex);
      if (job.abandoned) return;  // nobody waits; this thread has been replaced
      job.phase = Phase::delivering;
      if (job.late && !result && result.error().code() == ErrorCode::cancelled) {
        result = late_error(job, batch->options->limit);
      }
    }
    deliver(*batch, index, std::move(result));
  }
}

}  // namespace

std::vector<Result<KernelBinary>> compile_all(const std::shared_ptr<Compiler>& compiler,
                                              std::vector<CompileRequest> requests,
                                              const CompileAllOptions& options) {
  std::vector<Result<KernelBinary>> results;
  if (requests.empty()) return results;
  auto batch = std::make_shared<Batch>();
  batch->compiler = compiler;
  batch->options = &options;
  for (CompileRequest& request : requests) {
    Job& job = batch->jobs.emplace_back();
    job.request = std::move(request);
    job.request.cancel = &job.stop;
  }

  std::deque<std::thread> threads;
  const auto start_thread = [&] {
    try {
      threads.emplace_back(work, batch, threads.size());
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  };
  const std::size_t wanted =
      std::min(batch->jobs.size(),
               static_cast<std::size_t>(options.threads > 0 ? options.threads : available_cores()));
  std::size_t started = 0;
  while (started < wanted && start_thread()) ++started;
  if (started == 0) work(batch, 0);  // no thread to be had: here, without a limit

  std::unique_lock lock(batch->mutex);
  while (batch->done < batch->jobs.size()) {
    // The next moment at which something has to be done about a job that is not finished.
    const auto now = Clock::now();
    auto wake = now + std::chrono::hours(1);
    if (options.cancel) wake = now + kCancelPoll;
    std::optional<std::size_t> given_up;
    for (std::size_t i = 0; i < batch->next && !given_up; ++i) {
      Job& job = batch->jobs[i];
      if (job.phase != Phase::running) continue;
      if (user_cancelled(options)) job.stop.store(true, std::memory_order_relaxed);
      const auto limit = job.started + options.limit;
      if (now >= limit + kGrace) {
        given_up = i;
      } else if (now >= limit) {
        job.late = true;
        job.stop.store(true, std::memory_order_relaxed);
        wake = std::min(wake, limit + kGrace);
      } else {
        wake = std::min(wake, limit);
      }
    }
    if (!given_up) {
      batch->changed.wait_until(lock, wake);
      continue;
    }
    Job& job = batch->jobs[*given_up];
    job.abandoned = true;
    job.phase = Phase::delivering;
    threads[job.worker].detach();
    const bool more = batch->next < batch->jobs.size();
    lock.unlock();
    const bool replaced = more && start_thread();
    deliver(*batch, *given_up, late_error(job, options.limit));
    if (more && !replaced) work(batch, 0);
    lock.lock();
  }
  lock.unlock();
  for (std::thread& thread : threads) {
    if (thread.joinable()) thread.join();
  }
  results.reserve(batch->jobs.size());
  for (Job& job : batch->jobs) results.push_back(std::move(*job.result));
  return results;
}

}  // namespace varmoe::compile
