#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/tune/trial_log.hpp"
#include "tuningdb/layers.hpp"
#include "varmoe/tuning.hpp"

/// What a report shows: the records of each layer, with the floor and what the tuner tried.
namespace varmoe::tools {

struct ReportBucket {
  TuningRecord record;
  std::string from;                ///< layer and file that hold the record
  std::string stale;               ///< why its figures may no longer hold; empty: they do
  std::optional<double> floor_us;  ///< none for a device without a profile
  std::vector<LoggedTrial> trials;
};
struct ReportLayer {
  std::string device, layer;
  std::vector<ReportBucket> buckets;  ///< ascending
};
struct ReportData {
  std::vector<ReportLayer> layers;
  std::vector<std::string> problems;  ///< what could not be read, a sentence each
};

/// Of two records with one key the better is shown. `trial_logs`: beside those that lie with the records.
ReportData collect_report(const tuningdb::TuningSources& sources, const std::vector<std::string>& trial_logs);

}  // namespace varmoe::tools
