#include "emit/layer_traits.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstddef>

#include "abi.cuh"

namespace varmoe::emit {
namespace {

std::string constant(const char* type, const char* name, const std::string& value) {
  return fmt::format("  static constexpr {} {} = {};\n", type, name, value);
}
std::string integer(const char* name, std::int64_t value) {
  return constant("int", name, std::to_string(value));
}
std::string boolean(const char* name, bool value) {
  return constant("bool", name, value ? "true" : "false");
}

std::string element(DType dtype) {
  return constant("varmoe::Element", "kElement",
                  dtype == DType::bf16 ? "varmoe::Element::bf16" : "varmoe::Element::fp16");
}

}  // namespace

std::string element_trait(DType dtype) {
  return element(dtype);
}

// Floats travel as bit patterns.
std::string activation_type(const LayerSpec& spec) {
  return activation_type(spec.activation, spec.activation_params);
}
std::string activation_type(Activation activation, const ActivationParams& params) {
  switch (activation) {
    case Activation::silu_mul:
      return "SiluMul";
    case Activation::gelu_tanh_mul:
      return "GeluTanhMul";
    case Activation::gelu_erf_mul:
      return "GeluErfMul";
    case Activation::swiglu_oai:
      return fmt::format("SwigluOai<0x{:08x}u, 0x{:08x}u>", std::bit_cast<std::uint32_t>(params.alpha),
                         std::bit_cast<std::uint32_t>(params.limit));
    case Activation::silu:
      return "Silu";
    case Activation::gelu_tanh:
      return "GeluTanh";
    case Activation::gelu_erf:
      return "GeluErf";
    case Activation::relu:
      return "Relu";
    case Activation::relu2:
      return "Relu2";
    case Activation::identity:
      return "Identity";
  }
  return "Identity";
}

namespace {

/// Of what knows weights: to the other GEMMs shared experts are experts as others.
std::string shared_traits(std::int64_t shared, bool gate) {
  return integer("kSharedExperts", shared) + boolean("kSharedGate", gate);
}
std::string shared_traits(const LayerSpec& spec) {
  return shared_traits(spec.num_shared(), spec.shared_gate);
}

/// kClasses and width(c), widest class first; kClasses = 0: widths are read on the device.
std::string width_table(const LayerSpec& spec, bool runtime_width, DownK k = DownK::width) {
  if (runtime_width) return integer("kClasses", 0);
  const auto classes = width_classes(spec);
  const auto extent = [k](std::int64_t width) {
    return k == DownK::width ? width : k == DownK::alternating ? 2 * width : (width + 63) / 64 * 128;
  };
  std::string body = "return ";
  for (std::size_t c = 0; c + 1 < classes.size(); ++c) {
    body += fmt::format("c == {} ? {} : ", c, extent(classes[classes.size() - 1 - c].width));
  }
  body += fmt::format("{};", extent(classes.front().width));
  const char* argument = classes.size() == 1 ? "int" : "int c";
  return integer("kClasses", static_cast<std::int64_t>(classes.size())) +
         fmt::format("  VARMOE_SHARED_CODE static constexpr int width({}) {{ {} }}\n", argument, body);
}

}  // namespace

std::string layer_traits(const LayerSpec& spec, const KernelRequest& request) {
  const bool runtime_width = request.runtime_width;
  std::string s = "struct Layer {\n";
  switch (request.stage) {
    case Stage::sort_single:
    case Stage::sort_count:
    case Stage::sort_scatter:
      s += integer("kExperts", spec.all_experts());
      s += integer("kTopK", spec.slots_per_token());
      s += shared_traits(spec);
      if (spec.shared_gate) s += element(spec.dtype) + integer("kHidden", spec.hidden_size);
      s += boolean("kWeightOnInput", spec.weight_on_input);
      break;
    case Stage::gather:
      s += integer("kHidden", spec.hidden_size);
      s += integer("kTopK", spec.slots_per_token());
      break;
    case Stage::combine:
      s += element(spec.dtype);
      s += integer("kHidden", spec.hidden_size);
      s += integer("kTopK", spec.slots_per_token());
      s += shared_traits(spec);
      s += boolean("kWeightOnInput", spec.weight_on_input);
      break;
    case Stage::fc1:
      s += element(spec.dtype);
      s += integer("kHidden", spec.hidden_size);
      s += integer("kExperts", spec.all_experts());
      s += integer("kTopK", spec.slots_per_token());
      s += width_table(spec, runtime_width);
      s += boolean("kFc1Kn", spec.fc1_layout == WeightLayout::kn);
      s += boolean("kInterleaved", spec.gated() && spec.gate_order == GateOrder::interleaved &&
                                       spec.fc1_layout == WeightLayout::kn);
      s += boolean("kBias", spec.bias);
      s += boolean("kWeightOnInput", spec.weight_on_input);
      s += boolean("kSavesZ", request.saves_z);
      s += boolean("kSavesProduct", request.saves_z && request.saves_product);
      if (runtime_width) s += boolean("kRowCounts", request.row_gaps);
      s += fmt::format("  using Activation = varmoe::activation::{};\n", activation_type(spec));
      if (request.backward) {
        s += shared_traits(spec.num_shared(), request.backward->shared_gate);
        s += boolean("kAlternating", request.backward->alternating);
        s += boolean("kForwardWeightOnInput", request.backward->weight_on_input);
        s += boolean("kForwardBias", request.backward->bias);
        s += boolean("kWeighsRows", request.backward->weighs_rows) + boolean("kStoresH", true);
        s += fmt::format("  using Forward = varmoe::activation::{};\n",
                         activation_type(request.backward->activation, request.backward->params));
      }
      break;
    case Stage::whole_layer:
      s += element(spec.dtype);
      s += integer("kHidden", spec.hidden_size);
      s += integer("kExperts", spec.num_experts());
      s += integer("kTopK", spec.top_k);
      s += fmt::format("  using Activation = varmoe::activation::{};\n", activation_type(spec));
      break;
    case Stage::fc2:
      s += element(spec.dtype);
      s += integer("kHidden", spec.hidden_size);
      s += width_table(spec, runtime_width, request.down_k);
      s += boolean("kFc2Kn", spec.fc2_layout == WeightLayout::kn);
      s += boolean("kBias", spec.bias);
      s += boolean("kRowWeights", request.row_weights);
      s += boolean("kGateAndUp", request.down_k == DownK::gate_and_up);
      s += boolean("kAlternating", request.down_k == DownK::alternating);
      break;
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
      break;  // emit/routing.cpp, emit/training.cpp, emit/blocks.cpp
  }
  return s + "};\n";
}

std::string abi_assertions(Stage stage) {
  std::string s = fmt::format(
      "static_assert(varmoe::abi::kAbiVersion == {}, \"kernel text of another ABI\");\n", abi::kAbiVersion);
  const auto size = [&](const char* type, std::size_t bytes) {
    s += fmt::format("static_assert(sizeof(varmoe::abi::{}) == {}, \"{} differs from the host's\");\n", type,
                     bytes, type);
  };
  const auto offset = [&](const char* type, const char* field, std::size_t at) {
    s += fmt::format(
        "static_assert(VARMOE_OFFSET_OF(varmoe::abi::{}, {}) == {}, \"{}::{} differs from the host's\");\n",
        type, field, at, type, field);
  };
#define VARMOE_SIZE(type) size(#type, sizeof(abi::type))
#define VARMOE_OFFSET(type, field) offset(#type, #field, offsetof(abi::type, field))
  switch (stage) {
    case Stage::sort_single:
    case Stage::sort_count:
    case Stage::sort_scatter:
      VARMOE_SIZE(SortParams);
      VARMOE_OFFSET(SortParams, slot_row);
      VARMOE_OFFSET(SortParams, tile_counts);
      VARMOE_OFFSET(SortParams, tokens);
      VARMOE_OFFSET(SortParams, h_pending);
      VARMOE_OFFSET(SortParams, fc2_cluster);
      VARMOE_OFFSET(SortParams, classes);
      VARMOE_OFFSET(SortParams, shared_weight);
      VARMOE_OFFSET(SortParams, sort_blocks);
      VARMOE_OFFSET(SortParams, row_weight);
      VARMOE_OFFSET(SortParams, global_experts);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, width_class);
      VARMOE_SIZE(RowTile);
      VARMOE_SIZE(TileCounts);
      VARMOE_OFFSET(TileCounts, rows);
      VARMOE_OFFSET(TileCounts, fc2_tickets);
      break;
    case Stage::gather:
      VARMOE_SIZE(GatherParams);
      VARMOE_OFFSET(GatherParams, x_stride);
      VARMOE_OFFSET(TileCounts, rows);
      break;
    case Stage::combine:
      VARMOE_SIZE(CombineParams);
      VARMOE_OFFSET(CombineParams, topk_weights);
      VARMOE_OFFSET(CombineParams, out_stride);
      VARMOE_OFFSET(CombineParams, accumulate);
      VARMOE_OFFSET(CombineParams, shared_weight);
      VARMOE_OFFSET(CombineParams, keep_absent);
      break;
    case Stage::whole_layer:
      VARMOE_SIZE(LayerParams);
      VARMOE_OFFSET(LayerParams, nonce);
      VARMOE_OFFSET(LayerParams, h_stride);
      VARMOE_OFFSET(LayerParams, accumulate);
      VARMOE_OFFSET(LayerParams, global_experts);
      VARMOE_SIZE(LayerControl);
      VARMOE_OFFSET(LayerControl, claimed);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, down);
      VARMOE_OFFSET(ExpertEntry, fc2_stride);
      VARMOE_OFFSET(ExpertEntry, width);
      break;
    case Stage::fc1:
    case Stage::fc2:
      VARMOE_SIZE(GemmParams);
      VARMOE_OFFSET(GemmParams, row_source);
      VARMOE_OFFSET(GemmParams, tile_prefix);
      VARMOE_OFFSET(GemmParams, out_stride);
      VARMOE_OFFSET(GemmParams, h_pending);
      VARMOE_OFFSET(GemmParams, row_weight);
      VARMOE_SIZE(ExpertBias);
      VARMOE_OFFSET(ExpertBias, fc1_stride);
      VARMOE_OFFSET(GemmParams, row_map);
      VARMOE_OFFSET(GemmParams, z_stride);
      VARMOE_OFFSET(GemmParams, dz);
      VARMOE_OFFSET(GemmParams, partial_stride);
      VARMOE_OFFSET(GemmParams, unweighted_dz);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, down);
      VARMOE_OFFSET(ExpertEntry, width);
      VARMOE_SIZE(RowTile);
      VARMOE_OFFSET(RowTile, kind);
      VARMOE_SIZE(TileCounts);
      VARMOE_OFFSET(TileCounts, fc2_begin);
      VARMOE_OFFSET(ExpertEntry, up_first);
      break;
    case Stage::route:
      VARMOE_SIZE(RouteParams);
      VARMOE_OFFSET(RouteParams, topk_weights);
      VARMOE_OFFSET(RouteParams, logit_stride);
      VARMOE_OFFSET(RouteParams, wide_loads);
      VARMOE_OFFSET(RouteParams, partials);
      break;
    case Stage::router_gemv:
    case Stage::router_gemm:
      VARMOE_SIZE(RouterProductParams);
      VARMOE_OFFSET(RouterProductParams, token_count);
      VARMOE_OFFSET(RouterProductParams, split);
      break;
    case Stage::statistics_blocks:
    case Stage::statistics_total:
      VARMOE_SIZE(RouterStatisticsParams);
      VARMOE_OFFSET(RouterStatisticsParams, losses);
      VARMOE_OFFSET(RouterStatisticsParams, logit_stride);
      VARMOE_OFFSET(RouterStatisticsParams, wide_loads);
      break;
    case Stage::router_loss_terms:
    case Stage::router_dlogits:
      VARMOE_SIZE(RouterGradientParams);
      VARMOE_OFFSET(RouterGradientParams, terms);
      VARMOE_OFFSET(RouterGradientParams, coefficients);
      VARMOE_OFFSET(RouterGradientParams, wide_loads);
      break;
    case Stage::router_dx:
    case Stage::router_dweight:
      VARMOE_SIZE(RouterProductGradientParams);
      VARMOE_OFFSET(RouterProductGradientParams, token_count);
      VARMOE_OFFSET(RouterProductGradientParams, dweight_stride);
      VARMOE_OFFSET(RouterProductGradientParams, accumulate);
      break;
    case Stage::align_single:
    case Stage::align_count:
    case Stage::align_scatter:
      VARMOE_SIZE(AlignParams);
      VARMOE_OFFSET(AlignParams, num_tokens_post_pad);
      VARMOE_OFFSET(AlignParams, rows);
      VARMOE_OFFSET(AlignParams, slots_per_block);
      break;
    case Stage::topk_weight_gradient:
      VARMOE_SIZE(TopkWeightGradientParams);
      VARMOE_OFFSET(TopkWeightGradientParams, topk_gradient);
      VARMOE_OFFSET(TopkWeightGradientParams, dout_stride);
      VARMOE_OFFSET(TopkWeightGradientParams, partial_stride);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, width);
      VARMOE_SIZE(ExpertBias);
      VARMOE_OFFSET(ExpertBias, down);
      break;
    case Stage::gradient_schedule:
      VARMOE_SIZE(GradientScheduleParams);
      VARMOE_OFFSET(GradientScheduleParams, experts_count);
      VARMOE_SIZE(GradientSplit);
      VARMOE_SIZE(GradientEntry);
      VARMOE_OFFSET(GradientEntry, width);
      break;
    case Stage::fc1_gradient:
    case Stage::fc2_gradient:
      VARMOE_SIZE(WeightGradientParams);
      VARMOE_OFFSET(WeightGradientParams, ticket);
      VARMOE_SIZE(GradientSplit);
      VARMOE_OFFSET(WeightGradientParams, rows_map);
      VARMOE_SIZE(GradientEntry);
      VARMOE_OFFSET(GradientEntry, fc1_stride);
      VARMOE_OFFSET(GradientEntry, width);
      break;
    case Stage::fc1_bias_gradient:
    case Stage::fc2_bias_gradient:
      VARMOE_SIZE(BiasGradientParams);
      VARMOE_OFFSET(BiasGradientParams, rows_stride);
      VARMOE_SIZE(GradientEntry);
      VARMOE_OFFSET(GradientEntry, gate_bias);
      break;
    case Stage::shared_gate_gradient:
      VARMOE_SIZE(SharedGateGradientParams);
      VARMOE_OFFSET(SharedGateGradientParams, x_stride);
      break;
    case Stage::block_schedule:
      VARMOE_SIZE(BlockScheduleParams);
      VARMOE_OFFSET(BlockScheduleParams, offsets);
      VARMOE_OFFSET(BlockScheduleParams, source);
      VARMOE_OFFSET(BlockScheduleParams, sentinel);
      VARMOE_OFFSET(SortParams, tile_counts);
      VARMOE_OFFSET(SortParams, fc2_cluster);
      VARMOE_OFFSET(SortParams, classes);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, width_class);
      VARMOE_SIZE(RowTile);
      VARMOE_SIZE(TileCounts);
      VARMOE_OFFSET(TileCounts, rows);
      VARMOE_OFFSET(TileCounts, fc2_tickets);
      break;
    case Stage::block_gather:
    case Stage::block_slot_rows:
      VARMOE_SIZE(RowMapParams);
      VARMOE_OFFSET(RowMapParams, slot_row);
      VARMOE_OFFSET(RowMapParams, x_stride);
      VARMOE_OFFSET(RowMapParams, names_tokens);
      break;
    case Stage::combine_gradient:
      VARMOE_SIZE(CombineGradientParams);
      VARMOE_OFFSET(CombineGradientParams, topk_gradient);
      VARMOE_OFFSET(CombineGradientParams, dout_stride);
      VARMOE_OFFSET(CombineGradientParams, tokens);
      break;
    case Stage::activation_gradient:
      VARMOE_SIZE(GemmParams);
      VARMOE_OFFSET(GemmParams, a_stride);
      VARMOE_OFFSET(GemmParams, z_stride);
      VARMOE_OFFSET(GemmParams, classes);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, width);
      VARMOE_SIZE(RowTile);
      VARMOE_OFFSET(TileCounts, fc2_begin);
      break;
    case Stage::row_weight_gradient:
    case Stage::weigh_rows:
      VARMOE_SIZE(BlockRowsParams);
      VARMOE_OFFSET(BlockRowsParams, partials);
      VARMOE_OFFSET(BlockRowsParams, out_stride);
      VARMOE_OFFSET(BlockRowsParams, classes);
      VARMOE_SIZE(ExpertEntry);
      VARMOE_OFFSET(ExpertEntry, width);
      VARMOE_SIZE(ExpertBias);
      VARMOE_OFFSET(ExpertBias, down);
      VARMOE_SIZE(RowTile);
      VARMOE_OFFSET(TileCounts, fc2_begin);
      break;
  }
#undef VARMOE_SIZE
#undef VARMOE_OFFSET
  return s;
}

}  // namespace varmoe::emit
