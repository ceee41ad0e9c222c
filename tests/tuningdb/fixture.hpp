#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/file_system.hpp"
#include "model/config_space.hpp"
#include "model/device_profile.hpp"
#include "model/gradient_config.hpp"
#include "support/capture_log.hpp"
#include "support/temp_dir.hpp"
#include "tuningdb/check.hpp"
#include "tuningdb/epochs.hpp"
#include "tuningdb/record_file.hpp"
#include "tuningdb/store.hpp"
#include "varmoe/tuning.hpp"

/// What the tests of the tuning database share: records that follow from a number.
namespace varmoe::test {

/// These tests save thousands of times: in memory, where there is a place for that and nobody chose another.
inline const bool kTempInMemory = [] {
  if (std::getenv("TMPDIR") != nullptr || ::access("/dev/shm", W_OK | X_OK) != 0) return false;
  return ::setenv("TMPDIR", "/dev/shm", 0) == 0;
}();

/// The real file system, save that fsync is only pretended: these tests kill processes, not machines.
class UnsyncedFileSystem final : public ForwardingFileSystem {
 public:
  UnsyncedFileSystem() : ForwardingFileSystem(posix_file_system()) {}
  int fsync(int) noexcept override { return 0; }
};
inline FileSystem& unsynced() {
  static UnsyncedFileSystem fs;
  return fs;
}

inline const model::DeviceProfile& profile(const std::string& id = "h200") {
  for (const model::DeviceProfile& p : model::shipped_profiles()) {
    if (p.id == id) return p;
  }
  throw std::runtime_error("no profile " + id);
}

inline LayerSpec uniform_layer() {
  return uniform_spec(2048, 64, 1024, 8);
}

/// 4 experts of 512, 3 of 768, 1 of 1024, in no order.
inline LayerSpec mixed_layer() {
  LayerSpec spec = uniform_spec(1024, 8, 512, 2);
  spec.expert_widths = {768, 512, 1024, 512, 768, 512, 768, 512};
  return spec;
}

inline TuningRecord record_of(const LayerSpec& spec, std::int64_t tokens, double us = 100,
                              const model::DeviceProfile& device = profile()) {
  TuningRecord record;
  record.key = make_tuning_key(spec, tuningdb::tuning_device(device), tokens);
  record.us1 = us * 0.55;
  record.us2 = us * 0.35;
  record.us = us;
  record.tflops = 512.25;
  record.bw = 3300.5;
  record.baseline_us = us * 1.25;
  record.spread = 0.015;
  record.verified = true;
  record.epochs = tuningdb::current_epochs(record.config);
  record.config_space = model::kConfigSpaceVersion;
  record.library = "0.1.0";
  record.kernel_digest = "0123456789abcdef0123456789abcdef";
  record.nvrtc = "13.0.88";
  record.driver = "580.82.07";
  record.date = "2026-11-21T15:04:05Z";
  record.sm_clock_mhz = 1755;
  record.memory_clock_mhz = 3201;
  record.candidates = 412;
  return record;
}

/// What the cost model would take for the backward pass, as a record.
inline TuningRecord backward_record_of(const LayerSpec& spec, std::int64_t tokens,
                                       GradientType type = GradientType::layer_dtype, double us = 300,
                                       const model::DeviceProfile& device = profile()) {
  TuningRecord record = record_of(spec, tokens, us, device);
  record.key = make_backward_tuning_key(spec, tuningdb::tuning_device(device), tokens, type);
  record.us1 = record.us2 = 0;
  record.backward = model::predict_products(spec, tokens, device);
  record.of_products = {us * 0.25, us * 0.25, us * 0.3, us * 0.125, 0, 0, 0, 0.0009765625};
  record.epochs = tuningdb::current_epochs(record.backward);
  return record;
}

/// Record number i: a layer of its own, and a time that tells the number.
inline TuningRecord record_number(int i) {
  return record_of(uniform_spec(1024 + 8 * (i / 10), 8, 512, 2), std::int64_t{1} << (i % 10), 10.0 + i);
}

inline std::string file_text(const std::vector<TuningRecord>& records) {
  tuningdb::RecordFile file;
  for (const TuningRecord& record : records) tuningdb::merge_record(file, record);
  return *tuningdb::record_file_text(file);
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("no \"" + from + "\" in the text");
  return text.replace(at, from.size(), to);
}

inline tuningdb::TuningStore open_store(const std::string& folder, const Log& log = Log(),
                                        FileSystem* fs = nullptr) {
  tuningdb::StoreOptions options;
  options.lock_wait = std::chrono::seconds(120);
  options.file_system = fs != nullptr ? fs : &unsynced();
  return tuningdb::TuningStore(folder, log, options);
}

inline Result<tuningdb::SaveReport> save(const tuningdb::TuningStore& store, const TuningRecord& record) {
  return store.save({&record, 1});
}

/// The records of the H200's file in a folder; throws where the file is not sound in every respect.
inline std::vector<TuningRecord> stored_records(const std::string& folder,
                                                const std::string& name = "nvidia-h200.json") {
  const std::string text = slurp(folder + "/" + name);
  const std::vector<std::string> faults = tuningdb::check_record_file(text, name);
  if (!faults.empty()) throw std::runtime_error(faults[0]);
  std::vector<TuningRecord> records;
  const auto file = tuningdb::parse_record_file(text, name);
  for (const tuningdb::StoredRecord& stored : file->records) {
    records.push_back(stored.record);
  }
  return records;
}

}  // namespace varmoe::test
