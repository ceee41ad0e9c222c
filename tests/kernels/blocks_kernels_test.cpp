#include <doctest/doctest.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "emit/blocks.hpp"
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

LayerSpec layer_of(std::vector<std::int64_t> widths, WeightLayout layout, bool bias) {
  LayerSpec spec;
  spec.hidden_size = 2056;
  spec.expert_widths = std::move(widths);
  spec.top_k = 4;
  spec.fc1_layout = spec.fc2_layout = layout;
  spec.bias = bias;
  return spec;
}

GemmConfig copied(GemmConfig config) {
  config.gather = GatherMode::copy;
  return config;
}

std::vector<model::DeviceProfile> target_devices() {
  std::vector<model::DeviceProfile> targets;
  for (const auto& device : devices())
    if (device.arch == "sm_90a" || device.arch == "sm_80") targets.push_back(device);
  REQUIRE(targets.size() == 2);
  return targets;
}

}  // namespace

TEST_CASE("the building blocks' kernels compile without spills and findings: rows with gaps, weighted rows") {
  const std::vector<model::DeviceProfile> targets = target_devices();
  std::vector<Job> jobs;
  std::vector<std::int64_t> many;
  for (std::int64_t e = 1; e <= 20; ++e) many.push_back(40 * e);
  for (const model::DeviceProfile& device : targets) {
    std::set<std::string> seen;
    const auto add = [&](Result<emit::EmittedKernel> kernel, const std::string& what) {
      add_job(jobs, seen, device, std::move(kernel), what);
    };
    for (const std::int64_t experts : {1, 60, 1024})
      add(emit::emit_block(uniform_spec(64, experts, 64, 1), Stage::block_schedule, 0),
          "schedule of " + std::to_string(experts));
    for (const std::int64_t hidden : {64, 2056, 7168})
      add(emit::emit_block(uniform_spec(hidden, 8, 64, 3), Stage::block_gather, 256),
          "gather of " + std::to_string(hidden));
    add(emit::emit_block(uniform_spec(64, 8, 64, 3), Stage::block_slot_rows, 0), "slot_rows");
    for (const std::int64_t hidden : {64, 2056}) {
      LayerSpec spec = uniform_spec(hidden, 8, 64, 3);
      if (hidden == 64) spec.shared_widths = {64, 72};
      add(emit::emit_block(spec, Stage::combine_gradient, 0), "combine_gradient");
    }
    for (const bool bias : {false, true}) {
      for (const WeightLayout layout : {WeightLayout::nk, WeightLayout::kn}) {
        if (layout == WeightLayout::kn && bias && device.arch == "sm_80") continue;
        const LayerSpec spec = layer_of({512, 264, 128, 512, 72, 768, 8, 264}, layout, bias);
        for (const std::int64_t tokens : {16, 4096}) {
          LayerConfig config = model::predict_layer_config(spec, tokens, device);
          emit::KernelRequest down;
          down.stage = Stage::fc2;
          down.gemm = config.fc2;
          down.gemm.gather = GatherMode::fused;
          down.row_weights = true;
          add(emit::emit_kernel(spec, down), "weighted down, " + to_string(config.fc2));
          // `up` is fc1 of a layer that reads copies: other tests compile it.
          GemmConfig up = config.fc1;
          up.gather = GatherMode::copy;
          CHECK(model::check_gemm_config(spec, model::GemmStage::fc1, up, device).ok());
        }
      }
    }
    const LayerSpec runtime = layer_of(many, WeightLayout::nk, false);
    for (const std::int64_t tokens : {16, 4096}) {
      const LayerConfig config = model::predict_layer_config(runtime, tokens, device);
      emit::KernelRequest up;
      up.stage = Stage::fc1;
      up.gemm = config.fc1;
      up.gemm.gather = GatherMode::copy;
      up.runtime_width = up.row_gaps = true;
      add(emit::emit_kernel(runtime, up), "up with gaps, " + to_string(up.gemm));
      emit::KernelRequest down;
      down.stage = Stage::fc2;
      down.gemm = config.fc2;
      down.gemm.gather = GatherMode::fused;
      down.runtime_width = down.row_weights = true;
      add(emit::emit_kernel(runtime, down), "weighted down of runtime widths, " + to_string(down.gemm));
    }
    if (device.arch != "sm_90a") continue;
    // The tallest tiles of Hopper's, weighted: epilogues that a predicted config may not have.
    const LayerSpec plain = layer_of({512, 256}, WeightLayout::nk, true);
    std::map<std::pair<Schedule, std::int32_t>, GemmConfig> tallest;
    for (const GemmConfig& config : model::gemm_candidates(plain, model::GemmStage::fc2, device)) {
      if (!model::uses_wgmma(config)) continue;
      GemmConfig& most = tallest.try_emplace({config.schedule, config.block_n}, config).first->second;
      if (config.block_m > most.block_m) most = config;
    }
    for (const auto& [kind, config] : tallest) {
      emit::KernelRequest down;
      down.stage = Stage::fc2;
      down.gemm = config;
      down.gemm.gather = GatherMode::fused;
      down.row_weights = true;
      add(emit::emit_kernel(plain, down), "weighted down, " + to_string(config));
    }
  }
  compile_all(jobs);
}

