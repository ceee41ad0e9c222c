#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "tuningdb/record_json.hpp"

/// A file of records: text ↔ records.
///
///   {"varmoe_tuning": 1,
///   "records": [
///   {"arch": "sm_90a", …,
///    …},
///   …
///   ]}
///
/// Records are sorted and each key occurs once. Writing what was read gives the same bytes where varmoe wrote
/// them.
namespace varmoe::tuningdb {

inline constexpr std::int64_t kSchema = 1;
inline constexpr std::string_view kSchemaField = "varmoe_tuning";

struct RecordFile {
  std::vector<StoredRecord> records;  ///< sorted by key, each key once
  /// Elements of "records" that could not be used as records: kept, since a newer library may have written
  /// them.
  std::vector<model::Json> unread;
  model::Json::Object unknown;  ///< fields of the file that this library does not know: kept
  std::vector<std::string>
      problems;                ///< one sentence per record that is not used, naming file, record and field
  bool sorted = true;          ///< the records lay in order
  std::size_t duplicates = 0;  ///< records whose key another one has
};

/// Strict reading, within the limits of limits.hpp. `origin` stands for the file in messages.
/// invalid_argument where the whole text is unusable (no JSON, no schema, too large); unsupported where its
/// schema is newer than `newest_schema`. A bad record is skipped and told in `problems`; of two with one key
/// the better is taken.
Result<RecordFile> parse_record_file(std::string_view text, std::string_view origin,
                                     std::int64_t newest_schema = kSchema);

/// The file's text. io_error when it would exceed what can be read again.
Result<std::string> record_file_text(const RecordFile& file);

/// Puts a record in its place; of two with one key the better is kept (record_order.hpp), with the unknown
/// fields that the file's record had. Returns whether `record` is now there.
bool merge_record(RecordFile& file, const TuningRecord& record);

/// "nvidia-h200.json": the file that holds a device's records. Names of different boards may share a file;
/// records say whose they are.
std::string record_file_name(const TuningDevice& device);

}  // namespace varmoe::tuningdb
