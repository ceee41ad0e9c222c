#include "emit/routing.hpp"

#include <fmt/format.h>

#include <bit>

#include "base/digest.hpp"
#include "emit/kernel_sources.hpp"
#include "emit/layer_traits.hpp"
#include "emit/sort_shape.hpp"
#include "moe/router_chunks.cuh"

namespace varmoe::emit {
namespace {

/// Four tokens a block: few tokens spread over many SMs, and many still fill one.
constexpr std::int32_t kRouteThreads = 128;
constexpr std::int32_t kAlignThreads = 1024;
constexpr std::int32_t kGemvThreads = 32;
constexpr std::int32_t kGemmThreads = 128;
/// Stages of router_gemm's ring.
constexpr std::int32_t kGemmStages = 3;
constexpr std::int32_t kStatisticsThreads = 256;
constexpr std::int32_t kStatisticsTotalThreads = 1024;
constexpr std::int32_t kProductGradientThreads = 128;

const char* boolean(bool value) {
  return value ? "true" : "false";
}

const char* logit_element(LogitType type) {
  switch (type) {
    case LogitType::fp32:
      return "varmoe::moe::LogitElement::fp32";
    case LogitType::bf16:
      return "varmoe::moe::LogitElement::bf16";
    case LogitType::fp16:
      return "varmoe::moe::LogitElement::fp16";
  }
  return "";
}

/// Softmax over the experts chosen alone. Renormalising with no epsilon cancels the sum over all experts, as
/// that does.
bool sums_over_chosen(const RouterSpec& s) {
  return s.scoring == Scoring::softmax && !chooses_by_score(s) &&
         (s.order == ScoreOrder::after_top_k || (s.renormalize && s.epsilon == 0.0f));
}

/// Weights are divided by their sum; not where that is 1 already.
bool divides_by_sum(const RouterSpec& s) {
  return s.renormalize && !(sums_over_chosen(s) && s.epsilon == 0.0f);
}

std::string router_traits(const RouterSpec& s) {
  const bool softmax = s.scoring == Scoring::softmax;
  const bool by_score = chooses_by_score(s);
  const bool over_chosen = sums_over_chosen(s);
  const bool renormalize = divides_by_sum(s);
  const bool grouped = s.num_groups > 1 && s.top_groups < s.num_groups;
  return fmt::format(
             "struct Router {{\n"
             "  static constexpr int kExperts = {}, kTopK = {}, kGroups = {}, kTopGroups = {};\n"
             "  static constexpr varmoe::moe::LogitElement kLogit = {};\n",
             s.num_experts, s.top_k, grouped ? s.num_groups : 1, grouped ? s.top_groups : 1,
             logit_element(s.logit_type)) +
         fmt::format(
             "  static constexpr bool kSigmoid = {}, kOverChosen = {}, kRenormalize = {}, kChooseByScore = "
             "{}, kBias = {}, "
             "kGroupTop2 = {}, kOutsideIsZero = {}, kFromProduct = {};\n",
             boolean(!softmax), boolean(over_chosen), boolean(renormalize), boolean(by_score),
             boolean(s.correction_bias), boolean(grouped && s.group_score == GroupScore::top2_sum),
             boolean(grouped && s.correction_bias && s.outside_groups == OutsideGroups::as_zero),
             boolean(s.hidden_size != 0)) +
         fmt::format("  static constexpr unsigned kEpsilonBits = 0x{:08x}u, kScaleBits = 0x{:08x}u;\n}};\n",
                     std::bit_cast<std::uint32_t>(renormalize ? s.epsilon + 0.0f : 0.0f),
                     std::bit_cast<std::uint32_t>(s.scaling_factor + 0.0f));
}

std::string product_traits(const RouterSpec& s) {
  return fmt::format(
      "struct Product {{\n"
      "  static constexpr int kHidden = {}, kExperts = {};\n"
      "  static constexpr varmoe::Element kInput = varmoe::Element::{};\n"
      "  static constexpr varmoe::moe::LogitElement kWeight = {};\n}};\n",
      s.hidden_size, s.num_experts, s.input_type == DType::bf16 ? "bf16" : "fp16",
      logit_element(s.weight_type));
}

std::string statistics_traits(const RouterStatisticsSpec& s) {
  return fmt::format(
      "struct Router {{\n"
      "  static constexpr int kExperts = {}, kTopK = {}, kGroups = 1;\n"
      "  static constexpr varmoe::moe::LogitElement kLogit = {};\n"
      "  static constexpr bool kSigmoid = {}, kOverChosen = false;\n}};\n",
      s.num_experts, s.top_k, logit_element(s.logit_type), boolean(s.scoring == Scoring::sigmoid));
}

std::string gradient_traits(const RouterGradientSpec& spec) {
  const RouterSpec& s = spec.router;
  const std::uint32_t z = loss_bit(RouterLoss::z);
  const bool renormalize = divides_by_sum(s);
  return fmt::format(
             "struct Router {{\n"
             "  static constexpr int kExperts = {}, kTopK = {}, kGroups = 1;\n"
             "  static constexpr varmoe::moe::LogitElement kLogit = {}, kGradient = {};\n",
             s.num_experts, s.top_k, logit_element(s.logit_type), logit_element(spec.dlogit_type)) +
         fmt::format(
             "  static constexpr bool kSigmoid = {}, kOverChosen = {}, kRenormalize = {}, kZLoss = {}, "
             "kShareLosses = {};\n",
             boolean(s.scoring == Scoring::sigmoid), boolean(sums_over_chosen(s)), boolean(renormalize),
             boolean((spec.losses & z) != 0), boolean((spec.losses & ~z) != 0)) +
         fmt::format("  static constexpr unsigned kEpsilonBits = 0x{:08x}u, kScaleBits = 0x{:08x}u;\n}};\n",
                     std::bit_cast<std::uint32_t>(renormalize ? s.epsilon + 0.0f : 0.0f),
                     std::bit_cast<std::uint32_t>(s.scaling_factor + 0.0f));
}

/// Of router_loss_terms, which is the same for every method.
std::string loss_terms_traits(const RouterSpec& s) {
  return fmt::format("struct Router {{\n  static constexpr int kExperts = {}, kTopK = {};\n}};\n",
                     s.num_experts, s.top_k);
}

std::string product_gradient_traits(const RouterGradientSpec& spec) {
  const RouterSpec& s = spec.router;
  return fmt::format(
      "struct Product {{\n"
      "  static constexpr int kHidden = {}, kExperts = {};\n"
      "  static constexpr varmoe::Element kInput = varmoe::Element::{};\n"
      "  static constexpr varmoe::moe::LogitElement kWeight = {}, kWeightGradient = {};\n}};\n",
      s.hidden_size, s.num_experts, s.input_type == DType::bf16 ? "bf16" : "fp16",
      logit_element(s.weight_type), logit_element(spec.dweight_type));
}

/// Head and body → a kernel with its name.
Result<EmittedKernel> finish(EmittedKernel kernel, const std::string& head, const char* params,
                             const std::string& call) {
  kernel.options = {"--std=c++17", "--no-source-include"};
  auto headers = KernelSources::current()->reachable(head);
  if (!headers) return headers.error();
  kernel.headers = *std::move(headers);
  const std::string entry =
      fmt::format("extern \"C\" __global__ void __launch_bounds__({}, 1) ", kernel.block_threads);
  const std::string body =
      fmt::format("(const __grid_constant__ varmoe::abi::{} p) {{ varmoe::moe::{}(p); }}\n", params, call);
  const std::string digest = Hasher().field(head).field(entry).field(body).finish().hex();
  kernel.entry_name =
      fmt::format("varmoe_{}_t{}_{}", to_string(kernel.stage), kernel.block_threads, digest.substr(0, 16));
  kernel.text = head + entry + kernel.entry_name + body;
  return kernel;
}

std::string head_of(Stage stage, const char* include, const std::string& traits) {
  return fmt::format("// varmoe {}\n#include \"{}\"\n\nnamespace {{\n{}}}  // namespace\n\n{}\n",
                     to_string(stage), include, traits, abi_assertions(stage));
}

}  // namespace

Result<EmittedKernel> emit_router(const RouterSpec& spec) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  EmittedKernel kernel;
  kernel.stage = Stage::route;
  kernel.block_threads = kRouteThreads;
  return finish(std::move(kernel), head_of(Stage::route, "moe/route.cuh", router_traits(spec)), "RouteParams",
                fmt::format("route<Router, {}>", kRouteThreads));
}

