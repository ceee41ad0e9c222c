// Kernels of Hopper's main loop: the tile shapes that matter, each in some of the layouts, both dtypes,
// gathered and copied rows.

#include <doctest/doctest.h>

#include <utility>

#include "kernels/families.hpp"
#include "model/config_space.hpp"
#include "support/wgmma_configs.hpp"

namespace kernels_test {

using namespace varmoe;
using emit::Stage;
using test::pingpong;
using test::wgmma;

namespace {

GemmConfig copied(GemmConfig config) {
  config.gather = GatherMode::copy;
  return config;
}
GemmConfig stepped(GemmConfig config, std::int32_t row_step) {
  config.row_step = row_step;
  return config;
}

GemmConfig clustered(GemmConfig config) {
  config.cluster = 2;
  return config;
}

constexpr DType kBf16 = DType::bf16, kFp16 = DType::fp16;

LayerSpec nk(Activation activation, DType dtype) {
  LayerSpec spec;
  spec.hidden_size = 2056;  // a K tail in fc1, an N tail in fc2
  spec.expert_widths = {512, 264, 128, 512, 72, 768, 8, 264};
  spec.top_k = 4;
  spec.activation = activation;
  spec.dtype = dtype;
  return spec;
}
LayerSpec kn(Activation activation, DType dtype, GateOrder order = GateOrder::gate_first) {
  LayerSpec spec = nk(activation, dtype);
  spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
  spec.gate_order = order;
  return spec;
}
/// K in whole stages, one width.
LayerSpec even(LayerSpec spec) {
  spec.hidden_size = 2048;
  spec.expert_widths.assign(32, 768);
  return spec;
}

}  // namespace

std::vector<Kernel> hopper_kernels(const model::DeviceProfile& device) {
  const GemmConfig tall = wgmma(256, 128, 4), wide = wgmma(192, 256, 3), each = pingpong(160, 128, 5);
  std::vector<Kernel> kernels;
  const auto add = [&](Stage stage, const LayerSpec& spec, const GemmConfig& config,
                       bool runtime_width = false) {
    emit::KernelRequest request;
    request.stage = stage;
    request.gemm = config;
    request.runtime_width = runtime_width;
    const std::string what = std::string(emit::to_string(stage)) + ", " + to_string(spec.activation) + ", " +
                             to_string(spec.dtype) + ", " + to_string(spec.fc1_layout) + ", " +
                             to_string(spec.gate_order) + ", " + to_string(config) +
                             (runtime_width ? ", runtime width" : "");
    const auto sound = model::check_gemm_config(
        spec, stage == Stage::fc1 ? model::GemmStage::fc1 : model::GemmStage::fc2, config, device);
    REQUIRE_MESSAGE(sound.ok(), what, ": ", (sound.ok() ? std::string() : sound.error().message()));
    auto emitted = emit::emit_kernel(spec, request);
    REQUIRE_MESSAGE(emitted.ok(), what, ": ", (emitted.ok() ? std::string() : emitted.error().message()));
    kernels.push_back({what, *std::move(emitted), true, config.cluster});
  };
  const auto fc1 = [&](auto&&... arguments) { add(Stage::fc1, arguments...); };
  const auto fc2 = [&](auto&&... arguments) { add(Stage::fc2, arguments...); };
  const LayerSpec gated = nk(Activation::silu_mul, kBf16), apart = kn(Activation::silu_mul, kBf16);

  fc1(gated, tall);
  fc1(even(gated), copied(tall));
  fc1(kn(Activation::swiglu_oai, kFp16, GateOrder::interleaved), tall);
  fc1(nk(Activation::relu2, kFp16), tall);
  fc1(kn(Activation::gelu_erf, kBf16), copied(tall));
  fc1(gated, tall, true);
  fc2(gated, tall);
  fc2(even(kn(Activation::silu_mul, kFp16)), tall);
  fc2(apart, tall, true);

  fc1(even(nk(Activation::silu_mul, kFp16)), wide);
  fc1(nk(Activation::gelu_tanh_mul, kBf16), copied(wide));
  fc1(apart, wgmma(160, 256, 4));

  fc1(gated, each);
  fc1(kn(Activation::gelu_erf_mul, kFp16), copied(pingpong(144, 128, 5)));
  fc1(kn(Activation::silu_mul, kBf16, GateOrder::interleaved), each);
  fc1(kn(Activation::relu2, kBf16), each);
  fc1(apart, each, true);
  fc2(nk(Activation::silu_mul, kFp16), pingpong(160, 128, 4));
  fc2(even(apart), pingpong(160, 128, 4));
  fc2(gated, pingpong(160, 128, 4), true);

  fc1(even(gated), wgmma(16, 128, 8));
  fc1(kn(Activation::swiglu_oai, kBf16, GateOrder::interleaved), wgmma(16, 256, 5));
  fc2(gated, wgmma(16, 128, 8));
  fc1(kn(Activation::silu_mul, kFp16, GateOrder::interleaved), wgmma(64, 128, 6));
  fc1(apart, wgmma(64, 256, 4));
  fc2(kn(Activation::silu_mul, kFp16), wgmma(64, 128, 6));
  fc1(gated, stepped(wgmma(64, 256, 4), 8));
  fc2(gated, stepped(pingpong(96, 128, 4), 32));

  // Clusters: every shape that weights come in, by boxes that both blocks bring or one alone.
  fc1(gated, clustered(tall));
  fc1(even(nk(Activation::relu2, kFp16)), clustered(copied(wgmma(64, 128, 6))));
  fc1(kn(Activation::relu2, kBf16), clustered(copied(tall)));
  fc1(kn(Activation::silu_mul, kFp16, GateOrder::interleaved), clustered(each));
  fc1(apart, clustered(wgmma(160, 256, 4)));
  fc1(apart, clustered(each), true);
  fc1(gated, clustered(wgmma(64, 128, 7)));
  fc2(gated, clustered(tall));
  fc2(even(apart), clustered(pingpong(160, 128, 4)));
  fc2(apart, clustered(tall), true);

  // Biases and weights on sums: the tiles that leave fewest registers, each layout.
  const auto biased = [](LayerSpec spec, bool bias, bool weight_on_input) {
    spec.bias = bias;
    spec.weight_on_input = weight_on_input;
    return spec;
  };
  const LayerSpec oai = kn(Activation::swiglu_oai, kBf16, GateOrder::interleaved);
  fc1(biased(gated, true, true), wgmma(160, 256, 4));
  for (const GemmConfig& config : {tall, each, clustered(tall), clustered(each)}) {
    fc1(biased(gated, true, true), config);
    fc1(biased(oai, true, false), config);
    fc2(biased(gated, true, false), config);
  }
  fc1(biased(apart, true, true), wgmma(160, 256, 4));
  fc1(biased(apart, true, true), clustered(each), true);
  fc1(biased(apart, false, true), clustered(wgmma(160, 256, 4)));
  fc1(biased(oai, true, true), copied(each));
  fc1(biased(nk(Activation::relu2, kFp16), true, true), tall);
  fc1(biased(kn(Activation::relu2, kBf16), true, true), each);
  fc1(biased(gated, true, true), wgmma(16, 128, 8));
  fc1(biased(even(gated), false, true), stepped(pingpong(96, 128, 4), 32));
  fc2(biased(apart, true, false), tall, true);
  fc2(biased(nk(Activation::silu_mul, kFp16), true, false), pingpong(160, 128, 4));
  return kernels;
}

}  // namespace kernels_test
