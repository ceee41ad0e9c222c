#include "kernels/families.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "compile/compiler.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/one_launch.hpp"

namespace kernels_test {

using namespace varmoe;

std::vector<Family> families() {
  std::vector<Family> all;
  const auto add = [&](std::string name, LayerSpec spec, std::vector<std::int64_t> buckets) -> Family& {
    all.push_back({std::move(name), std::move(spec), std::move(buckets), false, false});
    return all.back();
  };
  const auto layer = [](std::vector<std::int64_t> widths, Activation activation, DType dtype = DType::bf16) {
    LayerSpec spec;
    spec.hidden_size = 2056;  // a K tail in fc1, an N tail in fc2
    spec.expert_widths = std::move(widths);
    spec.top_k = 4;
    spec.activation = activation;
    spec.dtype = dtype;
    return spec;
  };
  const auto kn = [](LayerSpec spec) {
    spec.fc1_layout = spec.fc2_layout = WeightLayout::kn;
    return spec;
  };
  const std::vector<std::int64_t> uniform(32, 768), variable{512, 264, 128, 512, 72, 768, 8, 264};

  // What most models have, at the sizes of decoding, small batches and prefill.
  add("gated nk, uniform", layer(uniform, Activation::silu_mul), {1, 64, 4096});
  add("gated nk, classes", layer(variable, Activation::silu_mul), {1, 64, 4096});
  add("gated nk, fp16", layer(variable, Activation::gelu_tanh_mul, DType::fp16), {256});
  add("gated nk, up first, erf", layer(variable, Activation::gelu_erf_mul), {256});
  all.back().spec.gate_order = GateOrder::up_first;
  add("gated nk, interleaved, swiglu_oai", layer(variable, Activation::swiglu_oai), {256});
  all.back().spec.gate_order = GateOrder::interleaved;
  add("gated kn", kn(layer(variable, Activation::silu_mul)), {16, 2048});
  add("gated kn, interleaved", kn(layer(variable, Activation::swiglu_oai, DType::fp16)), {256});
  all.back().spec.gate_order = GateOrder::interleaved;
  add("plain nk, relu2", layer(variable, Activation::relu2), {16, 4096});
  add("plain kn, silu", kn(layer(variable, Activation::silu)), {256});
  for (const Activation a :
       {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::identity}) {
    add(std::string("plain nk, ") + to_string(a), layer(variable, a), {64});
  }
  add("gated nk, batch invariant", layer(variable, Activation::silu_mul), {256});
  all.back().spec.batch_invariant = true;
  const auto biased = [](LayerSpec spec, bool weight_on_input) {
    spec.bias = true;
    spec.weight_on_input = weight_on_input;
    return spec;
  };
  add("gated kn, interleaved, biases", biased(kn(layer(variable, Activation::swiglu_oai)), false),
      {16, 2048});
  all.back().spec.gate_order = GateOrder::interleaved;
  add("gated nk, biases, weight on input", biased(layer(variable, Activation::silu_mul), true), {16, 4096});
  add("gated kn, weight on input", kn(layer(uniform, Activation::silu_mul, DType::fp16)), {256});
  all.back().spec.weight_on_input = true;
  add("plain nk, biases, runtime width", biased(layer(variable, Activation::relu2, DType::fp16), true), {256})
      .runtime_width = true;
  add("gated nk, runtime width", layer(variable, Activation::silu_mul), {16, 2048}).runtime_width = true;
  add("plain kn, runtime width", kn(layer(variable, Activation::relu2)), {256}).runtime_width = true;
  add("gated nk, shared expert", layer(variable, Activation::silu_mul), {1, 4096});
  all.back().spec.shared_widths = {1032};
  add("gated kn, shared experts with a gate, fp16", kn(layer(variable, Activation::silu_mul, DType::fp16)),
      {16, 2048});
  all.back().spec.shared_widths = {512, 136, 136};
  all.back().spec.shared_gate = true;
  all.back().spec.top_k = 9;
  add("gated nk, gather by copy", layer(variable, Activation::silu_mul), {2048}).copies_rows = true;
  return all;
}

std::vector<model::DeviceProfile> devices() {
  std::vector<model::DeviceProfile> chosen;
  for (const char* arch : {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}) {
    const model::DeviceProfile* least = nullptr;
    for (const auto& profile : model::shipped_profiles()) {
      if (profile.arch == arch && (least == nullptr || profile.smem_per_block < least->smem_per_block))
        least = &profile;
    }
    REQUIRE_MESSAGE(least != nullptr, "no shipped profile of ", arch);
    chosen.push_back(*least);
  }
  return chosen;
}

std::vector<Kernel> kernels_of(const Family& family, const model::DeviceProfile& device) {
  std::vector<Kernel> kernels;
  std::set<std::string> seen;
  for (const std::int64_t bucket : family.buckets) {
    LayerConfig config = model::predict_layer_config(family.spec, bucket, device);
    if (family.copies_rows) config.fc1.gather = GatherMode::copy;
    REQUIRE(model::check_layer_config(family.spec, config, device).ok());
    for (const auto& request : emit::required_kernels(family.spec, config, bucket, family.runtime_width)) {
      auto emitted = emit::emit_kernel(family.spec, request);
      const std::string what = family.name + ", " + emit::to_string(request.stage) + ", " +
                               std::to_string(bucket) + " tokens on " + device.id + " " + device.arch;
      REQUIRE_MESSAGE(emitted.ok(), what, ": ", (emitted.ok() ? std::string() : emitted.error().message()));
      const bool gemm = request.stage == emit::Stage::fc1 || request.stage == emit::Stage::fc2;
      const bool wgmma = gemm && model::uses_wgmma(request.gemm);
      if (!seen.insert(emitted->entry_name).second) continue;
      kernels.push_back({what, *std::move(emitted), wgmma, gemm ? request.gemm.cluster : 1});
    }
  }
  return kernels;
}

std::vector<Kernel> whole_layer_kernels(const model::DeviceProfile& device) {
  std::vector<Kernel> kernels;
  const auto add = [&](const char* what, const LayerSpec& spec, std::int32_t tokens) {
    emit::KernelRequest request;
    request.stage = emit::Stage::whole_layer;
    request.one_launch = {tokens, model::kMostOneLaunchTeams};
    while (!model::check_one_launch(spec, request.one_launch, device)) {
      REQUIRE(request.one_launch.teams > model::kFewestOneLaunchTeams);
      --request.one_launch.teams;
    }
    auto emitted = emit::emit_kernel(spec, request);
    REQUIRE_MESSAGE(emitted.ok(), (emitted.ok() ? std::string() : emitted.error().message()));
    kernels.push_back({what + (", whole layer of " + std::to_string(tokens)), *std::move(emitted)});
  };
  LayerSpec spec = uniform_spec(2056, 128, 768, 8);
  spec.expert_widths[5] = 1032;
  for (const std::int32_t tokens : {8, 16}) add("gated, bf16", spec, tokens);
  add("gated, 1024 experts", uniform_spec(2048, 1024, 256, 8), 8);
  spec.dtype = DType::fp16;
  spec.activation = Activation::swiglu_oai;
  add("swiglu_oai, fp16", spec, 8);
  spec.activation = Activation::gelu_erf_mul;
  add("gelu_erf_mul, fp16", spec, 16);
  spec.activation = Activation::relu2;
  add("plain, fp16", spec, 8);
  add("plain, fp16", spec, 16);
  return kernels;
}

std::shared_ptr<const Result<KernelBinary>> compile_one(const Kernel& kernel, const std::string& arch) {
  static const auto compiler = compile::load_nvrtc("");
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Result<KernelBinary>>> made;
  const std::string name = kernel.emitted.entry_name + " " + arch;
  {
    std::lock_guard lock(mutex);
    if (const auto found = made.find(name); found != made.end()) return found->second;
  }
  std::shared_ptr<const Result<KernelBinary>> result;
  if (compiler) {
    compile::CompileRequest request;
    request.text = kernel.emitted.text;
    request.headers = kernel.emitted.headers;
    request.options = kernel.emitted.options;
    request.arch = arch;
    request.entry_name = kernel.emitted.entry_name;
    result = std::make_shared<const Result<KernelBinary>>((*compiler)->compile(request));
  } else {
    result = std::make_shared<const Result<KernelBinary>>(compiler.error());
  }
  std::lock_guard lock(mutex);
  return made.try_emplace(name, std::move(result)).first->second;
}

}  // namespace kernels_test
