#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/config_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "plan/blocks.hpp"
#include "varmoe/blocks.hpp"
#include "varmoe/engine.hpp"

/// The kernels of Blocks: token buckets → configs → kernels, built and loaded by the hooks.
namespace varmoe::engine {

/// One kernel of a bucket and where it belongs.
struct BlockPart {
  std::size_t kernel = 0;                                 ///< index into BlocksBuild::built
  plan::LoadedKernel plan::BlockKernels::*own = nullptr;  ///< null: `stage` of the layer, or of its backward
  emit::Stage stage = emit::Stage::fc1;
  bool backward = false;
};

struct BlocksBucket {
  std::int64_t bucket = 0;
  plan::BlockKernels kernels;  ///< configs; the kernels themselves once they are resident
  std::vector<BlockPart> parts;
};

struct BlocksBuild {
  std::vector<BlocksBucket> buckets;  ///< ascending
  std::vector<BuiltKernel> built;     ///< each key once
  std::vector<KernelReport> reports;  ///< in the order of `built`
};

/// A product's config where rows lie in order already: it gathers nothing.
GemmConfig ungathered(GemmConfig fc1);
GradientConfig ungathered(GradientConfig config);

/// Fails for what concerns all: a refused override, memory; errors of single kernels are in `built`.
Result<BlocksBuild> build_blocks(const LayerSpec& spec, const BlocksOptions& options,
                                 std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                 KernelBuilder& builder, const BuildHooks& hooks);

}  // namespace varmoe::engine
