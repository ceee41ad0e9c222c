#include "tools/gpu/candidate_kernels.hpp"

#include <algorithm>
#include <utility>

#include "engine/kernel_plan.hpp"
#include "model/cost_model.hpp"

namespace varmoe::tools {

CandidateKernels::CandidateKernels(engine::KernelBuilder& builder, engine::KernelTable& table,
                                   const LayerSpec& spec, std::int64_t bucket,
                                   const std::vector<LayerConfig>& configs)
    : configs_(configs), runtime_width_(engine::needs_runtime_width(spec)) {
  for (const LayerConfig& config : configs) {
    std::vector<std::size_t>& own = of_config_.emplace_back();
    for (const emit::KernelRequest& request : emit::required_kernels(spec, config, bucket, runtime_width_)) {
      const auto at = std::find(requests_.begin(), requests_.end(), request);
      own.push_back(static_cast<std::size_t>(at - requests_.begin()));
      if (at == requests_.end()) requests_.push_back(request);
    }
  }
  std::vector<engine::UnitRequest> units;
  for (const emit::KernelRequest& request : requests_)
    units.push_back({emit::to_string(request.stage), engine::config_text(request), request.runtime_width,
                     builder.unit(spec, request)});
  stream_ = std::make_unique<KernelStream>(builder, table, std::move(units), of_config_);
}

Result<plan::KernelSet> CandidateKernels::load(std::size_t index) {
  if (auto status = stream_->load(index); !status) return status.error();
  plan::KernelSet set;
  set.config = configs_[index];
  set.runtime_width = runtime_width_;
  for (const std::size_t i : of_config_[index]) set[requests_[i].stage] = stream_->kernel(i);
  return set;
}

CandidateTraining::CandidateTraining(engine::KernelBuilder& builder, engine::KernelTable& table,
                                     const LayerSpec& spec, std::int64_t bucket, GradientType gradient_type,
                                     const std::vector<BackwardConfig>& configs,
                                     const model::DeviceProfile& device) {
  TrainingOptions options;
  options.gradient_type = gradient_type;
  engine::ConfigChoice forward;
  forward.config = model::predict_layer_config(spec, bucket, device);
  engine::TrainingPlan plan;
  std::vector<std::vector<std::size_t>> of_config;
  for (const BackwardConfig& config : configs) {
    engine::add_training_bucket(plan, spec, options, bucket, forward,
                                engine::backward_choice(spec, bucket, config, device), builder);
    std::vector<std::size_t>& own = of_config.emplace_back();
    for (const engine::TrainingPart& part : plan.buckets.back().parts) own.push_back(part.kernel);
  }
  buckets_ = std::move(plan.buckets);
  stream_ = std::make_unique<KernelStream>(builder, table, std::move(plan.requests), std::move(of_config));
}

Result<plan::TrainingKernels> CandidateTraining::load(std::size_t index) {
  if (auto status = stream_->load(index); !status) return status.error();
  plan::TrainingKernels kernels = buckets_[index].kernels;
  for (const engine::TrainingPart& part : buckets_[index].parts) {
    const plan::LoadedKernel kernel = stream_->kernel(part.kernel);
    if (part.own) {
      kernels.*part.own = kernel;
    } else {
      (part.backward ? kernels.backward : kernels.forward)[part.stage] = kernel;
    }
  }
  return kernels;
}

}  // namespace varmoe::tools
