#include "emit/emitter.hpp"

#include <fmt/format.h>

#include "base/digest.hpp"
#include "emit/kernel_sources.hpp"
#include "emit/layer_traits.hpp"
#include "emit/sort_shape.hpp"
#include "emit/wgmma_text.hpp"
#include "model/config_space.hpp"
#include "model/one_launch.hpp"

namespace varmoe::emit {
namespace {

/// What the stages differ in: the header of the kernel's body, its parameter structure and how it is called.
struct StageText {
  const char* include;
  const char* params;
  std::string call;
};

StageText stage_text(Stage stage, const KernelRequest& request, std::int32_t block_threads) {
  const bool wgmma = model::uses_wgmma(request.gemm);
  switch (stage) {
    case Stage::sort_single:
      return {"moe/sort.cuh", "SortParams", fmt::format("sort_single<Layer, {}>", block_threads)};
    case Stage::sort_count:
      return {"moe/sort.cuh", "SortParams", fmt::format("sort_count<Layer, {}>", block_threads)};
    case Stage::sort_scatter:
      return {"moe/sort.cuh", "SortParams", fmt::format("sort_scatter<Layer, {}>", block_threads)};
    case Stage::gather:
      return {"moe/gather.cuh", "GatherParams", fmt::format("gather<Layer, {}>", block_threads)};
    case Stage::combine:
      return {"moe/combine.cuh", "CombineParams", fmt::format("combine<Layer, {}>", block_threads)};
    case Stage::whole_layer:
      return {"moe/whole_layer.cuh", "LayerParams", "whole_layer<Layer, Config>"};
    case Stage::fc1:
      if (request.backward)
        return wgmma ? StageText{"moe/dh_sm90.cuh", "GemmParams", "dh_sm90<Layer, Config>"}
                     : StageText{"moe/dh.cuh", "GemmParams", "dh<Layer, Config>"};
      return wgmma ? StageText{"moe/fc1_sm90.cuh", "GemmParams", "fc1_sm90<Layer, Config>"}
                   : StageText{"moe/fc1.cuh", "GemmParams", "fc1<Layer, Config>"};
    case Stage::fc2:
      return wgmma ? StageText{"moe/fc2_sm90.cuh", "GemmParams", "fc2_sm90<Layer, Config>"}
                   : StageText{"moe/fc2.cuh", "GemmParams", "fc2<Layer, Config>"};
    case Stage::route:
    case Stage::router_gemv:
    case Stage::router_gemm:
    case Stage::statistics_blocks:
    case Stage::statistics_total:
    case Stage::router_loss_terms:
    case Stage::router_dlogits:
    case Stage::router_dx:
    case Stage::router_dweight:
    case Stage::align_single:
    case Stage::align_count:
    case Stage::align_scatter:
    case Stage::topk_weight_gradient:
    case Stage::gradient_schedule:
    case Stage::fc1_gradient:
    case Stage::fc2_gradient:
    case Stage::fc1_bias_gradient:
    case Stage::fc2_bias_gradient:
    case Stage::shared_gate_gradient:
    case Stage::block_schedule:
    case Stage::block_gather:
    case Stage::block_slot_rows:
    case Stage::combine_gradient:
    case Stage::activation_gradient:
    case Stage::row_weight_gradient:
    case Stage::weigh_rows:
      break;  // not of a forward
  }
  return {};
}

const char* boolean(bool value) {
  return value ? "true" : "false";
}

model::GemmStage gemm_stage(Stage stage) {
  return stage == Stage::fc1 ? model::GemmStage::fc1 : model::GemmStage::fc2;
}

std::string wgmma_traits(const LayerSpec& spec, Stage stage, const GemmConfig& c) {
  return fmt::format(
             "struct Config {{\n"
             "  static constexpr int kBlockM = {}, kBlockN = {}, kStages = {}, kRowStep = {}, kRaster = {}, "
             "kCluster = {}, kStagingBytes = {};\n"
             "  static constexpr bool kPingPong = {}, kGatherRows = {};\n}};\n",
             c.block_m, c.block_n, c.stages, c.row_step, c.raster, c.cluster,
             model::wgmma_staging_bytes(spec, gemm_stage(stage), c),
             boolean(c.schedule == Schedule::wgmma_pingpong),
             boolean(stage == Stage::fc1 && c.gather == GatherMode::fused)) +
         fmt::format(
             "static_assert(varmoe::mma::Sm90Shared<Config>::kBytes == {}, \"shared memory differs from the "
             "host's\");\n",
             model::wgmma_smem_bytes(spec, gemm_stage(stage), c));
}

std::string config_traits(Stage stage, const GemmConfig& c) {
  std::string s = fmt::format(
      "struct Config {{\n"
      "  static constexpr int kBlockM = {}, kBlockN = {}, kBlockK = {}, kStages = {}, kWarpsM = {}, kWarpsN "
      "= {}, kRaster = {};\n",
      c.block_m, c.block_n, c.block_k, c.stages, c.warps_m, c.warps_n, c.raster);
  if (stage == Stage::fc1) {
    s += fmt::format("  static constexpr bool kFusedGather = {};\n", boolean(c.gather == GatherMode::fused));
  }
  return s + "};\n";
}

std::string whole_layer_traits(const LayerSpec& spec, const OneLaunchConfig& c) {
  return fmt::format(
      "struct Config {{\n  static constexpr int kTokens = {}, kTeams = {};\n}};\n"
      "static_assert(varmoe::moe::WholeLayerShared<Layer, Config>::kBytes == {}, \"shared memory "
      "differs from the host's\");\n"
      "static_assert(varmoe::moe::WholeLayerShared<Layer, Config>::kThreads == {}, \"block size "
      "differs from the host's\");\n",
      c.max_tokens, c.teams, model::one_launch_smem_bytes(spec, c), model::one_launch_threads(c));
}

std::string config_name(const KernelRequest& r) {
  if (r.stage == Stage::whole_layer)
    return fmt::format("t{}g{}", r.one_launch.max_tokens, r.one_launch.teams);
  if (r.stage != Stage::fc1 && r.stage != Stage::fc2) return fmt::format("t{}", r.block_threads);
  const GemmConfig& c = r.gemm;
  std::string training = r.saves_z                  ? "_saving"
                         : r.backward               ? (r.backward->weighs_rows ? "_dh" : "_dh_unweighted")
                         : r.down_k == DownK::width ? ""
                         : r.down_k == DownK::alternating ? "_alternating"
                                                          : "_both";
  if (r.row_weights) training += "_weighted";
  if (r.row_gaps) training += "_gaps";
  if (model::uses_wgmma(c)) {
    return fmt::format("{}_m{}n{}s{}r{}t{}{}{}{}{}", to_string(c.schedule), c.block_m, c.block_n, c.stages,
                       c.raster, c.row_step, c.cluster > 1 ? fmt::format("c{}", c.cluster) : "",
                       r.stage == Stage::fc1 && c.gather == GatherMode::copy ? "_copied" : "",
                       r.runtime_width ? "_anywidth" : "", training);
  }
  return fmt::format("m{}n{}k{}s{}w{}x{}c{}r{}{}{}{}", c.block_m, c.block_n, c.block_k, c.stages, c.warps_m,
                     c.warps_n, c.ctas_per_sm, c.raster,
                     r.stage == Stage::fc1 && c.gather == GatherMode::copy ? "_copied" : "",
                     r.runtime_width ? "_anywidth" : "", training);
}

Status check_request(const LayerSpec& spec, const KernelRequest& r) {
  if (auto ok = spec.validate(); !ok) return ok;
  if (static_cast<std::size_t>(r.stage) >= kStageCount)
    return Error(ErrorCode::internal, fmt::format("{} is no stage of a layer", to_string(r.stage)));
  if (r.stage == Stage::fc1 || r.stage == Stage::fc2) {
    if (!r.runtime_width && width_classes(spec).size() > kMaxWidthClasses) {
      return Error(
          ErrorCode::unsupported,
          fmt::format(
              "{} distinct widths; specialised kernels take up to {}, more need the runtime-width kernels",
              width_classes(spec).size(), kMaxWidthClasses));
    }
    if (r.backward &&
        (r.stage != Stage::fc1 || r.saves_z || spec.activation != Activation::identity || spec.bias))
      return Error(ErrorCode::internal,
                   "the backward of an activation is for fc1 of a backward pass's layer");
    if (r.down_k == DownK::gate_and_up && r.gemm.block_k > 64)
      return Error(ErrorCode::invalid_config,
                   fmt::format("block_k={}: a product with gate and up takes 32 or 64", r.gemm.block_k));
    return model::check_gemm_shape(spec, gemm_stage(r.stage), r.gemm);
  }
  if (r.stage == Stage::whole_layer) {
    if (r.one_launch.max_tokens == 0)
      return Error(ErrorCode::invalid_config, "one_launch: max_tokens is 0: there is no such kernel");
    return model::check_one_launch(spec, r.one_launch);
  }
  if (r.block_threads < 32 || r.block_threads > 1024 || r.block_threads % 32 != 0) {
    return Error(ErrorCode::invalid_config,
                 fmt::format("{}: block_threads={} must be a multiple of 32 from 32 to 1024",
                             to_string(r.stage), r.block_threads));
  }
  return {};
}

}  // namespace

const char* to_string(Stage stage) noexcept {
  switch (stage) {
    case Stage::sort_single:
      return "sort_single";
    case Stage::sort_count:
      return "sort_count";
    case Stage::sort_scatter:
      return "sort_scatter";
    case Stage::gather:
      return "gather";
    case Stage::fc1:
      return "fc1";
    case Stage::fc2:
      return "fc2";
    case Stage::combine:
      return "combine";
    case Stage::whole_layer:
      return "whole_layer";
    case Stage::route:
      return "route";
    case Stage::router_gemv:
      return "router_gemv";
    case Stage::router_gemm:
      return "router_gemm";
    case Stage::statistics_blocks:
      return "statistics_blocks";
    case Stage::statistics_total:
      return "statistics_total";
    case Stage::router_loss_terms:
      return "router_loss_terms";
    case Stage::router_dlogits:
      return "router_dlogits";
    case Stage::router_dx:
      return "router_dx";
    case Stage::router_dweight:
      return "router_dweight";
    case Stage::align_single:
      return "align_single";
    case Stage::align_count:
      return "align_count";
    case Stage::align_scatter:
      return "align_scatter";
    case Stage::topk_weight_gradient:
      return "topk_weight_gradient";
    case Stage::gradient_schedule:
      return "gradient_schedule";
    case Stage::fc1_gradient:
      return "fc1_gradient";
    case Stage::fc2_gradient:
      return "fc2_gradient";
    case Stage::fc1_bias_gradient:
      return "fc1_bias_gradient";
    case Stage::fc2_bias_gradient:
      return "fc2_bias_gradient";
    case Stage::shared_gate_gradient:
      return "shared_gate_gradient";
    case Stage::block_schedule:
      return "block_schedule";
    case Stage::block_gather:
      return "block_gather";
    case Stage::block_slot_rows:
      return "block_slot_rows";
    case Stage::combine_gradient:
      return "combine_gradient";
    case Stage::activation_gradient:
      return "activation_gradient";
    case Stage::row_weight_gradient:
      return "row_weight_gradient";
    case Stage::weigh_rows:
      return "weigh_rows";
  }
  return "unknown";
}

Result<EmittedKernel> emit_kernel(const LayerSpec& spec, const KernelRequest& request) {
  if (auto ok = check_request(spec, request); !ok) return ok.error();
  const bool gemm = request.stage == Stage::fc1 || request.stage == Stage::fc2;

  EmittedKernel kernel;
  kernel.stage = request.stage;
  kernel.options = {"--std=c++17", "--no-source-include"};
  const bool wgmma = gemm && model::uses_wgmma(request.gemm);
  constexpr std::int32_t kProducerThreads = 128;
  kernel.block_threads = gemm ? 32 * request.gemm.warps_m * request.gemm.warps_n : request.block_threads;
  if (wgmma) kernel.block_threads += kProducerThreads;
  if (request.stage == Stage::whole_layer)
    kernel.block_threads = model::one_launch_threads(request.one_launch);
  kernel.ctas_per_sm = gemm ? request.gemm.ctas_per_sm : 1;
  if (wgmma) {
    kernel.dynamic_smem_bytes =
        static_cast<std::int32_t>(model::wgmma_smem_bytes(spec, gemm_stage(request.stage), request.gemm));
  } else if (gemm) {
    kernel.dynamic_smem_bytes = static_cast<std::int32_t>(model::gemm_smem_bytes(request.gemm));
    // The fused gather keeps its rows' tokens behind the ring.
    if (request.stage == Stage::fc1 && request.gemm.gather == GatherMode::fused) {
      kernel.dynamic_smem_bytes += request.gemm.block_m * 4;
    }
  } else if (request.stage == Stage::whole_layer) {
    kernel.dynamic_smem_bytes =
        static_cast<std::int32_t>(model::one_launch_smem_bytes(spec, request.one_launch));
  } else if (request.stage != Stage::gather && request.stage != Stage::combine) {
    kernel.dynamic_smem_bytes = sort_smem_bytes(spec.all_experts(), request.block_threads);
  }

  const StageText stage = stage_text(request.stage, request, kernel.block_threads);
  std::string head = fmt::format("// varmoe {}\n", to_string(request.stage));
  if (request.stage == Stage::fc1 || request.stage == Stage::whole_layer)
    head += "#include \"epilogue/activation.cuh\"\n";
  head += fmt::format("#include \"{}\"\n\n", stage.include);
  if (wgmma) {
    const WeightLayout layout = request.stage == Stage::fc1 ? spec.fc1_layout : spec.fc2_layout;
    head += wgmma_instructions(spec.dtype, layout == WeightLayout::kn, request.gemm.block_m,
                               request.gemm.row_step) +
            "\n";
  }
  head += "namespace {\n";
  head += layer_traits(spec, request);
  if (gemm)
    head +=
        wgmma ? wgmma_traits(spec, request.stage, request.gemm) : config_traits(request.stage, request.gemm);
  if (request.stage == Stage::whole_layer) head += whole_layer_traits(spec, request.one_launch);
  head += "}  // namespace\n\n" + abi_assertions(request.stage) + "\n";
  const std::string body = fmt::format(
      "(const __grid_constant__ varmoe::abi::{} p) {{ varmoe::moe::{}(p); }}\n", stage.params, stage.call);
  const std::int32_t cluster = gemm ? request.gemm.cluster : 1;
  const std::string entry =
      fmt::format("extern \"C\" __global__ void __launch_bounds__({}, {}) {}", kernel.block_threads,
                  kernel.ctas_per_sm, cluster > 1 ? fmt::format("__cluster_dims__({}, 1, 1) ", cluster) : "");

  auto headers = KernelSources::current()->reachable(head);
  if (!headers) return headers.error();
  kernel.headers = std::move(*headers);
  // The name is part of the text, so its digest is of the text without it.
  const std::string digest = Hasher().field(head).field(entry).field(body).finish().hex();
  kernel.entry_name =
      fmt::format("varmoe_{}_{}_{}", to_string(request.stage), config_name(request), digest.substr(0, 16));
  kernel.text = head + entry + kernel.entry_name + body;
  return kernel;
}

}  // namespace varmoe::emit
