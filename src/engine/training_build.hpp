#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
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
  ChoiceOrigin forward, backward;  ///< of the configs
};

/// What is to be built: each kernel once, with who asks for it.
struct TrainingPlan {
  std::vector<TrainingBucket> buckets;
  std::vector<UnitRequest> requests;
  std::vector<ConfigSource> sources;                  ///< of each request
  std::vector<std::vector<std::int64_t>> buckets_of;  ///< of each request
};

/// Adds a bucket's kernels with these configs; `spec` is trainable.
void add_training_bucket(TrainingPlan& plan, const LayerSpec& spec, const TrainingOptions& options,
                         std::int64_t bucket, const ConfigChoice& forward, const BackwardChoice& backward,
                         KernelBuilder& builder);
/// Of all buckets, by a chooser. Errors as of build_training.
Result<TrainingPlan> plan_training(const LayerSpec& spec, const TrainingOptions& options,
                                   std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                   KernelBuilder& builder);

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

/// `prepared training of …: 20 kernels, 3 compiled; forward configs by tokens: …; backward configs by tokens:
/// …`.
std::string summary(const TrainingBuild& build, std::string_view layer);

}  // namespace varmoe::engine
