#include <doctest/doctest.h>

#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "emit/training.hpp"
#include "kernels/compile_jobs.hpp"
#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/device_profile.hpp"
#include "model/gradient_config.hpp"

using namespace varmoe;
using namespace kernels_test;
using emit::Stage;

namespace {

struct Form {
  const char* name;
  LayerSpec spec;
};

std::vector<Form> forms() {
  const auto layer = [](std::vector<std::int64_t> widths, Activation activation, WeightLayout layout,
                        GateOrder order, DType dtype = DType::bf16) {
    LayerSpec spec;
    spec.hidden_size = 2056;
    spec.expert_widths = std::move(widths);
    spec.top_k = 4;
    spec.activation = activation;
    spec.fc1_layout = spec.fc2_layout = layout;
    spec.gate_order = order;
    spec.dtype = dtype;
    return spec;
  };
  const std::vector<std::int64_t> uniform(32, 768), variable{512, 264, 128, 512, 72, 768, 8, 264};
  std::vector<Form> all{
      {"gated nk, uniform", layer(uniform, Activation::silu_mul, WeightLayout::nk, GateOrder::gate_first)},
      {"gated nk, classes, up first",
       layer(variable, Activation::gelu_tanh_mul, WeightLayout::nk, GateOrder::up_first, DType::fp16)},
      {"gated nk, interleaved",
       layer(variable, Activation::swiglu_oai, WeightLayout::nk, GateOrder::interleaved)},
      {"gated kn", layer(variable, Activation::gelu_erf_mul, WeightLayout::kn, GateOrder::gate_first)},
      {"gated kn, interleaved",
       layer(variable, Activation::silu_mul, WeightLayout::kn, GateOrder::interleaved, DType::fp16)},
      {"plain nk", layer(variable, Activation::relu2, WeightLayout::nk, GateOrder::gate_first)},
      {"plain kn", layer(uniform, Activation::gelu_erf, WeightLayout::kn, GateOrder::gate_first)}};
  for (const Activation a : {Activation::silu, Activation::gelu_tanh, Activation::relu, Activation::identity})
    all.push_back({to_string(a), layer(variable, a, WeightLayout::nk, GateOrder::gate_first)});
  all.push_back({"shared experts with a gate", all.front().spec});
  all.back().spec.shared_widths = {512, 264};
  all.back().spec.shared_gate = true;
  all.push_back({"biases", all[2].spec});
  all.back().spec.bias = true;
  all.push_back({"biases, alternating", all[4].spec});
  all.back().spec.bias = true;
  const auto on_input = [&](const char* name, const Form& like) {
    all.push_back({name, like.spec});
    all.back().spec.weight_on_input = true;
  };
  const std::size_t plain = all.size();
  on_input("weights on the input", all[3]);
  on_input("weights on the input, plain", all[5]);
  on_input("weights on the input, a gate", all[plain - 3]);
  on_input("weights on the input, biases", all[plain - 2]);
  on_input("weights on the input, biases, alternating", all[plain - 1]);
  return all;
}

}  // namespace

