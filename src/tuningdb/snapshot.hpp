#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "base/log.hpp"
#include "model/device_profile.hpp"
#include "tuningdb/layers.hpp"
#include "varmoe/tuning.hpp"

namespace varmoe::tuningdb {

/// An answer of a snapshot.
struct TunedMatch {
  LayerConfig config;       ///< of a forward
  BackwardConfig backward;  ///< of a backward pass
  MatchQuality quality = MatchQuality::exact;
  std::string layer;  ///< "user /home/me/.cache/varmoe/tuning", "shipped"
  std::string file;   ///< the path, or a shipped file's name
  std::string key;    ///< of the record, for people
  /// All of the record.
  std::shared_ptr<const TuningRecord> record;
};

/// All records of all layers as they were when it was loaded. Immutable, cheap to copy, thread-safe: later
/// saves do not show; load again to see them.
///
/// What answers a question: records of the arch whose layer is the asked one but for how many experts have
/// each width. Each is judged in four ways: its bucket (the same, or half or twice), its counts (the same or
/// not), its epochs (today's or not), its device (the same, the same arch and number of SMs, the same arch).
/// The best match wins by its worst judgement, then by the next worst, and so on; among equals the layer that
/// comes first, then the larger bucket, then the closest counts. So a fresh record of a late layer beats a
/// stale one of an early layer.
///
/// Buckets lie a factor of 2 apart. Of half and twice the asked one the larger is taken: its tiles are tall
/// enough for every row that comes, and a tile that is part empty masks its stores and costs little; a config
/// made for half the rows walks twice the tiles and reads the weights once for each. Beyond a factor of 2 the
/// rows per expert, on which everything depends, are too far off for a measurement to beat the cost model.
///
/// Counts may differ only where E and the set of widths agree: k and E say how many rows an expert gets, and
/// the widths decide the tiles. The layer is then another one of the same make (a model's layers often differ
/// in this alone).
class TuningSnapshot {
 public:
  TuningSnapshot() = default;  ///< has no records

  /// Reads all layers; never fails. What cannot be used is told in problems(), and to `log` as warnings, each
  /// once. Records whose config is not in the config space are among that. `own`: the profile of the device
  /// at hand, where it may differ from the shipped ones; may be null. `fs`: null is the POSIX one.
  static TuningSnapshot load(const TuningSources& sources, const Log& log,
                             const model::DeviceProfile* own = nullptr, FileSystem* fs = nullptr);

  /// The best match for a layer on a device at a token count (rounded up to its bucket), or nothing: then the
  /// cost model predicts. The config was checked for this very layer and device: check_layer_config takes it.
  /// Said to the log, once each: a stale record that a fresh one of a later layer stands in for; a record
  /// passed over since the asked device's limits exclude its config. `spec` must be valid.
  std::optional<TunedMatch> find(const LayerSpec& spec, const model::DeviceProfile& device,
                                 std::int64_t tokens) const;

  /// The same for the backward pass with gradients of weights of this type: check_backward_config takes the
  /// config.
  std::optional<TunedMatch> find_backward(const LayerSpec& spec, const model::DeviceProfile& device,
                                          std::int64_t tokens, GradientType gradient_type) const;

  /// What could not be read or used, a sentence each.
  const std::vector<std::string>& problems() const noexcept;
  /// Where was looked, for the message about a miss: "user /home/me/.cache/varmoe/tuning, shipped".
  std::string searched() const;
  /// Usable records, of all layers.
  std::size_t size() const noexcept;

 private:
  struct State;
  std::optional<TunedMatch> match(const TuningKey& asked, const LayerSpec& spec,
                                  const model::DeviceProfile& device) const;
  explicit TuningSnapshot(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;  ///< null: no records
};

}  // namespace varmoe::tuningdb
