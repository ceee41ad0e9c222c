#include "tools/gpu/candidate_kernels.hpp"

#include <algorithm>
#include <utility>

#include "engine/kernel_plan.hpp"

namespace varmoe::tools {

CandidateKernels::CandidateKernels(engine::KernelBuilder& builder, engine::KernelTable& table,
                                   const LayerSpec& spec, std::int64_t bucket,
                                   const std::vector<LayerConfig>& configs)
    : builder_(builder),
      table_(table),
      spec_(spec),
      configs_(configs),
      runtime_width_(engine::needs_runtime_width(spec)) {
  for (const LayerConfig& config : configs) {
    std::vector<std::size_t>& own = of_config_.emplace_back();
    for (const emit::KernelRequest& request : emit::required_kernels(spec, config, bucket, runtime_width_)) {
      const auto at = std::find(requests_.begin(), requests_.end(), request);
      own.push_back(static_cast<std::size_t>(at - requests_.begin()));
      if (at == requests_.end()) requests_.push_back(request);
    }
  }
  thread_ = std::thread([this] { build(); });
}

CandidateKernels::~CandidateKernels() {
  cancel_ = true;
  thread_.join();
}

void CandidateKernels::build() {
  engine::BuildHooks hooks;
  hooks.cancel = &cancel_;
  const auto publish = [this](const Digest& key, engine::BuiltKernel kernel) {
    const std::lock_guard lock(mutex_);
    ready_.try_emplace(key, std::move(kernel));
    changed_.notify_all();
  };
  hooks.have = [&](const engine::KernelUnit& unit, KernelReport&) {
    if (table_.find(unit.key) == nullptr) return false;
    publish(unit.key, {});
    return true;
  };
  hooks.finish = [&](engine::BuiltKernel& kernel) -> Status {
    publish(kernel.unit->key, kernel);
    return {};
  };
  auto built = builder_.build(spec_, requests_, hooks);
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (!built) {
      outcome_.emplace_back(built.error());
    } else if ((*built)[i].error) {
      outcome_.emplace_back(*(*built)[i].error);
    } else {
      outcome_.emplace_back();
    }
  }
  done_ = true;
  changed_.notify_all();
}

Status CandidateKernels::wait(std::size_t index) {
  std::vector<Digest> keys;
  for (const std::size_t i : of_config_[index]) {
    auto unit = builder_.unit(spec_, requests_[i]);
    if (!unit) return unit.error();
    keys.push_back((*unit)->key);
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return done_ ||
           std::all_of(keys.begin(), keys.end(), [&](const Digest& k) { return ready_.contains(k); });
  });
  if (!done_) return {};
  for (const std::size_t i : of_config_[index]) {
    if (!outcome_[i]) return outcome_[i];
  }
  return {};
}

Result<plan::KernelSet> CandidateKernels::load(std::size_t index) {
  plan::KernelSet set;
  set.config = configs_[index];
  set.runtime_width = runtime_width_;
  for (const std::size_t i : of_config_[index]) {
    auto unit = builder_.unit(spec_, requests_[i]);
    if (!unit) return unit.error();
    const Digest& key = (*unit)->key;
    if (table_.find(key) == nullptr) {
      engine::BuiltKernel kernel;
      {
        const std::lock_guard lock(mutex_);
        const auto found = ready_.find(key);
        if (found == ready_.end()) return {ErrorCode::internal, "a kernel was loaded before it was ready"};
        kernel = found->second;
      }
      if (auto status = table_.load(kernel, &cancel_); !status) return status.error();
    }
    set[(*unit)->emitted.stage] = table_.find(key)->launch;
  }
  return set;
}

}  // namespace varmoe::tools
