#include "engine/blocks_build.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emit/blocks.hpp"
#include "emit/training.hpp"
#include "engine/kernel_plan.hpp"
#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"

namespace varmoe::engine {

using emit::Stage;
using plan::BlockKernels;

GemmConfig ungathered(GemmConfig fc1) {
  fc1.gather = GatherMode::copy;
  return fc1;
}

GradientConfig ungathered(GradientConfig config) {
  if (config.schedule == Schedule::wgmma) config.gather = GatherMode::copy;
  return config;
}

namespace {

/// What is to be built, each kernel once, with who asks for it.
class Requests {
 public:
  Requests(const LayerSpec& spec, const BlocksOptions& options, KernelBuilder& builder)
      : spec_(spec), options_(options), builder_(builder), runtime_width_(needs_runtime_width(spec)) {}

  void forward(BlocksBucket& bucket, const LayerConfig& config, ConfigSource source) {
    bucket.kernels.layer.config = config;
    bucket.kernels.layer.runtime_width = runtime_width_;
    LayerSpec sums = spec_;
    sums.weight_on_input = true;
    sums.shared_gate = false;
    for (emit::KernelRequest request : emit::required_kernels(spec_, config, bucket.bucket, runtime_width_)) {
      BlockPart part;
      part.stage = request.stage;
      if (request.stage == Stage::fc1) {
        request.row_gaps = runtime_width_;
        layer(bucket, "up", spec_, request, part, source);
        if (!options_.training) continue;
        request.saves_z = true;
        part.own = &BlockKernels::up_saving;
        layer(bucket, "up_saving", spec_, request, part, source);
      } else if (request.stage == Stage::fc2) {
        request.row_weights = options_.weighted_down;
        layer(bucket, "down", spec_, request, part, source);
      } else if (request.stage == Stage::combine) {
        layer(bucket, "combine", spec_, request, part, source);
        part.own = &BlockKernels::combine_sum;
        layer(bucket, "combine_sum", sums, request, part, source);
      }  // else: rows are the caller's business
    }
    const std::int32_t threads = config.gather.block_threads;
    block(bucket, Stage::block_schedule, &BlockKernels::schedule, threads, source);
    block(bucket, Stage::block_gather, &BlockKernels::gather, threads, source);
    block(bucket, Stage::block_slot_rows, &BlockKernels::slot_rows, threads, source);
    block(bucket, Stage::combine_gradient, &BlockKernels::combine_gradient, threads, source);
  }

  void backward(BlocksBucket& bucket, const BackwardChoice& choice) {
    BlockKernels& k = bucket.kernels;
    k.backward.config = choice.config;
    k.backward.runtime_width = runtime_width_;
    k.use(spec_, choice.fc1_gradient, choice.fc2_gradient);
    const LayerSpec back = model::backward_layer(spec_);
    // Its fc1 without what the activation's backward needs: dh is all that it makes.
    LayerSpec plain = back;
    plain.weight_on_input = false;
    const bool weighted = options_.weighted_down;
    for (emit::KernelRequest request :
         emit::required_kernels(back, choice.config, bucket.bucket, runtime_width_)) {
      BlockPart part;
      part.stage = request.stage;
      part.backward = true;
      if (request.stage == Stage::fc2) {
        request.down_k = emit::backward_down_k(spec_);
        layer(bucket, "dx", back, request, part, choice.source);
      }
      if (request.stage != Stage::fc1) continue;
      request.row_gaps = runtime_width_;
      if (weighted) request.backward = emit::block_row_weights();
      layer(bucket, "dh", weighted ? back : plain, request, part, choice.source);
      request.backward = emit::block_activation_backward(spec_, weighted);
      part.own = &BlockKernels::dz;
      layer(bucket, "dz", back, request, part, choice.source);
    }
    block(bucket, Stage::activation_gradient, &BlockKernels::activation_gradient, 0, choice.source);
    if (weighted)
      block(bucket, Stage::row_weight_gradient, &BlockKernels::row_weight_gradient, 0, choice.source);
    if (spec_.weight_on_input) block(bucket, Stage::weigh_rows, &BlockKernels::weigh_rows, 0, choice.source);
    gradient(bucket, Stage::gradient_schedule, &BlockKernels::gradient_schedule, nullptr, choice.source);
    gradient(bucket, Stage::fc1_gradient, &BlockKernels::fc1_gradient, &k.fc1_gradient_config, choice.source);
    gradient(bucket, Stage::fc2_gradient, &BlockKernels::fc2_gradient, &k.fc2_gradient_config, choice.source);
    if (!spec_.bias) return;
    gradient(bucket, Stage::fc1_bias_gradient, &BlockKernels::fc1_bias_gradient, nullptr, choice.source);
    gradient(bucket, Stage::fc2_bias_gradient, &BlockKernels::fc2_bias_gradient, nullptr, choice.source);
  }

  std::vector<UnitRequest> units;
  std::vector<ConfigSource> sources;               ///< of each
  std::vector<std::vector<std::int64_t>> used_by;  ///< buckets of each

 private:
  using Own = plan::LoadedKernel BlockKernels::*;

