#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/kernel_artifact.hpp"
#include "varmoe/error.hpp"

namespace varmoe {
class FileSystem;
}

namespace varmoe::cubin {

/// What the cache remembers of compiler libraries, so that the version at hand is known without loading one:
/// a small file in the cache folder with, for each search that once found a library, that library's path,
/// identity and version.
///
/// Sound because a wrong answer costs no correctness: every entry of a key computes the same thing whichever
/// build made it; the build only decides whether the user's own entry is preferred as it is or made again.
/// The answer can be wrong in one way: a second library was installed where the same search would now find it
/// first, while the remembered one is unchanged. It is put right as soon as anything is compiled, for then
/// the library is loaded and remembered anew.
///
/// `search` is any text that stands for the inputs of the search (explicit path, CUDA_HOME, CUDA_PATH,
/// LD_LIBRARY_PATH, …): the same text must mean the same search. It is stored as a digest.
class CompilerStamps {
 public:
  /// `cache_dir` as given to CubinCache; empty: remembers nothing. The file system must outlive this.
  CompilerStamps(FileSystem& file_system, std::string cache_dir);

  /// The version found by this search the last time, provided that the library file is still the same one
  /// (device, inode, size, mtime). nullopt: unknown, load it to find out. Never fails: a damaged stamp file
  /// knows nothing.
  std::optional<CompilerVersion> recall(std::string_view search) const;

  /// Records what a search found. Call it after each load of NVRTC; writes only when something changed.
  /// Failure is harmless (the next process loads NVRTC to learn its version) and may be ignored.
  Status remember(std::string_view search, const std::string& library_path, const CompilerVersion& version);

 private:
  FileSystem& fs_;
  std::string path_;
};

}  // namespace varmoe::cubin
