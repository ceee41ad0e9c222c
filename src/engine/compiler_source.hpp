#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/kernel_artifact.hpp"
#include "base/log.hpp"
#include "compile/compiler.hpp"
#include "cubin/compiler_stamps.hpp"
#include "varmoe/error.hpp"

namespace varmoe::engine {

/// How to get a compiler, and what stands for the search that would find it.
struct CompilerFinder {
  std::function<Result<std::shared_ptr<compile::Compiler>>()> load;
  /// Text of the inputs of the search: equal texts find the same library. Null: nothing is remembered between
  /// processes.
  std::function<std::string()> search_text;
  /// The file that load() brought in, for the stamps; empty when it cannot be told.
  std::function<std::string()> library_path;
};

/// NVRTC, by the search of compile/nvrtc_search.hpp.
CompilerFinder nvrtc_finder(std::string explicit_path);

/// The compiler at hand, loaded at the first miss and not before. Thread-safe.
class CompilerSource {
 public:
  /// `stamps` remembers versions between processes, so that a full cache is served without loading NVRTC.
  CompilerSource(CompilerFinder finder, std::optional<cubin::CompilerStamps> stamps, Log log);

  /// Loads on first call; a failure is remembered until forget_failure().
  Result<std::shared_ptr<compile::Compiler>> load();
  /// Another attempt may be made (at the start of each prepare: a missing NVRTC may have been installed).
  void forget_failure();
  /// Version of the compiler that load() would give; nullopt when there is none. Loads it only if the stamps
  /// know nothing.
  std::optional<CompilerVersion> at_hand();
  bool loaded() const;

 private:
  Result<std::shared_ptr<compile::Compiler>> load_locked();

  CompilerFinder finder_;
  std::optional<cubin::CompilerStamps> stamps_;
  Log log_;
  mutable std::mutex mutex_;
  std::shared_ptr<compile::Compiler> compiler_;
  std::optional<Error> failure_;
  bool asked_ = false;
  std::optional<CompilerVersion> at_hand_;
};

}  // namespace varmoe::engine
