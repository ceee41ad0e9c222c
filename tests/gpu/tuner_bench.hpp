#pragma once

#include <memory>
#include <optional>

#include "cuda/stream.hpp"
#include "engine/device_choice.hpp"
#include "engine/kernel_builder.hpp"
#include "engine/kernel_table.hpp"
#include "engine/toolchain.hpp"
#include "gpu/device_layer.hpp"
#include "tools/gpu/reference_kernels.hpp"
#include "tools/gpu/trial.hpp"

/// What the tests of the tuner's measurer stand on: compiler, kernels, reference and stream of this GPU, and
/// a small layer.
namespace gpu {

struct TunerBench {
  varmoe::model::DeviceProfile profile;
  varmoe::engine::Toolchain toolchain;
  std::unique_ptr<varmoe::engine::KernelBuilder> builder;
  std::unique_ptr<varmoe::engine::KernelTable> table;
  std::optional<varmoe::tools::ReferenceKernels> references;
  std::optional<varmoe::cuda::Stream> stream;

  auto compiler() { return must(toolchain.compiler->load(), "compiler"); }

  TunerBench()
      : profile(must(varmoe::engine::device_profile(device()->attributes(), {}), "profile")),
        toolchain(must(varmoe::engine::Toolchain::open(options(), {}), "toolchain")) {
    builder = std::make_unique<varmoe::engine::KernelBuilder>(toolchain.builder_settings(profile.arch));
    table = std::make_unique<varmoe::engine::KernelTable>(device(), *builder, varmoe::Log());
    references = must(varmoe::tools::ReferenceKernels::create(device(), *compiler(), profile.arch),
                      "reference kernels");
    stream = must(varmoe::cuda::Stream::create(device()), "stream");
  }
  static varmoe::EngineOptions options() {
    varmoe::EngineOptions o;
    o.cache_dir = cache_dir();
    o.log = [](varmoe::LogLevel, std::string_view) {};
    return o;
  }
};

/// Eight experts of three widths.
inline varmoe::LayerSpec small_layer(varmoe::Activation activation, varmoe::WeightLayout fc1,
                                     varmoe::WeightLayout fc2, varmoe::GateOrder order, varmoe::DType dtype) {
  varmoe::LayerSpec spec = varmoe::uniform_spec(256, 8, 128, 2, activation, dtype);
  for (std::size_t e = 0; e < spec.expert_widths.size(); ++e)
    spec.expert_widths[e] = 64 + 64 * static_cast<std::int64_t>(e % 3);
  spec.fc1_layout = fc1;
  spec.fc2_layout = fc2;
  spec.gate_order = order;
  return spec;
}

}  // namespace gpu
