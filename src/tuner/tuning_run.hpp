#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuner/measurer.hpp"
#include "tuner/search.hpp"
#include "varmoe/error.hpp"
#include "varmoe/tuning.hpp"

/// Tuning many layers and buckets: a list of work that several devices share, and that can be stopped and
/// taken up again.
namespace varmoe::tuner {

struct TuningProgress {
  std::size_t total = 0;   ///< items to do in this run; those that were fresh are not among them
  std::size_t done = 0;    ///< of these, tuned or failed
  std::size_t failed = 0;  ///< of those done
  double elapsed_seconds = 0;
  std::optional<double> seconds_left;  ///< estimated from the items done; none before the first
};

/// What the world gives and takes. Those left null are not asked. They are never called two at a time, but
/// from any of the run's threads; they must not throw.
struct TuningCallbacks {
  /// Whether the store has an exact and fresh record of the key: then it is not tuned again. Asked before
  /// anything runs.
  std::function<bool(const TuningKey&)> is_fresh;
  /// Configs to try beside SearchOptions::hints: of near records, of an import.
  std::function<std::vector<LayerConfig>(const TuningItem&)> hints;
  /// The same for an item whose pass is backward.
  std::function<std::vector<BackwardConfig>(const TuningItem&)> backward_hints;
  /// Changes the options of one item's search, e.g. to fewer candidates where a near layer was tuned. After
  /// hints.
  std::function<void(const TuningItem&, SearchOptions&)> adjust;
  /// Fills epochs and provenance of a record, and whatever else the search does not know.
  std::function<void(TuningRecord&, const Measurer&)> complete;
  /// Keeps a record, at once: what it returned for is not lost when the run is killed.
  std::function<Status(const TuningRecord&)> save;
  std::function<void(const TuningProgress&)> progress;  ///< at the start and after every item
  std::function<void(const TuningItem&, const Trial&)> trial;
  /// After an item: what came of it, or why it failed.
  std::function<void(const TuningItem&, const SearchOutcome&)> item_done;
};

struct TuningOptions {
  SearchOptions search;                       ///< its `stop` and `on_trial` are the run's
  bool retune = false;                        ///< fresh records are measured again
  std::optional<double> time_limit_seconds;   ///< no batch begins after it; the item under way is given up
  const std::atomic<bool>* cancel = nullptr;  ///< as the limit, at once
  std::function<double()> seconds;            ///< a steady clock; null: the system's. From any thread
};

enum class RunEnd : std::uint8_t {
  finished,  ///< nothing is left
  time_limit,
  cancelled,
  no_measurer,  ///< every measurer gave up
};
const char* to_string(RunEnd end) noexcept;

struct ItemFailure {
  TuningKey key;
  std::string reason;
};

/// items = fresh + tuned + failed + left.
struct TuningReport {
  std::size_t items = 0;  ///< distinct keys
  std::size_t fresh = 0;  ///< left alone
  std::size_t tuned = 0;  ///< measured, and saved
  std::size_t failed = 0;
  std::size_t left = 0;  ///< not done when the run ended
  RunEnd end = RunEnd::finished;
  std::vector<ItemFailure> failures;        ///< in the order in which they came
  std::vector<std::string> lost_measurers;  ///< description and reason of those that gave up
};

class TuningRun {
 public:
  /// `device`: of all measurers; it outlives the run.
  TuningRun(const model::DeviceProfile& device, TuningOptions options, TuningCallbacks callbacks)
      : device_(device), options_(std::move(options)), callbacks_(std::move(callbacks)) {}

  /// Adds an item to the end of the list, unless its key is there: layers that share a key share its
  /// record. Returns whether it was added.
  bool add(TuningItem item);

  /// Works on the list with one thread a measurer until nothing is left, the time is up, or it is
  /// cancelled. An item that fails does not end the run. A measurer whose measure() returns an error works
  /// no longer; its item goes back on the list. Once only.
  TuningReport run(std::span<Measurer* const> measurers);

 private:
  class Work;
  const model::DeviceProfile& device_;
  TuningOptions options_;
  TuningCallbacks callbacks_;
  std::vector<TuningItem> items_;
};

}  // namespace varmoe::tuner
