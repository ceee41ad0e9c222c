#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_plan.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::engine {

/// What became of one token bucket.
struct BuiltBucket {
  BucketPlan plan;
  std::vector<std::shared_ptr<const KernelUnit>> units;  ///< of its kernels; empty unless all are ready
};

struct LayerBuild {
  std::vector<BuiltBucket> buckets;   ///< ascending
  std::vector<KernelReport> kernels;  ///< each key once
  std::optional<Error> first_error;   ///< of the kernels that are not ready
  std::size_t failed = 0;
  bool complete() const noexcept { return failed == 0; }
};

/// Buckets → configs → kernels, built (and, by the hooks, loaded) in parallel. In JIT=cached_only a bucket
/// whose specialised kernels are not all cached takes the runtime-width ones if those are. Errors of single
/// kernels are in the result; the Result itself fails for what concerns all: a refused override, memory.
Result<LayerBuild> build_layer(const LayerSpec& spec, std::span<const std::int64_t> buckets,
                               const ConfigChooser& chooser, KernelBuilder& builder, const BuildHooks& hooks);

/// `varmoe-tune compile`: prepares the cache for a layer on a device that need not be there. Rows of failed
/// kernels carry their error. With `with_runtime_width`, the runtime-width kernels of each bucket are built
/// as well.
Result<PrepareReport> compile_layer(const LayerSpec& spec, const PrepareOptions& options,
                                    const ConfigChooser& chooser, KernelBuilder& builder,
                                    bool with_runtime_width = false);

/// One line for the log: what was prepared, and where each bucket's config came from.
std::string summary(const LayerBuild& build, std::span<const KernelReport> kernels, std::string_view layer);

/// The one error of a build that is not complete: the code of its first failure, and how many there are.
Error build_error(const LayerBuild& build);

}  // namespace varmoe::engine
