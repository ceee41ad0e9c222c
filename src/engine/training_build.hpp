#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/config_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "plan/training.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/training.hpp"

/// The kernels of a TrainingLayer: token buckets → configs → kernels, built and loaded by the hooks.
namespace varmoe::engine {

/// One kernel of a bucket and where it belongs.
struct TrainingPart {
  std::size_t kernel = 0;  ///< index into TrainingBuild::built
  plan::LoadedKernel plan::TrainingKernels::*own =
      nullptr;  ///< one of its own; else `stage` of one of its layers
  bool backward = false;
  emit::Stage stage = emit::Stage::fc1;
};

struct TrainingBucket {
  std::int64_t bucket = 0;
  plan::TrainingKernels kernels;  ///< configs; the kernels themselves once they are resident
  std::vector<TrainingPart> parts;
};

struct TrainingBuild {
  std::vector<TrainingBucket> buckets;  ///< ascending
  std::vector<BuiltKernel> built;       ///< each key once
  std::vector<KernelReport> reports;    ///< in the order of `built`
};

/// Fails for what concerns all: a layer without a backward pass, a refused override, memory; errors of single
/// kernels are in `built`.
Result<TrainingBuild> build_training(const LayerSpec& spec, const TrainingOptions& options,
                                     std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                     KernelBuilder& builder, const BuildHooks& hooks);

}  // namespace varmoe::engine
