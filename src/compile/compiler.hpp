#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/kernel_artifact.hpp"
#include "varmoe/error.hpp"

namespace varmoe::compile {

struct CompileRequest {
  std::string text;                   ///< the translation unit
  std::vector<SourceHeader> headers;  ///< the only text it may include
  std::vector<std::string> options;   ///< canonical options, without the arch
  std::string arch;                   ///< "sm_90a", or "compute_90" for PTX
  std::string entry_name;             ///< the extern "C" kernel whose resources are reported
  bool line_info = false;
  /// Asks a compile under way to stop (result: cancelled). NVRTC 12.8 and newer look at it between passes;
  /// older ones finish. Lives until compile returns.
  const std::atomic<bool>* cancel = nullptr;
};

/// What is kept of a compiler's log: its head and its tail, with a line between them that says how much is
/// missing.
inline constexpr std::size_t kMaxLogBytes = 64 * 1024;

/// Source → machine code. Implementations are thread-safe.
class Compiler {
 public:
  virtual ~Compiler() = default;
  /// compile_failed carries the log (bounded); an empty image is an error too.
  virtual Result<KernelBinary> compile(const CompileRequest& request) = 0;
  virtual CompilerVersion version() const = 0;
  /// Where it was found, for people.
  virtual std::string description() const = 0;
  /// Architectures it can make, e.g. 80, 86, 89, 90, 100, 120.
  virtual std::vector<int> architectures() const = 0;
};

/// Finds and loads NVRTC (12.4 or newer): `explicit_path` (file or folder; from VARMOE_NVRTC_LIB), the
/// loader's own search, CUDA_HOME and CUDA_PATH, the usual folders, a pip-installed `nvidia` package.
/// no_compiler says every place it looked.
Result<std::shared_ptr<Compiler>> load_nvrtc(const std::string& explicit_path);

/// What to compile for a GPU of this arch ("sm_90a") with a compiler that knows `architectures`: the arch
/// itself, or, for a GPU newer than the compiler, PTX of the newest architecture below it ("compute_90"), which the
/// driver translates. unsupported when the compiler knows nothing that old.
Result<std::string> target_arch(const std::vector<int>& architectures, std::string_view arch);

}  // namespace varmoe::compile
