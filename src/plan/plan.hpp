#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emit/emitter.hpp"
#include "varmoe/engine.hpp"
#include "varmoe/error.hpp"
#include "varmoe/kernel_config.hpp"
#include "varmoe/layer_spec.hpp"
#include "varmoe/weights.hpp"

namespace varmoe::cuda {
class Device;
class Driver;
}  // namespace varmoe::cuda

/// Spec + configs + T → launches and workspace; runs them on a stream.
namespace varmoe::plan {

/// A resident kernel as a plan launches it.
struct LoadedKernel {
  void* function = nullptr;  ///< CUfunction
  std::int32_t block_threads = 0;
  std::int32_t dynamic_smem_bytes = 0;
  std::int32_t blocks_per_sm = 1;  ///< resident blocks per SM, ≥ 1: persistent grids are this times the SMs
};

/// Everything a forward of one bucket needs; immutable once published. Stages that the bucket does not use
/// are null.
struct KernelSet {
  LayerConfig config;
  bool runtime_width = false;  ///< fc1 and fc2 read widths from the device table
  std::array<LoadedKernel, emit::kStageCount> kernels{};
  const LoadedKernel& operator[](emit::Stage s) const { return kernels[static_cast<std::size_t>(s)]; }
  LoadedKernel& operator[](emit::Stage s) { return kernels[static_cast<std::size_t>(s)]; }
};

/// The layer's device table, as bytes that bind copies to the device once: an abi::ExpertEntry per expert
/// (the shared ones after the routed ones), the shared gate's address,
/// the experts by class (widest first, then by index), where each class begins in that list, and the same for
/// one class of all (runtime-width kernels), and an abi::ExpertBias per expert. With a driver whose GPU has a
/// copy engine (sm_90), tensor maps of all weights too; `unsupported` when an expert's gate and up lie too
/// far apart for one map.
Result<std::vector<std::byte>> make_expert_table(const LayerSpec& spec, const Weights& weights,
                                                 const cuda::Driver* tensor_maps = nullptr);

/// Where each intermediate lies in the workspace, for `tokens` tokens in one chunk. Offsets are 256-byte
/// aligned.
struct WorkspaceLayout {
  std::size_t total_bytes = 0;
  std::size_t expert_offsets = 0, row_source = 0, slot_row = 0, block_histogram = 0, h_pending = 0;
  std::size_t layer_control = 0;  ///< abi::LayerControl
  std::size_t shared_weight = 0;  ///< [tokens] of a layer with a shared gate
  std::size_t fc1_tiles = 0, fc2_tiles = 0, tile_counts = 0, fc1_tile_prefix = 0;
  std::size_t row_weight = 0;  ///< float[rows]; nothing unless weight on input
  std::size_t h = 0;           ///< [rows, model::h_columns(max width)]
  std::size_t y = 0;           ///< [rows, H]; before fc2 it holds the gathered copy of x, if there is one
};
/// `config` may be null: then the bound over every config of the space (what Layer::workspace_bytes
/// promises).
WorkspaceLayout workspace_layout(const LayerSpec& spec, const LayerConfig* config, std::int64_t tokens);
/// The same with spec.widest_of_all() at hand: forward calls it, and must not walk the experts.
WorkspaceLayout workspace_layout(const LayerSpec& spec, std::int64_t max_width, const LayerConfig* config,
                                 std::int64_t tokens) noexcept;

/// What does not change from forward to forward.
struct RunContext {
  const cuda::Driver* driver = nullptr;
  const LayerSpec* spec = nullptr;
  std::uint64_t expert_table = 0;  ///< device address of make_expert_table's bytes
  std::int32_t sm_count = 0;       ///< SMs a launch may occupy (max_sms applied)
  bool sm_limited = false;         ///< LayerOptions::max_sms is in force
  bool dependent_launch = false;   ///< sm_90 and newer: a kernel may start while its predecessor ends
  std::int32_t classes = 0;        ///< width_classes(spec).size()
  std::int64_t max_width = 0;      ///< spec->widest_of_all()
  std::uint64_t nonce = 0;         ///< abi::LayerParams::nonce
};

/// Of a layer on a device, without the table's address. `max_sms`: LayerOptions::max_sms. Both are referred
/// to.
RunContext run_context(const cuda::Device& device, const LayerSpec& spec, int max_sms);

/// Enqueues one forward of args.tokens tokens (already validated by the engine; tokens ≥ 1), in chunks of
/// `chunk` tokens. No allocation, lock or synchronisation on success.
Status run(const RunContext& context, const KernelSet& kernels, const ForwardArgs& args,
           std::int64_t chunk) noexcept;

/// Enqueues sort, gather and fc1 of all args.tokens at once; likewise.
Status run_up(const RunContext& context, const KernelSet& kernels, const UpArgs& args) noexcept;

}  // namespace varmoe::plan
