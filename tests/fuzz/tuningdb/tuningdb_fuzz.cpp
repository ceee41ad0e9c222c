#include "fuzz/tuningdb/tuningdb_fuzz.hpp"

#include <cmath>
#include <string>
#include <vector>

#include "model/device_profile.hpp"
#include "tuningdb/aiter_csv.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/csv_text.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/record_json.hpp"
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
  const TuningKey& of = record.key;
  const LayerSpec spec = layer_spec_of(of);
  if ((of.pass == TuningPass::backward ? make_backward_tuning_key(spec, of.device, of.token, of.gradient_type)
                                       : make_tuning_key(spec, of.device, of.token)) != of)
    return "a record's key is not that of its layer";
  if (!tuningdb::check_record(record)) return "a record that was read must not be written";
  const auto key = tuningdb::read_key_text(tuningdb::key_text(record.key), "fuzz");
  if (!key || *key != record.key) return "a key does not read back";
  const std::string name = tuningdb::record_file_name(record.key.device);
  if (name.find('/') != std::string::npos || name.size() < 6) return "a file name is none";
  return nullptr;
}

const char* check_messages(const std::vector<std::string>& messages) {
  for (const std::string& message : messages)
    if (!presentable(message)) return "a message is not fit for a log";
  return nullptr;
}

/// What no reader makes is not written either.
const char* check_refused(const TuningRecord& sound) {
  TuningRecord record = sound;
  record.key.topk = 0;
  if (tuningdb::check_record(record)) return "a record of no layer may be written";
  for (double TuningRecord::*const figure : {&TuningRecord::us, &TuningRecord::err1, &TuningRecord::bw}) {
    for (const double value : {-1.0, HUGE_VAL, std::nan("")}) {
      record = sound;
      record.*figure = value;
      if (tuningdb::check_record(record)) return "a record with a figure that is none may be written";
    }
  }
  record = sound;
  record.driver = "\n";
  if (tuningdb::check_record(record)) return "a record with a name that is none may be written";
  return nullptr;
}

const char* check_file_name(std::string_view device) {
  const std::string name = tuningdb::record_file_name({"sm_90a", 1, std::string(device)});
  const bool sound = name.size() > 5 && name.size() <= 69 && name.substr(name.size() - 5) == ".json" &&
                     name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-.") == std::string::npos;
  return sound ? nullptr : "a file name has characters from outside";
}

/// A cell of any text reads back, and records' CSV has a row for each that it does not drop.
const char* check_exported(std::string_view text) {
  const auto table = tuningdb::parse_csv("a\n.," + tuningdb::csv_cell(text));
  if (text.find('\0') == std::string_view::npos &&
      (!table || table->rows.size() != 1 || table->rows[0].cells.size() != 2 ||
       table->rows[0].cells[1] != text))
    return "a cell does not read back";
  const auto file = tuningdb::parse_record_file(text, "fuzz");
  if (!file) return nullptr;
  std::vector<TuningRecord> records;
  for (const auto& stored : file->records) records.push_back(stored.record);
  const auto exported = tuningdb::export_aiter_csv(records);
  const auto rows = tuningdb::parse_csv(exported.text);
  if (!rows || rows->rows.size() > records.size()) return "exported records are no CSV";
  if (rows->rows.size() < records.size() && exported.dropped.empty()) return "a record is dropped in silence";
  return check_messages(exported.dropped);
}

}  // namespace

Outcome tuning_records(std::string_view text) {
  Outcome outcome;
  const auto broke = [&outcome](const char* what) {
    if (what != nullptr) outcome.broken = what;
  };
  broke(check_messages(tuningdb::check_record_file(text, "fuzz")));
  broke(check_file_name(text.substr(0, 200)));
  if (const auto key = tuningdb::read_key_text(text, "fuzz"); !key && !presentable(key.error().message()))
    broke("a message is not fit for a log");
  const auto file = tuningdb::parse_record_file(text, "fuzz");
  if (!file) {
    if (!presentable(file.error().message())) broke("a message is not fit for a log");
    return outcome;
  }
  broke(check_messages(file->problems));
  outcome.accepted = !file->records.empty();
  for (const auto& stored : file->records) broke(check_record(stored.record));
  if (!file->records.empty()) broke(check_refused(file->records[0].record));
  tuningdb::RecordFile merged;
  for (const auto& stored : file->records) {
    tuningdb::merge_record(merged, stored.record);
    if (!tuningdb::merge_record(merged, stored.record)) broke("a record does not stay as it is");
  }
  if (merged.records.size() != file->records.size()) broke("merged records are lost");
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
  broke(check_exported(text));
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
