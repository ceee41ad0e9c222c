#pragma once

#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuningdb/layers.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/tuning.hpp"

namespace varmoe::tools {

/// The usable records of one device that a run knows: those read at its start and those it made.
class KnownRecords {
 public:
  KnownRecords(const tuningdb::TuningSources& sources, const model::DeviceProfile& device);

  /// What could not be read or used, a sentence each.
  const std::vector<std::string>& problems() const noexcept { return problems_; }
  void add(TuningRecord record);

  /// Whether there is an exact, verified record of today's epochs.
  bool is_fresh(const TuningKey& key) const;
  /// Configs of the nearest records: of the key itself, of near buckets, of layers with the same set of
  /// widths; distinct, nearest first.
  std::vector<LayerConfig> hints(const TuningKey& key) const;
  /// The same of a backward pass; those with gradients of the other type too, after those of its own.
  std::vector<BackwardConfig> backward_hints(const TuningKey& key) const;
  /// Whether a layer with the same widths in other numbers has a fresh record at this bucket: its tiles are
  /// as good a guess as there is.
  bool has_sibling(const TuningKey& key) const;

 private:
  /// Records that say something of a key, nearest first.
  std::vector<const TuningRecord*> near(const TuningKey& key) const;
  model::DeviceProfile device_;
  std::vector<TuningRecord> records_;
  std::vector<std::string> problems_;
};

}  // namespace varmoe::tools
