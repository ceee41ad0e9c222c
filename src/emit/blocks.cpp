#include "emit/blocks.hpp"

#include <fmt/format.h>

#include <string>

#include "base/digest.hpp"
#include "emit/kernel_sources.hpp"
#include "emit/layer_traits.hpp"
#include "emit/sort_shape.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"

namespace varmoe::emit {
namespace {

constexpr std::int32_t kScheduleThreads = 1024;
constexpr std::int32_t kMapThreads = 256;

std::string integer(const char* name, std::int64_t value) {
  return fmt::format("  static constexpr int {} = {};\n", name, value);
}

std::string flag(const char* name, bool value) {
  return fmt::format("  static constexpr bool {} = {};\n", name, value);
}

/// The sort's traits, of which the schedule asks the number of experts: layers of as many share the kernel.
std::string schedule_traits(const LayerSpec& spec) {
  return integer("kExperts", spec.all_experts()) + integer("kTopK", 1) + integer("kSharedExperts", 0) +
         "  static constexpr bool kSharedGate = false;\n  static constexpr bool kWeightOnInput = false;\n";
}

}  // namespace

Result<EmittedKernel> emit_block(const LayerSpec& spec, Stage stage, std::int32_t block_threads) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  EmittedKernel kernel;
  kernel.stage = stage;
  kernel.options = {"--std=c++17", "--no-source-include"};
  std::string include, traits, params = "RowMapParams", call;
  switch (stage) {
    case Stage::block_schedule:
      kernel.block_threads = sort_block_threads(spec.all_experts(), kScheduleThreads);
      kernel.dynamic_smem_bytes = sort_smem_bytes(spec.all_experts(), kernel.block_threads);
      include = "moe/block_schedule.cuh";
      traits = schedule_traits(spec);
      params = "BlockScheduleParams";
      call = fmt::format("block_schedule<Layer, {}>", kernel.block_threads);
      break;
    case Stage::block_gather:
      if (block_threads < 32 || block_threads > 1024 || block_threads % 32 != 0)
        return Error(ErrorCode::invalid_config,
                     fmt::format("block_gather: block_threads={} must be a multiple of 32 from 32 to 1024",
                                 block_threads));
      kernel.block_threads = block_threads;
      include = "moe/row_map.cuh";
      traits = integer("kHidden", spec.hidden_size) + integer("kTopK", spec.slots_per_token());
      call = fmt::format("block_gather<Layer, {}>", block_threads);
      break;
    case Stage::block_slot_rows:
      kernel.block_threads = kMapThreads;
      include = "moe/row_map.cuh";
      call = fmt::format("block_slot_rows<{}>", kMapThreads);
      break;
    case Stage::combine_gradient:
      kernel.block_threads = kMapThreads;
      include = "moe/combine_gradient.cuh";
      traits = element_trait(spec.dtype) + integer("kHidden", spec.hidden_size) +
               integer("kTopK", spec.slots_per_token()) + integer("kSharedExperts", spec.num_shared());
      params = "CombineGradientParams";
      call = fmt::format("combine_gradient<Layer, {}>", kMapThreads);
      break;
    case Stage::activation_gradient: {
      kernel.block_threads = kMapThreads;
      include = "moe/activation_gradient.cuh";
      constexpr std::int64_t kSliceColumns = 512;
      traits =
          element_trait(spec.dtype) +
          fmt::format("  using Forward = varmoe::activation::{};\n", activation_type(spec)) +
          flag("kAlternating", model::gate_and_up_alternate(spec)) + flag("kStoresH", false) +
          flag("kForwardWeightOnInput", false) + flag("kForwardBias", false) +
          integer("kSlices", (model::h_columns(spec.widest_of_all()) + kSliceColumns - 1) / kSliceColumns);
      params = "GemmParams";
      call = fmt::format("activation_gradient<Layer, {}>", kMapThreads);
      break;
    }
    case Stage::row_weight_gradient:
    case Stage::weigh_rows:
      kernel.block_threads = kMapThreads;
      include = "moe/block_rows.cuh";
      traits = element_trait(spec.dtype) + integer("kHidden", spec.hidden_size);
      if (stage == Stage::row_weight_gradient) traits += flag("kBias", spec.bias);
      params = "BlockRowsParams";
      call = fmt::format("{}<Layer, {}>", to_string(stage), kMapThreads);
      break;
    default:
      return Error(ErrorCode::internal, fmt::format("{} is no building block's own", to_string(stage)));
  }
  std::string head = fmt::format("// varmoe {}\n#include \"{}\"\n\n", to_string(stage), include);
  if (!traits.empty()) head += "namespace {\nstruct Layer {\n" + traits + "};\n}  // namespace\n\n";
  head += abi_assertions(stage) + "\n";
  auto headers = KernelSources::current()->reachable(head);
  if (!headers) return headers.error();
  kernel.headers = *std::move(headers);
  const std::string entry =
      fmt::format("extern \"C\" __global__ void __launch_bounds__({}, 1) ", kernel.block_threads);
  const std::string body =
      fmt::format("(const __grid_constant__ varmoe::abi::{} p) {{ varmoe::moe::{}(p); }}\n", params, call);
  // The name is part of the text, so its digest is of the text without it.
  const std::string digest = Hasher().field(head).field(entry).field(body).finish().hex();
  kernel.entry_name =
      fmt::format("varmoe_{}_t{}_{}", to_string(stage), kernel.block_threads, digest.substr(0, 16));
  kernel.text = head + entry + kernel.entry_name + body;
  return kernel;
}

}  // namespace varmoe::emit
