#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emit/emitter.hpp"
#include "engine/config_choice.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/layer_spec.hpp"

namespace varmoe::engine {

/// Buckets → configs → kernels to make, each once.
struct BucketPlan {
  std::int64_t bucket = 0;
  ConfigChoice choice;
  bool runtime_width = false;
  std::vector<std::size_t> kernels;  ///< indices into KernelPlan::requests
};

struct KernelPlan {
  std::vector<BucketPlan> buckets;            ///< ascending
  std::vector<emit::KernelRequest> requests;  ///< distinct
};

/// The class set is too rich for specialised kernels.
bool needs_runtime_width(const LayerSpec& spec);

/// The token buckets that a prepare asks for, ascending and distinct. invalid_argument names the field.
Result<std::vector<std::int64_t>> buckets_to_prepare(const PrepareOptions& options);

/// Device-independent: reads spec and profile alone. Works without GPU, driver and compiler.
Result<KernelPlan> plan_kernels(const LayerSpec& spec, std::span<const std::int64_t> buckets,
                                const ConfigChooser& chooser, bool runtime_width);

/// What the config of a kernel looks like in reports.
std::string config_text(const emit::KernelRequest& request);

}  // namespace varmoe::engine
