#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/device_profile.hpp"
#include "tuningdb/hint.hpp"
#include "varmoe/tuning.hpp"

/// AITER's tuned_fmoe.csv: exchange of what both can express. The CSV names no board, widths are uniform,
/// weights nk with the gate first; there is no place for batch invariance, validators and provenance. Our
/// configs travel as kernel names, "varmoe:schedule=…,block_m=…". Backward passes have no rows.
namespace varmoe::tuningdb {

struct CsvExport {
  std::string text;                  ///< with a header line
  std::vector<std::string> dropped;  ///< records, and fields of records, that the CSV cannot hold
};
/// In the order of the records, in AITER's order of columns.
CsvExport export_aiter_csv(std::span<const TuningRecord> records);

struct CsvImport {
  /// Rows with kernel names of ours. What the CSV does not hold is unknown: they count as unverified and
  /// stale until they are measured again. Each passed check_record and check_config.
  std::vector<TuningRecord> records;
  std::vector<TuningHint>
      hints;  ///< rows of other kernels, and all of the short form (impl, splitK, pad_m, pad_n)
  std::vector<std::string> dropped;  ///< rows and columns that were not used, each with the reason
};
/// Columns are read by name, in any order; many may be missing. `device` stands in for the board that the CSV
/// does not name: rows of ours with another cu_num are dropped. `origin` begins messages. invalid_argument
/// when the text is no CSV or lacks a column without which no row can be understood.
Result<CsvImport> import_aiter_csv(std::string_view text, std::string_view origin,
                                   const model::DeviceProfile& device);

}  // namespace varmoe::tuningdb
