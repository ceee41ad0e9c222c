#include "fuzz/tuningdb/tuningdb_fuzz.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/vllm_hints.hpp"

namespace varmoe::fuzz {
namespace {

const model::DeviceProfile& h200() {
  static const model::DeviceProfile profile = *model::find_profile("h200");
  return profile;
}

const char* check_record(const TuningRecord& record) {
  if (!validate(record.key)) return "a record's key is not valid";
  if (!std::isfinite(record.us) || record.us <= 0) return "a record's time is no time";
  if (make_tuning_key(layer_spec_of(record.key), record.key.device, record.key.token) != record.key)
    return "a record's key is not that of its layer";
  return nullptr;
}

const char* check_messages(const std::vector<std::string>& messages) {
  for (const std::string& message : messages)
    if (!presentable(message)) return "a message is not fit for a log";
  return nullptr;
}

}  // namespace

Outcome tuning_records(std::string_view text) {
  Outcome outcome;
  const auto broke = [&outcome](const char* what) {
    if (what != nullptr) outcome.broken = what;
  };
  broke(check_messages(tuningdb::check_record_file(text, "fuzz")));
  const auto file = tuningdb::parse_record_file(text, "fuzz");
  if (!file) {
    if (!presentable(file.error().message())) broke("a message is not fit for a log");
    return outcome;
  }
  broke(check_messages(file->problems));
  outcome.accepted = !file->records.empty();
  for (const auto& stored : file->records) broke(check_record(stored.record));
  const auto written = tuningdb::record_file_text(*file);
  if (!written) return outcome;  // larger than what may be read again
  const auto again = tuningdb::parse_record_file(*written, "fuzz");
  if (!again || again->records.size() != file->records.size())
    return {"written records do not read back", outcome.accepted};
  for (std::size_t i = 0; i < file->records.size(); ++i)
    if (again->records[i].record != file->records[i].record) broke("a written record reads back as another");
  if (const auto twice = tuningdb::record_file_text(*again); !twice || *twice != *written)
    broke("a text is not stable");
  return outcome;
}

Outcome tuning_csv(std::string_view text) {
  Outcome outcome;
  const auto broke = [&outcome](const char* what) {
    if (what != nullptr) outcome.broken = what;
  };
  if (const auto csv = tuningdb::import_aiter_csv(text, "fuzz", h200()); !csv) {
    if (!presentable(csv.error().message())) broke("a message is not fit for a log");
  } else {
    outcome.accepted = !csv->records.empty() || !csv->hints.empty();
    broke(check_messages(csv->dropped));
    for (const TuningRecord& record : csv->records) broke(check_record(record));
    const auto again =
        tuningdb::import_aiter_csv(tuningdb::export_aiter_csv(csv->records).text, "fuzz", h200());
    if (!again || again->records.size() != csv->records.size()) broke("exported records do not come back");
  }
  if (const auto hints = tuningdb::import_vllm_config(text, "E=8,N=128,device_name=NVIDIA_H200.json");
      !hints) {
    if (!presentable(hints.error().message())) broke("a message is not fit for a log");
  } else {
    outcome.accepted = outcome.accepted || !hints->hints.empty();
    broke(check_messages(hints->dropped));
  }
  return outcome;
}

}  // namespace varmoe::fuzz