Result<std::vector<EmittedKernel>> emit_router_kernels(const RouterSpec& spec) {
  std::vector<EmittedKernel> all;
  auto route = emit_router(spec);
  if (!route) return std::move(route).error();
  all.push_back(*std::move(route));
  if (spec.hidden_size == 0) return all;
  for (const Stage stage : {Stage::router_gemv, Stage::router_gemm}) {
    EmittedKernel kernel;
    kernel.stage = stage;
    kernel.block_threads = stage == Stage::router_gemv ? kGemvThreads : kGemmThreads;
    const std::int32_t weight_bytes = spec.weight_type == LogitType::fp32 ? 4 : 2;
    if (stage == Stage::router_gemm)
      kernel.dynamic_smem_bytes = kGemmStages * moe::kRouterStageK *
                                  (moe::kRouterGemmExperts * weight_bytes + moe::kRouterGemmTokens * 2);
    auto finished = finish(std::move(kernel), head_of(stage, "moe/router_product.cuh", product_traits(spec)),
                           "RouterProductParams", fmt::format("{}<Product>", to_string(stage)));
    if (!finished) return std::move(finished).error();
    all.push_back(*std::move(finished));
  }
  return all;
}

Result<std::vector<EmittedKernel>> emit_router_statistics(const RouterStatisticsSpec& spec) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  std::vector<EmittedKernel> all;
  for (const Stage stage : {Stage::statistics_blocks, Stage::statistics_total}) {
    EmittedKernel kernel;
    kernel.stage = stage;
    kernel.block_threads = stage == Stage::statistics_blocks ? kStatisticsThreads : kStatisticsTotalThreads;
    const std::string call = fmt::format("{}<Router, {}>", to_string(stage), kernel.block_threads);
    auto finished =
        finish(std::move(kernel), head_of(stage, "moe/router_statistics.cuh", statistics_traits(spec)),
               "RouterStatisticsParams", call);
    if (!finished) return std::move(finished).error();
    all.push_back(*std::move(finished));
  }
  return all;
}

