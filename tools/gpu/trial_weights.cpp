#include "tools/gpu/trial_weights.hpp"

#include <cmath>
#include <utility>

namespace varmoe::tools {
namespace {

constexpr std::uint64_t kWeightSeed = 0x51ed270b00000001, kBiasSeed = 0x51ed270b10000003;
/// Standard deviation of biases; sums have about 1.
constexpr double kBiasScale = 0.5;

/// Standard deviation of h where gate and up are of unit variance, roughly: keeps out at that scale.
double activation_scale(Activation activation) {
  return activation == Activation::relu2 ? 1.2 : activation == Activation::identity ? 1.0 : 0.6;
}

}  // namespace

Status allocate(const std::shared_ptr<cuda::Device>& device, cuda::DeviceBuffer& buffer, std::size_t bytes) {
  buffer = cuda::DeviceBuffer();
  auto made = cuda::DeviceBuffer::allocate(device, bytes);
  if (!made) return made.error();
  buffer = *std::move(made);
  return {};
}

Result<TrialWeights> allocate_weights(const std::shared_ptr<cuda::Device>& device, const LayerSpec& spec,
                                      std::int64_t element_bytes) {
  std::int64_t total = spec.total_width();
  for (const std::int64_t width : spec.shared_widths) total += width;
  const auto element = static_cast<std::size_t>(element_bytes);
  const auto elements = static_cast<std::size_t>(total * spec.hidden_size) * element;
  const std::size_t matrices = spec.gated() ? 2 : 1;
  TrialWeights w;
  if (auto status = allocate(device, w.fc1, elements * matrices); !status) return status.error();
  if (auto status = allocate(device, w.fc2, elements); !status) return status.error();
  if (spec.shared_gate) {
    const auto bytes = static_cast<std::size_t>(spec.hidden_size) * element;
    if (auto status = allocate(device, w.shared_gate, bytes); !status) return status.error();
  }
  auto lie = Weights::blocks(spec, w.fc1.data(), w.fc2.data(), element_bytes);
  if (lie && spec.bias) {
    const auto fc1 = static_cast<std::size_t>(spec.total_width()) * matrices * element;
    const auto fc2 = static_cast<std::size_t>(spec.num_experts() * spec.hidden_size) * element;
    if (auto status = allocate(device, w.fc1_bias, fc1); !status) return status.error();
    if (auto status = allocate(device, w.fc2_bias, fc2); !status) return status.error();
    lie = lie->with_biases(spec, w.fc1_bias.data(), w.fc2_bias.data(), 0, element_bytes);
  }
  if (!lie) return lie.error();
  if (!spec.shared_widths.empty()) {
    // Behind the routed ones.
    const auto routed = static_cast<std::size_t>(spec.total_width() * spec.hidden_size) * element;
    const auto behind = [](const cuda::DeviceBuffer& buffer, std::size_t bytes) {
      return reinterpret_cast<const void*>(buffer.address() + bytes);
    };
    const void* gate = spec.shared_gate ? w.shared_gate.data() : nullptr;
    if (auto status = lie->set_shared_blocks(spec, behind(w.fc1, routed * matrices), behind(w.fc2, routed),
                                             gate, element_bytes);
        !status)
      return status.error();
  }
  w.lie = *std::move(lie);
  return w;
}

Status fill_weights(const ReferenceKernels& kernels, const LayerSpec& spec, const TrialWeights& w,
                    void* stream) {
  const double uniform = std::sqrt(3.0);  // of standard deviation 1 when uniform in ± this
  const std::int32_t fp16 = spec.dtype == DType::fp16 ? 1 : 0;
  const double hidden = static_cast<double>(spec.hidden_size);
  const FillParams fc1{w.fc1.address(), w.fc1.size() / 2, kWeightSeed,
                       static_cast<float>(uniform / std::sqrt(hidden)), fp16};
  if (auto status = kernels.fill(fc1, stream); !status) return status;
  if (spec.shared_gate) {
    const FillParams gate{w.shared_gate.address(), w.shared_gate.size() / 2, kWeightSeed ^ 1,
                          static_cast<float>(2 * uniform / std::sqrt(hidden)), fp16};
    if (auto status = kernels.fill(gate, stream); !status) return status;
  }
  std::uint64_t begin = 0;
  for (std::int64_t e = 0; e < spec.all_experts(); ++e) {
    const std::int64_t width = spec.width_of(e);
    const auto count = static_cast<std::uint64_t>(width * spec.hidden_size);
    const double scale =
        uniform / (activation_scale(spec.activation) * std::sqrt(static_cast<double>(width)));
    const FillParams fc2{w.fc2.address() + begin * 2, count, ~kWeightSeed + begin, static_cast<float>(scale),
                         fp16};
    if (auto status = kernels.fill(fc2, stream); !status) return status;
    begin += count;
  }
  if (!spec.bias) return {};
  for (const cuda::DeviceBuffer* bias : {&w.fc1_bias, &w.fc2_bias}) {
    const FillParams fill{bias->address(), bias->size() / 2, kBiasSeed,
                          static_cast<float>(uniform * kBiasScale), fp16};
    if (auto status = kernels.fill(fill, stream); !status) return status;
  }
  return {};
}

std::vector<ReferenceExpert> reference_experts(const LayerSpec& spec, const Weights& weights) {
  std::vector<ReferenceExpert> experts;
  for (const auto* kind : {&weights.experts, &weights.shared}) {
    for (const ExpertWeights& w : *kind) {
      const auto address = [](const void* p) { return reinterpret_cast<std::uint64_t>(p); };
      const std::int64_t width = spec.width_of(static_cast<std::int64_t>(experts.size()));
      experts.push_back({address(w.gate), address(w.up), address(w.down), width, w.fc1_stride, w.fc2_stride,
                         address(w.gate_bias), address(w.up_bias), address(w.down_bias), w.fc1_bias_stride});
    }
  }
  return experts;
}

}  // namespace varmoe::tools
