#include "tools/gpu/kernel_stream.hpp"

#include <algorithm>
#include <utility>

namespace varmoe::tools {

KernelStream::KernelStream(engine::KernelBuilder& builder, engine::KernelTable& table,
                           std::vector<engine::UnitRequest> requests,
                           std::vector<std::vector<std::size_t>> of_config)
    : builder_(builder), table_(table), requests_(std::move(requests)), of_config_(std::move(of_config)) {
  thread_ = std::thread([this] { build(); });
}

KernelStream::~KernelStream() {
  cancel_ = true;
  thread_.join();
}

void KernelStream::build() {
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
  auto built = builder_.build(requests_, hooks);
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

Status KernelStream::wait(std::size_t index) {
  std::vector<Digest> keys;
  for (const std::size_t i : of_config_[index]) {
    if (!requests_[i].unit) return requests_[i].unit.error();
    keys.push_back((*requests_[i].unit)->key);
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

Status KernelStream::load(std::size_t index) {
  for (const std::size_t i : of_config_[index]) {
    const Digest& key = (*requests_[i].unit)->key;
    if (table_.find(key) != nullptr) continue;
    engine::BuiltKernel kernel;
    {
      const std::lock_guard lock(mutex_);
      const auto found = ready_.find(key);
      if (found == ready_.end()) return {ErrorCode::internal, "a kernel was loaded before it was ready"};
      kernel = found->second;
    }
    if (auto status = table_.load(kernel, &cancel_); !status) return status.error();
  }
  return {};
}

plan::LoadedKernel KernelStream::kernel(std::size_t request) const {
  return table_.find((*requests_[request].unit)->key)->launch;
}

}  // namespace varmoe::tools
