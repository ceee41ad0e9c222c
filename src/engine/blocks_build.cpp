#include "engine/blocks_build.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emit/blocks.hpp"
#include "engine/kernel_plan.hpp"
#include "model/config_space.hpp"

namespace varmoe::engine {

using emit::Stage;
using plan::BlockKernels;

GemmConfig ungathered(GemmConfig fc1) {
  fc1.gather = GatherMode::copy;
  return fc1;
}

Result<BlocksBuild> build_blocks(const LayerSpec& spec, const BlocksOptions& options,
                                 std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                 KernelBuilder& builder, const BuildHooks& hooks) {
  BlocksBuild build;
  std::vector<UnitRequest> requests;
  std::vector<ConfigSource> sources;
  std::vector<std::vector<std::int64_t>> used_by;
  const bool runtime_width = needs_runtime_width(spec);
  LayerSpec sums = spec;
  sums.weight_on_input = true;
  sums.shared_gate = false;
  for (const std::int64_t tokens : buckets) {
    auto choice = chooser.choose(spec, tokens);
    if (!choice) return std::move(choice).error();
    LayerConfig config = choice->config;
    config.one_launch = {};
    config.fc1 = ungathered(config.fc1);
    if (auto ok = model::check_gemm_config(spec, model::GemmStage::fc1, config.fc1, chooser.device()); !ok)
      return Error(ok.error().code(), fmt::format("up at {} tokens: {}", tokens, ok.error().message()));
    BlocksBucket bucket;
    bucket.bucket = tokens;
    bucket.kernels.layer.config = config;
    bucket.kernels.layer.runtime_width = runtime_width;
    const auto add = [&](const char* name, std::string text, bool any_width,
                         Result<std::shared_ptr<const KernelUnit>> unit, BlockPart part,
                         ConfigSource source) {
      std::size_t at = requests.size();
      if (unit)
        for (std::size_t i = 0; i < requests.size(); ++i)
          if (requests[i].unit && (*requests[i].unit)->key == (*unit)->key) at = i;
      if (at == requests.size()) {
        requests.push_back({name, std::move(text), any_width, std::move(unit)});
        sources.push_back(source);
        used_by.emplace_back();
      }
      if (used_by[at].empty() || used_by[at].back() != tokens) used_by[at].push_back(tokens);
      sources[at] = std::min(sources[at], source);
      part.kernel = at;
      bucket.parts.push_back(part);
    };
    for (emit::KernelRequest request : emit::required_kernels(spec, config, tokens, runtime_width)) {
      BlockPart part;
      part.stage = request.stage;
      const char* name = emit::to_string(request.stage);
      if (request.stage == Stage::fc1) {
        name = "up";
        request.row_gaps = runtime_width;
      } else if (request.stage == Stage::fc2) {
        name = "down";
        request.row_weights = options.weighted_down;
      } else if (request.stage != Stage::combine) {
        continue;  // rows are the caller's business
      }
      add(name, config_text(request), request.runtime_width, builder.unit(spec, request), part,
          choice->source);
      if (request.stage != Stage::combine) continue;
      part.own = &BlockKernels::combine_sum;
      add("combine_sum", config_text(request), false, builder.unit(sums, request), part, choice->source);
    }
    const auto own = [&](Stage stage, plan::LoadedKernel BlockKernels::*member) {
      BlockPart part;
      part.own = member;
      auto emitted = emit::emit_block(spec, stage, config.gather.block_threads);
      Result<std::shared_ptr<const KernelUnit>> unit = Error(ErrorCode::internal, "no kernel");
      std::string text;
      if (emitted) {
        text = fmt::format("block_threads={}", emitted->block_threads);
        unit = builder.unit(*std::move(emitted));
      } else {
        unit = emitted.error();
      }
      add(emit::to_string(stage), std::move(text), false, std::move(unit), part, choice->source);
    };
    own(Stage::block_schedule, &BlockKernels::schedule);
    own(Stage::block_gather, &BlockKernels::gather);
    own(Stage::block_slot_rows, &BlockKernels::slot_rows);
    own(Stage::combine_gradient, &BlockKernels::combine_gradient);
    build.buckets.push_back(std::move(bucket));
  }
  auto built = builder.build(std::move(requests), hooks);
  if (!built) return std::move(built).error();
  build.built = *std::move(built);
  for (std::size_t i = 0; i < build.built.size(); ++i) {
    build.reports.push_back(build.built[i].report);
    build.reports.back().token_buckets = used_by[i];
    build.reports.back().config_source = sources[i];
  }
  return build;
}

}  // namespace varmoe::engine
