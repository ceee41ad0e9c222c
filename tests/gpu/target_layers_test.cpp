#include <doctest/doctest.h>

#include <string>

#include "gpu/device_layer.hpp"

// The layers that performance is promised for, at full size, bf16, uniform widths.

namespace {

struct Target {
  const char* name;
  std::int64_t experts, top_k, hidden, width;
};
constexpr Target kTargets[] = {
    {"mixtral-8x7b", 8, 2, 4096, 14336},     {"qwen3-30b-a3b", 128, 8, 2048, 768},
    {"qwen3-235b-a22b", 128, 8, 4096, 1536}, {"deepseek-v3", 256, 8, 7168, 2048},
    {"llama4-scout", 16, 1, 5120, 8192},     {"gpt-oss-120b", 128, 4, 2880, 2880},
    {"deepseek-v2-lite", 64, 6, 2048, 1408},
};

}  // namespace

TEST_CASE("target layers match the oracle at 1, 3, 64, 1000 and 4096 tokens") {
  for (const Target& t : kTargets) {
    CAPTURE(t.name);
    auto spec = varmoe::uniform_spec(t.hidden, t.experts, t.width, t.top_k);
    if (std::string(t.name) == "llama4-scout") spec.fc1_layout = spec.fc2_layout = varmoe::WeightLayout::kn;
    if (std::string(t.name) == "gpt-oss-120b") {
      spec.fc1_layout = spec.fc2_layout = varmoe::WeightLayout::kn;
      spec.activation = varmoe::Activation::swiglu_oai;
      spec.gate_order = varmoe::GateOrder::interleaved;
    }
    oracle::CaseOptions options;
    options.tokens = 4096;
    options.seed = 7;
    const auto c = oracle::make_case(spec, options);
    gpu::DeviceLayer layer(c);
    for (const std::int64_t tokens : {1, 3, 64, 1000, 4096}) {
      CAPTURE(tokens);
      gpu::RunOptions run;
      run.tokens = tokens;
      gpu::check_case("target layers, bf16", layer, run);
    }
  }
}

TEST_CASE("target layers match the oracle in fp16") {
  for (const Target& t : {kTargets[1], kTargets[6]}) {
    CAPTURE(t.name);
    auto spec = varmoe::uniform_spec(t.hidden, t.experts, t.width, t.top_k);
    spec.dtype = varmoe::DType::fp16;
    oracle::CaseOptions options;
    options.tokens = 1000;
    const auto c = oracle::make_case(spec, options);
    gpu::DeviceLayer layer(c);
    for (const std::int64_t tokens : {1, 64, 1000}) {
      gpu::RunOptions run;
      run.tokens = tokens;
      gpu::check_case("target layers, fp16", layer, run);
    }
  }
}
