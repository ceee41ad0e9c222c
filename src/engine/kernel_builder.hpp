#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/digest.hpp"
#include "base/kernel_artifact.hpp"
#include "base/log.hpp"
#include "cubin/cache.hpp"
#include "emit/emitter.hpp"
#include "engine/compiler_source.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

/// Kernel requests → machine code, on any machine: emit → cubin key → cache → compile. Used by the engine,
/// and by `varmoe-tune compile` where there is no GPU.
namespace varmoe::engine {

struct BuilderSettings {
  std::shared_ptr<cubin::CubinCache> cache;
  std::shared_ptr<CompilerSource> compiler;
  std::string arch;      ///< "sm_90a": what the kernels run on
  std::string dump_dir;  ///< empty: none
  bool line_info = false;
  JitMode jit = JitMode::on;
  int threads = 0;  ///< 0: one per core
  Log log;
};

/// A translation unit and the key that its machine code is cached under. Immutable, shared.
struct KernelUnit {
  emit::EmittedKernel emitted;
  Digest key;
};

/// A kernel to build, and what its report says of it from the start.
struct UnitRequest {
  std::string stage, config;
  bool runtime_width = false;
  Result<std::shared_ptr<const KernelUnit>> unit = Error(ErrorCode::internal, "no kernel");
};

struct BuiltKernel {
  std::shared_ptr<const KernelUnit> unit;  ///< null when emission failed
  std::shared_ptr<const KernelBinary>
      binary;  ///< null when there is an error, or when the caller has it already
  std::optional<Error> error;
  KernelReport report;  ///< all but token_buckets and config_source
};

struct BuildHooks {
  /// Called after each kernel with (done, total), from several threads, one at a time.
  std::function<void(std::size_t, std::size_t)> progress;
  /// Set to true: kernels not begun get the error `cancelled`.
  const std::atomic<bool>* cancel = nullptr;
  /// Asked before anything is fetched; true: the caller has this kernel and has filled in the report.
  std::function<bool(const KernelUnit&, KernelReport&)> have;
  /// Called on the building thread with each kernel that is ready; its error becomes the kernel's.
  std::function<Status(BuiltKernel&)> finish;
};

/// Thread-safe. One compile per key, whatever threads, engines and processes want it (the cache sees to
/// that).
class KernelBuilder {
 public:
  explicit KernelBuilder(BuilderSettings settings);
  KernelBuilder(const KernelBuilder&) = delete;
  KernelBuilder& operator=(const KernelBuilder&) = delete;

  /// Every request, in request order, in parallel. A kernel that could not be made carries its error:
  /// not_prepared where the cache has none and JIT is cached_only, no_compiler, compile_failed, cancelled, …
  /// The Result itself fails only when memory does.
  Result<std::vector<BuiltKernel>> build(const LayerSpec& spec, std::span<const emit::KernelRequest> requests,
                                         const BuildHooks& hooks = {});

  /// The same for kernels of any operation.
  Result<std::vector<BuiltKernel>> build(std::vector<UnitRequest> requests, const BuildHooks& hooks = {});

  /// Key of an emitted kernel.
  std::shared_ptr<const KernelUnit> unit(emit::EmittedKernel emitted) const;

  /// Source and key of one kernel. The emission of a signature and request is done once.
  Result<std::shared_ptr<const KernelUnit>> unit(const LayerSpec& spec, const emit::KernelRequest& request);

  /// Forgets the cached machine code of this kernel, which the driver refused as damaged, and makes it anew
  /// (once more only if JIT is on).
  void rebuild(BuiltKernel& kernel, const std::atomic<bool>* cancel);

  const BuilderSettings& settings() const noexcept { return settings_; }

 private:
  Result<std::shared_ptr<const KernelUnit>> unit(const LayerSpec& spec, const std::string& signature,
                                                 const emit::KernelRequest& request);
  void fetch(BuiltKernel& kernel, const std::atomic<bool>* cancel);
  Result<KernelBinary> compile(const KernelUnit& unit, const std::atomic<bool>* cancel);
  void dump(const KernelUnit& unit, const KernelBinary& binary);

  BuilderSettings settings_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<const KernelUnit>> units_;
  std::unordered_set<std::string> dumped_;
};

}  // namespace varmoe::engine
