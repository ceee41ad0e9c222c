#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/kernel_artifact.hpp"
#include "varmoe/error.hpp"

/// The texts of kernels_src/: embedded when the library is built, or read from a folder while developing.
namespace varmoe::emit {

/// One consistent set of kernel texts. Immutable.
class KernelSources {
 public:
  /// The set in force: embedded, or the folder of the last use_kernels_dir.
  static std::shared_ptr<const KernelSources> current();
  /// Reads every *.cuh below `directory`.
  static Result<std::shared_ptr<const KernelSources>> from_directory(const std::string& directory);

  /// The headers that `text` includes, directly or not, sorted by name. `internal` when one does not exist.
  Result<std::vector<SourceHeader>> reachable(std::string_view text) const;

 private:
  friend Status use_kernels_dir(const std::string&);
  struct File {
    std::string name, text;
    std::vector<std::string> includes;
  };
  static KernelSources embedded();
  void add(std::string name, std::string text);
  const File* find(std::string_view name) const;
  std::vector<File> files_;  // sorted by name
};

}  // namespace varmoe::emit
