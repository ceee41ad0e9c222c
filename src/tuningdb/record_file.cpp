#include "tuningdb/record_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/text.hpp"
#include "model/json_writer.hpp"
#include "tuningdb/limits.hpp"
#include "tuningdb/record_order.hpp"

namespace varmoe::tuningdb {
namespace {

using model::FieldError;
using model::Json;
using model::JsonFields;
using model::NullField;

model::JsonLimits file_limits() {
  model::JsonLimits limits;
  limits.max_bytes = kMaxFileBytes;
  limits.max_depth = kMaxFileDepth;
  limits.max_values = kMaxFileValues;
  return limits;
}

/// A file of bad records alone must not give a message each.
void tell(RecordFile& file, std::size_t& told, std::string message) {
  if (++told <= kMaxProblems) file.problems.push_back(std::move(message));
}

void read_records(const Json::Array& list, const std::string& where, RecordFile& file) {
  std::map<std::string, std::pair<StoredRecord, std::size_t>> by_key;
  std::string last;
  std::size_t told = 0;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string here = fmt::format("{}: records[{}]", where, i);
    StoredRecord stored;
    try {
      stored = read_record(list[i], here);
    } catch (const FieldError& error) {
      tell(file, told, error.what());
      file.unread.push_back(list[i]);
      continue;
    }
    std::string key = sort_key(stored.record.key);
    if (key < last) file.sorted = false;
    last = key;
    const auto found = by_key.find(key);
    if (found == by_key.end()) {
      by_key.emplace(std::move(key), std::pair(std::move(stored), i));
      continue;
    }
    ++file.duplicates;
    auto& [kept, index] = found->second;
    tell(file, told, fmt::format("{} has the key of records[{}]; the better of them is used", here, index));
    if (better(stored.record, kept.record)) {
      kept = std::move(stored);
      index = i;
    }
  }
  if (told > kMaxProblems) {
    file.problems.push_back(fmt::format("{}: {} more such records", where, told - kMaxProblems));
  }
  for (auto& [key, value] : by_key) file.records.push_back(std::move(value.first));
}

}  // namespace

Result<RecordFile> parse_record_file(std::string_view text, std::string_view origin,
                                     std::int64_t newest_schema) {
  const std::string where = printable(origin, 4096);
  const auto root = model::parse_strict_json(text, file_limits());
  if (!root) return Error(ErrorCode::invalid_argument, fmt::format("{}: {}", where, root.error().message()));
  try {
    const JsonFields fields(*root, where, NullField::is_wrong);
    const std::int64_t schema = fields.integer(kSchemaField, 1, INT64_MAX);
    if (schema > newest_schema) {
      return Error(ErrorCode::unsupported,
                   fmt::format("{}: {} is {}; this library reads up to {}: the file is left as it is and not "
                               "used; update varmoe to use it",
                               where, kSchemaField, schema, newest_schema));
    }
    const Json* records = fields.find("records");
    const auto* list = records == nullptr ? nullptr : records->as<Json::Array>();
    if (list == nullptr) fields.fail("records is missing or no list");
    if (list->size() > kMaxFileRecords) {
      fields.fail("records", *records, fmt::format("must have at most {} records", kMaxFileRecords));
    }
    RecordFile file;
    read_records(*list, where, file);
    for (const auto& [name, value] : *root->as<Json::Object>()) {
      if (name != kSchemaField && name != "records") file.unknown.emplace(name, value);
    }
    return file;
  } catch (const FieldError& error) {
    return Error(ErrorCode::invalid_argument, error.what());
  }
}

Result<std::string> record_file_text(const RecordFile& file) {
  std::string text = fmt::format("{{\"{}\": {},\n", kSchemaField, kSchema);
  for (const auto& [name, value] : file.unknown) {
    text += fmt::format("{}: {},\n", model::json_quoted(name), model::json_text(value));
  }
  text += "\"records\": [\n";
  std::size_t count = 0;
  const auto element = [&](const std::string& json) {
    if (count++ > 0) text += ",\n";
    text += json;
  };
  for (const StoredRecord& stored : file.records) element(record_text(stored.record, stored.unknown));
  std::vector<std::string> unread;
  for (const Json& value : file.unread) unread.push_back(model::json_text(value));
  std::sort(unread.begin(), unread.end());
  unread.erase(std::unique(unread.begin(), unread.end()), unread.end());
  for (const std::string& json : unread) element(json);
  text += count > 0 ? "\n]}\n" : "]}\n";
  if (count > kMaxFileRecords || text.size() > kMaxFileBytes) {
    return Error(ErrorCode::io_error,
                 fmt::format("{} records are {} bytes; a file of records has at most {} and {} bytes", count,
                             text.size(), kMaxFileRecords, kMaxFileBytes));
  }
  return text;
}

bool merge_record(RecordFile& file, const TuningRecord& record) {
  const std::string key = sort_key(record.key);
  const auto place = std::lower_bound(
      file.records.begin(), file.records.end(), key,
      [](const StoredRecord& a, const std::string& k) { return sort_key(a.record.key) < k; });
  if (place == file.records.end() || sort_key(place->record.key) != key) {
    file.records.insert(place, {record, {}});
    return true;
  }
  if (!better(record, place->record)) return place->record == record;
  place->record = record;
  return true;
}

std::string record_file_name(const TuningDevice& device) {
  constexpr std::size_t kMaxSlug = 64;
  std::string slug;
  for (const char c : device.name) {
    if (slug.size() >= kMaxSlug) break;
    if (c >= 'A' && c <= 'Z') {
      slug += static_cast<char>(c - 'A' + 'a');
    } else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
      slug += c;
    } else if (!slug.empty() && slug.back() != '-') {
      slug += '-';
    }
  }
  while (!slug.empty() && slug.back() == '-') slug.pop_back();
  return (slug.empty() ? "device" : slug) + ".json";
}

}  // namespace varmoe::tuningdb