TEST_CASE("the kernels of training compile for Hopper and the portable path, without spills and findings") {
  std::vector<model::DeviceProfile> targets;
  for (const auto& device : devices())
    if (device.arch == "sm_90a" || device.arch == "sm_80" || device.arch == "sm_120")
      targets.push_back(device);
  REQUIRE(targets.size() == 3);
  std::vector<Job> jobs;
  for (const model::DeviceProfile& device : targets) {
    std::set<std::string> seen;
    const auto add = [&](Result<emit::EmittedKernel> kernel, const std::string& what) {
      add_job(jobs, seen, device, std::move(kernel), what);
    };
    const std::vector<Form> all = forms();
    for (const Form& form : all) {
      // Every form on Hopper; elsewhere one of each kind, and few on the arch that runs what sm_80 does.
      const bool hopper = device.arch == "sm_90a";
      const bool first = &form == &all[0], alternating = &form == &all[4];
      const bool last = &form == &all.back();
      if (!hopper && !first && !alternating && (device.arch != "sm_80" || (&form != &all[5] && !last)))
        continue;
      const LayerSpec& spec = form.spec;
      const auto gradient = [&](Stage stage, const model::GradientConfig& config, GradientType type) {
        emit::GradientRequest request;
        request.stage = stage;
        request.config = config;
        request.type = type;
        add(emit::emit_gradient(spec, request),
            std::string(form.name) + ", " + to_string(stage) + ", " + to_string(config));
      };
      const auto choice = [&](model::GemmStage stage) {
        return model::predict_gradient_config(spec, stage, device);
      };
      gradient(Stage::topk_weight_gradient, {}, GradientType::layer_dtype);
      gradient(Stage::gradient_schedule, {}, GradientType::layer_dtype);
      for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
        if (type == GradientType::fp32 && !first && !alternating && !spec.bias && !spec.shared_gate) continue;
        gradient(Stage::fc1_gradient, choice(model::GemmStage::fc1), type);
        gradient(Stage::fc2_gradient, choice(model::GemmStage::fc2), type);
        if (spec.bias) gradient(Stage::fc1_bias_gradient, {}, type);
        if (spec.bias) gradient(Stage::fc2_bias_gradient, {}, type);
        if (spec.shared_gate) gradient(Stage::shared_gate_gradient, {}, type);
      }
      const auto product = [&](const LayerSpec& of, Stage stage, const GemmConfig& config, bool saves,
                               emit::DownK k, bool any_width, bool backward = false) {
        emit::KernelRequest request;
        request.stage = stage;
        request.gemm = config;
        if (stage == Stage::fc2) request.gemm.gather = GatherMode::fused;
        request.saves_z = saves;
        request.down_k = k;
        request.runtime_width = any_width;
        if (backward) request.backward = emit::activation_backward(spec);
        add(emit::emit_kernel(of, request),
            std::string(form.name) + ", " + to_string(stage) + " of training, " + to_string(config));
      };
      for (const std::int64_t tokens : {16, 4096}) {
        for (const bool any_width : {false, true}) {
          if (any_width && (tokens == 16 || !first)) continue;
          // Few tokens take the portable tiles everywhere.
          if (tokens == 16 && hopper && !first && !alternating) continue;
          product(spec, Stage::fc1,
                  model::saving_config(model::predict_layer_config(spec, tokens, device).fc1), true,
                  emit::DownK::width, any_width);
          const LayerSpec back = model::backward_layer(spec);
          const LayerConfig config = model::predict_backward_config(spec, tokens, device);
          product(back, Stage::fc1, model::saving_config(config.fc1), false, emit::DownK::width, any_width,
                  true);
          product(back, Stage::fc2, config.fc2, false, emit::backward_down_k(spec), any_width);
        }
      }
    }
    // What follows dout·W2 beside as many accumulators as there may be, of the activations that need most.
    const auto tallest = [&](const LayerSpec& back) {
      std::map<std::array<std::int32_t, 3>, GemmConfig> of_kind;
      for (const GemmConfig& config : model::gemm_candidates(back, model::GemmStage::fc1, device)) {
        const bool wgmma = model::uses_wgmma(config);
        if (wgmma != (device.arch == "sm_90a") || (!wgmma && config.block_m < 64)) continue;
        if (!model::check_dh_config(back, config, device)) continue;
        // Clusters change the loads alone, and the products above have some.
        if (config.cluster > 1) continue;
        GemmConfig& most = of_kind[{static_cast<std::int32_t>(config.schedule), config.block_n,
                                    config.gather == GatherMode::copy}];
        if (model::accumulators_per_thread(config) > model::accumulators_per_thread(most) ||
            model::uses_wgmma(most) != wgmma)
          most = config;
      }
      return of_kind;
    };
    for (const Form& form : all) {
      const bool one = form.spec.activation == Activation::gelu_erf_mul ||
                       form.spec.activation == Activation::swiglu_oai || form.spec.shared_gate ||
                       &form == &all[4];
      if (!one || device.arch == "sm_120") continue;
      const LayerSpec back = model::backward_layer(form.spec);
      for (const auto& [kind, config] : tallest(back)) {
        // The portable path: few, since the sweep by hand has them all.
        if (!model::uses_wgmma(config) && (config.block_n != 128 || &form != &all[4])) continue;
        emit::KernelRequest request;
        request.gemm = model::saving_config(config);
        request.backward = emit::activation_backward(form.spec);
        add(emit::emit_kernel(back, request), std::string(form.name) + ", dh, " + to_string(request.gemm));
      }
    }
    // Every tile of the space, with the deepest ring.
    if (device.arch == "sm_120") continue;
    for (const model::GradientConfig& config : model::gradient_configs(device)) {
      const model::GradientConfig deeper{config.schedule, config.block_m, config.block_n, config.stages + 1,
                                         config.gather};
      if (model::check_gradient_config(deeper, device)) continue;
      for (const Form& form : {all[0], all[3]}) {
        emit::GradientRequest request;
        request.config = config;
        add(emit::emit_gradient(form.spec, request), std::string(form.name) + ", " + to_string(config));
      }
    }
  }
  compile_all(jobs);
}
