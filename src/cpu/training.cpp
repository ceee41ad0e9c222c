#include "cpu/training.hpp"

#include <utility>

namespace varmoe::cpu {

struct CpuTrainingLayer::Impl {};

CpuTrainingLayer::CpuTrainingLayer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CpuTrainingLayer::~CpuTrainingLayer() = default;

Result<std::unique_ptr<CpuTrainingLayer>> CpuTrainingLayer::create(const LayerSpec&, const TrainingOptions&,
                                                                   int) {
  return Error(ErrorCode::unsupported, "no training on the CPU yet");
}
Status CpuTrainingLayer::bind(const Weights&) {
  return {};
}
Status CpuTrainingLayer::bind_gradients(const Weights&) {
  return {};
}
std::size_t CpuTrainingLayer::saved_bytes(std::int64_t) const noexcept {
  return 0;
}
std::size_t CpuTrainingLayer::workspace_bytes(std::int64_t) const noexcept {
  return 0;
}
Status CpuTrainingLayer::forward(const ForwardArgs&, void*) noexcept {
  return {};
}
Status CpuTrainingLayer::backward(const BackwardArgs&) noexcept {
  return {};
}

}  // namespace varmoe::cpu
