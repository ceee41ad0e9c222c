#pragma once

#include <string>
#include <string_view>

#include "model/json_fields.hpp"
#include "varmoe/tuning.hpp"

/// One record as JSON; tuning_db/README.md lists the fields.
namespace varmoe::tuningdb {

/// A record as a file holds it.
struct StoredRecord {
  TuningRecord record;
  /// Fields that this library does not know: ignored, and written back.
  model::Json::Object unknown;
};

/// Reads a record; `where` begins the message: the file and which of its records it is. Throws
/// model::FieldError naming the field, its value and what is allowed. Keys of a config may be missing where
/// the record's config space is an older one: they then have the default, which is what such a config meant.
StoredRecord read_record(const model::Json& value, const std::string& where);

/// The record's JSON: an object over several lines (key, configs, figures, provenance), so that a diff shows
/// what changed and no more. The same record gives the same bytes.
std::string record_text(const TuningRecord& record, const model::Json::Object& unknown = {});

/// A key alone as JSON on one line, and back. `where` begins the message of an error (invalid_argument).
std::string key_text(const TuningKey& key);
Result<TuningKey> read_key_text(std::string_view text, const std::string& where);

/// Whether everything of the record is in range, so that what record_text makes of it can be read;
/// invalid_argument.
Status check_record(const TuningRecord& record);

}  // namespace varmoe::tuningdb
