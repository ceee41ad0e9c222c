// Compiles every candidate of the config space for one device, in every layout, as a forward's fc1 and fc2
// and as a backward pass's first product, and lists what spills or draws a finding. Minutes of compiling, so
// it is run by hand after a change to a main loop or to the config space:
//
//   varmoe_sweep_configs h200 [least accumulators per thread [dh: only those]]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>

#include "base/thread_pool.hpp"
#include "compile/compiler.hpp"
#include "compile/findings.hpp"
#include "emit/emitter.hpp"
#include "emit/training.hpp"
#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "model/gradient_config.hpp"

using namespace varmoe;

namespace {

/// Layers whose widths make each block_n of the grid worth trying.
std::vector<LayerSpec> specs() {
  std::vector<LayerSpec> result;
  for (const std::int64_t width : {1440, 1408, 1792}) {
    const auto add = [&](Activation activation, WeightLayout layout, GateOrder order) {
      LayerSpec spec = uniform_spec(width, 64, width, 8, activation);
      spec.fc1_layout = spec.fc2_layout = layout;
      spec.gate_order = order;
      result.push_back(spec);
    };
    add(Activation::silu_mul, WeightLayout::nk, GateOrder::gate_first);
    add(Activation::silu_mul, WeightLayout::kn, GateOrder::gate_first);
    add(Activation::swiglu_oai, WeightLayout::kn, GateOrder::interleaved);
    add(Activation::gelu_erf, WeightLayout::nk, GateOrder::gate_first);
    add(Activation::gelu_erf, WeightLayout::kn, GateOrder::gate_first);
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  auto device = model::find_profile(argc > 1 ? argv[1] : "h200");
  if (!device) return std::fprintf(stderr, "%s\n", device.error().message().c_str()), 2;
  const long least = argc > 2 ? std::atol(argv[2]) : 0;
  const bool backward_only = argc > 3 && std::string(argv[3]) == "dh";

  auto compiler = compile::load_nvrtc("");
  if (!compiler) return std::fprintf(stderr, "%s\n", compiler.error().message().c_str()), 3;

  struct Kernel {
    std::string what;
    emit::EmittedKernel emitted;
  };
  std::vector<Kernel> kernels;
  std::set<std::string> seen;
  const auto add = [&](const LayerSpec& spec, emit::KernelRequest request, const std::string& what) {
    if (!seen.insert(what).second) return true;
    auto emitted = emit::emit_kernel(spec, request);
    if (!emitted)
      return std::fprintf(stderr, "%s: %s\n", what.c_str(), emitted.error().message().c_str()), false;
    kernels.push_back({what, *std::move(emitted)});
    return true;
  };
  for (const LayerSpec& spec : specs()) {
    const std::string of = std::string(" ") + to_string(spec.activation) + " " + to_string(spec.fc1_layout) +
                           " " + to_string(spec.gate_order) + " ";
    for (const auto stage : {model::GemmStage::fc1, model::GemmStage::fc2}) {
      for (const GemmConfig& config : model::gemm_candidates(spec, stage, *device)) {
        if (backward_only || model::accumulators_per_thread(config) < least) continue;
        emit::KernelRequest request;
        request.stage = stage == model::GemmStage::fc1 ? emit::Stage::fc1 : emit::Stage::fc2;
        request.gemm = config;
        if (!add(spec, request, emit::to_string(request.stage) + of + to_string(config))) return 1;
      }
    }
    const LayerSpec back = model::backward_layer(spec);
    for (const GemmConfig& config : model::gemm_candidates(back, model::GemmStage::fc1, *device)) {
      if (model::accumulators_per_thread(config) < least || !model::check_dh_config(back, config, *device))
        continue;
      emit::KernelRequest request;
      request.gemm = model::saving_config(config);
      request.backward = emit::activation_backward(spec);
      if (!add(back, request, "dh" + of + to_string(request.gemm))) return 1;
    }
  }
  std::vector<std::string> problems(kernels.size());
  std::vector<double> times(kernels.size());
  parallel_for(kernels.size(), 0, [&](std::size_t i) {
    const emit::EmittedKernel& kernel = kernels[i].emitted;
    compile::CompileRequest request;
    request.text = kernel.text;
    request.headers = kernel.headers;
    request.options = kernel.options;
    request.arch = device->arch;
    request.entry_name = kernel.entry_name;
    auto binary = (*compiler)->compile(request);
    if (!binary) {
      problems[i] = binary.error().message();
      return;
    }
    times[i] = binary->compile_ms;
    for (const std::string& finding : compile::findings(*binary)) problems[i] += finding + "; ";
  });
  std::size_t bad = 0;
  for (std::size_t i = 0; i < kernels.size(); ++i) {
    if (problems[i].empty()) continue;
    ++bad;
    std::printf("%s: %s\n", kernels[i].what.c_str(), problems[i].c_str());
  }
  std::printf("%s: %zu kernels, %zu with findings, slowest compile %.0f ms\n", device->id.c_str(),
              kernels.size(), bad, kernels.empty() ? 0.0 : *std::max_element(times.begin(), times.end()));
  return bad == 0 ? 0 : 1;
}