  void add(BlocksBucket& bucket, UnitRequest request, BlockPart part, ConfigSource source) {
    std::size_t at = units.size();
    if (request.unit)
      for (std::size_t i = 0; i < units.size(); ++i)
        if (units[i].unit && (*units[i].unit)->key == (*request.unit)->key) at = i;
    if (at == units.size()) {
      units.push_back(std::move(request));
      sources.push_back(source);
      used_by.emplace_back();
    }
    if (used_by[at].empty() || used_by[at].back() != bucket.bucket) used_by[at].push_back(bucket.bucket);
    sources[at] = std::min(sources[at], source);
    part.kernel = at;
    bucket.parts.push_back(part);
  }

  void layer(BlocksBucket& bucket, const char* name, const LayerSpec& spec,
             const emit::KernelRequest& request, const BlockPart& part, ConfigSource source) {
    add(bucket, {name, config_text(request), request.runtime_width, builder_.unit(spec, request)}, part,
        source);
  }

  void emitted(BlocksBucket& bucket, Stage stage, Own member, std::string config,
               Result<emit::EmittedKernel> kernel, ConfigSource source) {
    UnitRequest request{
        emit::to_string(stage), std::move(config), false, {Error(ErrorCode::internal, "no kernel")}};
    if (kernel) {
      if (request.config.empty()) request.config = fmt::format("block_threads={}", kernel->block_threads);
      request.unit = builder_.unit(*std::move(kernel));
    } else {
      request.unit = kernel.error();
    }
    BlockPart part;
    part.own = member;
    add(bucket, std::move(request), part, source);
  }

  void block(BlocksBucket& bucket, Stage stage, Own member, std::int32_t threads, ConfigSource source) {
    emitted(bucket, stage, member, {}, emit::emit_block(spec_, stage, threads), source);
  }

  void gradient(BlocksBucket& bucket, Stage stage, Own member, const GradientConfig* config,
                ConfigSource source) {
    emit::GradientRequest request;
    request.stage = stage;
    if (config) request.config = *config;
    request.type = options_.gradient_type;
    request.segments = true;
    emitted(bucket, stage, member, config ? to_string(*config) : std::string(),
            emit::emit_gradient(spec_, request), source);
  }

  const LayerSpec& spec_;
  const BlocksOptions& options_;
  KernelBuilder& builder_;
  const bool runtime_width_;
};

Error at_tokens(const char* product, std::int64_t tokens, const Error& error) {
  return {error.code(), fmt::format("{} at {} tokens: {}", product, tokens, error.message())};
}

/// A layer's choice, for rows that lie in order.
Result<BackwardChoice> backward_choice_of(const LayerSpec& spec, const BlocksOptions& options,
                                          std::int64_t tokens, const ConfigChooser& chooser) {
  // Weights of rows change no product.
  LayerSpec plain = spec;
  plain.weight_on_input = false;
  auto choice = chooser.choose_backward(plain, tokens, options.gradient_type);
  if (!choice) return choice;
  choice->config.fc1 = model::saving_config(ungathered(choice->config.fc1));
  choice->config.one_launch = {};
  choice->fc1_gradient = ungathered(choice->fc1_gradient);
  choice->fc2_gradient = ungathered(choice->fc2_gradient);
  const auto& device = chooser.device();
  if (auto ok = model::check_dh_config(model::backward_layer(spec), choice->config.fc1, device); !ok)
    return at_tokens("dh", tokens, ok.error());
  if (auto ok = model::check_gradient_config(choice->fc1_gradient, device); !ok)
    return at_tokens("fc1_gradient", tokens, ok.error());
  if (auto ok = model::check_gradient_config(choice->fc2_gradient, device); !ok)
    return at_tokens("fc2_gradient", tokens, ok.error());
  return choice;
}

}  // namespace

Result<BlocksBuild> build_blocks(const LayerSpec& spec, const BlocksOptions& options,
                                 std::span<const std::int64_t> buckets, const ConfigChooser& chooser,
                                 KernelBuilder& builder, const BuildHooks& hooks) {
  BlocksBuild build;
  Requests requests(spec, options, builder);
  for (const std::int64_t tokens : buckets) {
    auto choice = chooser.choose(spec, tokens);
    if (!choice) return std::move(choice).error();
    LayerConfig config = choice->config;
    config.one_launch = {};
    config.fc1 = ungathered(config.fc1);
    if (options.training) config.fc1 = model::saving_config(config.fc1);
    if (auto ok = model::check_gemm_config(spec, model::GemmStage::fc1, config.fc1, chooser.device()); !ok)
      return at_tokens("up", tokens, ok.error());
    BlocksBucket bucket;
    bucket.bucket = tokens;
    requests.forward(bucket, config, choice->source);
    if (options.training) {
      auto backward = backward_choice_of(spec, options, tokens, chooser);
      if (!backward) return std::move(backward).error();
      requests.backward(bucket, *backward);
    }
    build.buckets.push_back(std::move(bucket));
  }
  auto built = builder.build(std::move(requests.units), hooks);
  if (!built) return std::move(built).error();
  build.built = *std::move(built);
  for (std::size_t i = 0; i < build.built.size(); ++i) {
    build.reports.push_back(build.built[i].report);
    build.reports.back().token_buckets = requests.used_by[i];
    build.reports.back().config_source = requests.sources[i];
  }
  return build;
}

}  // namespace varmoe::engine