Result<std::vector<EmittedKernel>> emit_router_gradient(const RouterGradientSpec& spec) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  std::vector<EmittedKernel> all;
  const auto add = [&](Stage stage, std::int32_t threads, const char* include, const std::string& traits,
                       const char* params, const std::string& call) -> Status {
    EmittedKernel kernel;
    kernel.stage = stage;
    kernel.block_threads = threads;
    auto finished = finish(std::move(kernel), head_of(stage, include, traits), params, call);
    if (!finished) return std::move(finished).error();
    all.push_back(*std::move(finished));
    return {};
  };
  constexpr const char* logits = "moe/router_gradient.cuh";
  constexpr const char* product = "moe/router_product_gradient.cuh";
  if (auto ok = add(Stage::router_dlogits, kRouteThreads, logits, gradient_traits(spec),
                    "RouterGradientParams", fmt::format("router_dlogits<Router, {}>", kRouteThreads));
      !ok)
    return std::move(ok).error();
  if ((spec.losses & ~loss_bit(RouterLoss::z)) != 0) {
    const std::int64_t threads = (spec.router.num_experts + 31) / 32 * 32;
    if (auto ok = add(Stage::router_loss_terms, static_cast<std::int32_t>(threads), logits,
                      loss_terms_traits(spec.router), "RouterGradientParams",
                      fmt::format("router_loss_terms<Router, {}>", threads));
        !ok)
      return std::move(ok).error();
  }
  if (spec.router.hidden_size == 0) return all;
  for (const Stage stage : {Stage::router_dx, Stage::router_dweight}) {
    if (auto ok = add(stage, kProductGradientThreads, product, product_gradient_traits(spec),
                      "RouterProductGradientParams", fmt::format("{}<Product>", to_string(stage)));
        !ok)
      return std::move(ok).error();
  }
  return all;
}

Result<EmittedKernel> emit_align(const AlignSpec& spec, Stage stage) {
  if (auto ok = spec.validate(); !ok) return ok.error();
  if (stage != Stage::align_single && stage != Stage::align_count && stage != Stage::align_scatter)
    return Error(ErrorCode::internal, fmt::format("{} is no stage of an alignment", to_string(stage)));
  EmittedKernel kernel;
  kernel.stage = stage;
  kernel.block_threads = sort_block_threads(spec.num_experts, kAlignThreads);
  kernel.dynamic_smem_bytes = sort_smem_bytes(spec.num_experts, kernel.block_threads);
  const std::string traits = fmt::format(
      "struct Layer {{\n  static constexpr int kExperts = {};\n  static constexpr int kTopK = 1, "
      "kSharedExperts = 0;\n  static constexpr bool kWeightOnInput = false;\n}};\n",
      spec.num_experts);
  return finish(std::move(kernel), head_of(stage, "moe/align.cuh", traits), "AlignParams",
                fmt::format("{}<Layer, {}>", to_string(stage), kernel.block_threads));
}

}  // namespace varmoe::emit