TEST_CASE("the kernels of the building blocks' backward compile without spills and findings") {
  const std::vector<model::DeviceProfile> targets = target_devices();
  std::vector<Job> jobs;
  std::vector<std::int64_t> many;
  for (std::int64_t e = 1; e <= 20; ++e) many.push_back(40 * e);
  for (const model::DeviceProfile& device : targets) {
    std::set<std::string> seen;
    const auto add = [&](Result<emit::EmittedKernel> kernel, const std::string& what) {
      add_job(jobs, seen, device, std::move(kernel), what);
    };
    for (int kind = 0; kind < 4; ++kind) {
      LayerSpec spec =
          layer_of({512, 264, 128, 72}, kind == 1 ? WeightLayout::kn : WeightLayout::nk, kind == 1);
      if (kind == 1) spec.gate_order = GateOrder::interleaved;
      if (kind == 2) spec.activation = Activation::gelu_erf;
      if (kind == 3) spec = layer_of(many, WeightLayout::nk, false);
      const bool runtime = kind == 3;
      const LayerSpec back = model::backward_layer(spec);
      LayerSpec plain = back;
      plain.weight_on_input = false;
      const BackwardConfig products = model::predict_products(spec, 4096, device);
      emit::KernelRequest dh;
      dh.stage = Stage::fc1;
      dh.gemm = model::saving_config(copied(products.dh));
      dh.runtime_width = dh.row_gaps = runtime;
      add(emit::emit_kernel(plain, dh), "dh, " + to_string(dh.gemm));
      dh.backward = emit::block_row_weights();
      add(emit::emit_kernel(back, dh), "weighted dh, " + to_string(dh.gemm));
      for (const bool weighs : {false, true}) {
        dh.backward = emit::block_activation_backward(spec, weighs);
        add(emit::emit_kernel(back, dh), "dz, " + to_string(dh.gemm));
      }
      add(emit::emit_block(spec, Stage::activation_gradient, 0), "activation_gradient");
      add(emit::emit_block(spec, Stage::row_weight_gradient, 0), "row_weight_gradient");
      add(emit::emit_block(spec, Stage::weigh_rows, 0), "weigh_rows");
      for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
        for (const Stage stage : {Stage::gradient_schedule, Stage::fc1_gradient, Stage::fc2_gradient,
                                  Stage::fc1_bias_gradient, Stage::fc2_bias_gradient}) {
          emit::GradientRequest request;
          request.stage = stage;
          request.config = stage == Stage::fc1_gradient ? products.fc1_gradient : products.fc2_gradient;
          if (request.config.schedule == Schedule::wgmma) request.config.gather = GatherMode::copy;
          request.type = type;
          request.segments = true;
          add(emit::emit_gradient(spec, request), emit::to_string(stage));
        }
      }
    }
  }
  compile_all(jobs);
}
