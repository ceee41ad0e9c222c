#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.hpp"
#include "base/log.hpp"
#include "varmoe/tuning.hpp"

/// Files of misses (VARMOE_RECORD_MISSES): the keys for which a server found no exact record, one a line, as
/// the key's fields of a record. Several processes may append to one file.
namespace varmoe::tuningdb {

inline constexpr std::size_t kMaxMisses = 16384;
inline constexpr std::size_t kMaxMissFileBytes = std::size_t{16} << 20;

/// Appends keys to a file, each once. Thread-safe; never fails: what cannot be written is one warning.
class MissFile {
 public:
  /// Keys that the file has already are not added again. Nothing is created yet.
  MissFile(std::string path, Log log, FileSystem* fs = nullptr);
  ~MissFile();
  void add(const TuningKey& key);
  const std::string& path() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct MissList {
  std::vector<TuningKey> keys;        ///< distinct, in the order of the file
  std::vector<std::string> problems;  ///< lines that are no key, a sentence each
};
/// Reads a file of misses. io_error when it cannot be read.
Result<MissList> read_misses(const std::string& path);

/// The command that tunes one layer at one token count: `varmoe-tune tune --hidden-size … --tokens 64`.
std::string tune_command(const LayerSpec& spec, std::int64_t tokens);
/// The same for forward and backward of a layer that learns: `… --training --fp32-gradients`.
std::string tune_training_command(const LayerSpec& spec, std::int64_t tokens, GradientType gradient_type);

}  // namespace varmoe::tuningdb
