#include "tuner/tuning_run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "base/thread_pool.hpp"

namespace varmoe::tuner {
namespace {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

/// What the threads of a run share. The mutex guards everything below it, and the callbacks.
class TuningRun::Work {
 public:
  explicit Work(TuningRun& run) : run_(run), options_(run.options_), callbacks_(run.callbacks_) {
    begin_ = now();
    report_.items = run.items_.size();
    for (const TuningItem& item : run.items_) {
      if (!options_.retune && callbacks_.is_fresh && callbacks_.is_fresh(item.key)) {
        ++report_.fresh;
      } else {
        queue_.push_back(&item);
      }
    }
    total_ = queue_.size();
    tell_progress();
  }

  /// One measurer's thread.
  void serve(Measurer& measurer) {
    while (const TuningItem* item = take()) {
      if (Status status = tune(measurer, *item); !status) {
        give_back(*item, measurer, status.error());
        return;
      }
    }
  }

  TuningReport finish() {
    report_.left = total_ - done_;
    if (report_.left > 0) {
      report_.end = !stopped_ ? RunEnd::no_measurer : cancelled() ? RunEnd::cancelled : RunEnd::time_limit;
    }
    return std::move(report_);
  }

 private:
  double now() const { return options_.seconds ? options_.seconds() : steady_seconds(); }
  bool cancelled() const { return options_.cancel != nullptr && options_.cancel->load(); }
  bool out_of_time() const {
    return options_.time_limit_seconds && now() - begin_ >= *options_.time_limit_seconds;
  }
  bool stopped() const { return cancelled() || out_of_time(); }

  /// The next item; null: there is none, and none will come back, or the run is to stop.
  const TuningItem* take() {
    std::unique_lock lock(mutex_);
    // Another's item may come back: then it is ours.
    changed_.wait(lock, [this] { return !queue_.empty() || in_flight_ == 0 || stopped_; });
    if (stopped()) stopped_ = true;
    if (stopped_) changed_.notify_all();
    if (stopped_ || queue_.empty()) return nullptr;
    const TuningItem* item = queue_.front();
    queue_.pop_front();
    ++in_flight_;
    return item;
  }

  /// An error: this measurer can no more, or the run is to stop.
  Status tune(Measurer& measurer, const TuningItem& item) {
    SearchOptions search = options_.search;
    search.stop = [this] { return stopped(); };
    if (callbacks_.trial) {
      search.on_trial = [this, &item](const Trial& trial) {
        const std::lock_guard lock(mutex_);
        callbacks_.trial(item, trial);
      };
    } else {
      search.on_trial = nullptr;
    }
    const bool backward = item.key.pass == TuningPass::backward;
    if (backward && callbacks_.backward_hints) {
      const std::lock_guard lock(mutex_);
      for (const BackwardConfig& hint : callbacks_.backward_hints(item))
        search.backward_hints.push_back(hint);
    }
    if (!backward && callbacks_.hints) {
      const std::lock_guard lock(mutex_);
      for (const LayerConfig& hint : callbacks_.hints(item)) search.hints.push_back(hint);
    }
    if (callbacks_.adjust) {
      const std::lock_guard lock(mutex_);
      callbacks_.adjust(item, search);
    }
    auto outcome = search_item(measurer, item, run_.device_, search);
    if (!outcome) {
      // What is wrong with the item is no fault of the measurer's.
      if (outcome.error().code() != ErrorCode::invalid_argument) return outcome.error();
      SearchOutcome refused;
      refused.failure = outcome.error().message();
      conclude(measurer, item, std::move(refused));
      return {};
    }
    conclude(measurer, item, *std::move(outcome));
    return {};
  }

  void conclude(const Measurer& measurer, const TuningItem& item, SearchOutcome outcome) {
    const std::lock_guard lock(mutex_);
    std::string failure = outcome.failure;
    if (outcome.found) {
      if (callbacks_.complete) callbacks_.complete(outcome.record, measurer);
      if (callbacks_.save) {
        if (Status saved = callbacks_.save(outcome.record); !saved)
          failure = fmt::format("measured, but not saved: {}", saved.error().message());
      }
    }
    ++done_;
    if (failure.empty()) {
      ++report_.tuned;
    } else {
      ++report_.failed;
      report_.failures.push_back({item.key, std::move(failure)});
    }
    if (callbacks_.item_done) callbacks_.item_done(item, outcome);
    tell_progress();
    --in_flight_;
    changed_.notify_all();
  }

  void give_back(const TuningItem& item, const Measurer& measurer, const Error& error) {
    const std::lock_guard lock(mutex_);
    queue_.push_front(&item);
    --in_flight_;
    if (error.code() == ErrorCode::cancelled) {
      stopped_ = true;
    } else {
      report_.lost_measurers.push_back(fmt::format("{}: {}", measurer.description(), error.message()));
    }
    changed_.notify_all();
  }

  void tell_progress() {
    if (!callbacks_.progress) return;
    TuningProgress progress{total_, done_, report_.failed, now() - begin_, std::nullopt};
    if (done_ > 0) {
      // Devices that work side by side are in what the items took so far.
      progress.seconds_left =
          progress.elapsed_seconds / static_cast<double>(done_) * static_cast<double>(total_ - done_);
    }
    callbacks_.progress(progress);
  }

  TuningRun& run_;
  const TuningOptions& options_;
  const TuningCallbacks& callbacks_;
  double begin_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<const TuningItem*> queue_;
  std::size_t total_ = 0, done_ = 0, in_flight_ = 0;
  bool stopped_ = false;
  TuningReport report_;
};

bool TuningRun::add(TuningItem item) {
  const bool known = std::any_of(items_.begin(), items_.end(),
                                 [&](const TuningItem& other) { return other.key == item.key; });
  if (!known) items_.push_back(std::move(item));
  return !known;
}

TuningReport TuningRun::run(std::span<Measurer* const> measurers) {
  Work work(*this);
  parallel_for(measurers.size(), static_cast<int>(measurers.size()),
               [&](std::size_t i) { work.serve(*measurers[i]); });
  return work.finish();
}

const char* to_string(RunEnd end) noexcept {
  switch (end) {
    case RunEnd::finished:
      return "finished";
    case RunEnd::time_limit:
      return "time_limit";
    case RunEnd::cancelled:
      return "cancelled";
    case RunEnd::no_measurer:
      return "no_measurer";
  }
  return "invalid";
}

}  // namespace varmoe::tuner
