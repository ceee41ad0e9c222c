#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "emit/training.hpp"
#include "kernels/families.hpp"
#include "kernels/sass.hpp"
#include "model/backward_layer.hpp"
#include "model/config_space.hpp"
#include "model/cost_model.hpp"
#include "model/gradient_config.hpp"
#include "support/wgmma_configs.hpp"
#include "tools/common/disassemble.hpp"

using namespace varmoe;
using namespace kernels_test;
using emit::Stage;

namespace {

struct Job {
  Kernel kernel;
  bool weights = false;   ///< a weight gradient
  bool gathers = false;   ///< of weight gradients: rows are gathered on the way
  bool backward = false;  ///< dout·W2 and what follows
  std::string problem;
};

LayerSpec layer(WeightLayout layout, GateOrder order) {
  LayerSpec spec;
  spec.hidden_size = 2056;
  spec.expert_widths = {512, 264, 128, 512, 72, 768, 8, 264};
  spec.top_k = 4;
  spec.activation = Activation::silu_mul;
  spec.fc1_layout = spec.fc2_layout = layout;
  spec.gate_order = order;
  return spec;
}

Kernel kernel_of(Result<emit::EmittedKernel> emitted, const std::string& what, bool wgmma,
                 std::int32_t cluster) {
  REQUIRE_MESSAGE(emitted.ok(), what, ": ", (emitted.ok() ? std::string() : emitted.error().message()));
  return {what, *std::move(emitted), wgmma, cluster};
}

}  // namespace

TEST_CASE(
    "training's products use what their main loop is made of, no local memory, and no fence of the GPU's "
    "memory "
    "in Hopper's loops" *
    doctest::skip(tools::find_disassembler().empty())) {
  const model::DeviceProfile* device = nullptr;
  const auto all = devices();
  for (const auto& d : all)
    if (d.arch == "sm_90a") device = &d;
  REQUIRE(device != nullptr);
  const LayerSpec apart = layer(WeightLayout::nk, GateOrder::gate_first),
                  alternating = layer(WeightLayout::kn, GateOrder::interleaved);
  std::vector<Job> jobs;

  // fc1's gradient of nk has H as columns, fc2's as rows.
  const auto gradient = [&](Stage stage, GradientType type, const model::GradientConfig& config) {
    const std::string what = std::string(emit::to_string(stage)) + ", " +
                             (type == GradientType::fp32 ? "fp32, " : "bf16, ") + to_string(config);
    const Status sound = model::check_gradient_config(config, *device);
    REQUIRE_MESSAGE(sound.ok(), what, ": ", (sound.ok() ? std::string() : sound.error().message()));
    const bool wgmma = config.schedule == Schedule::wgmma;
    jobs.push_back({kernel_of(emit::emit_gradient(apart, {stage, config, type}), what, wgmma, 1),
                    true,
                    !wgmma || config.gather == GatherMode::fused,
                    false,
                    {}});
  };
  constexpr auto kWgmma = Schedule::wgmma, kMma = Schedule::mma_sync;
  constexpr auto kFused = GatherMode::fused, kCopy = GatherMode::copy;
  for (const GradientType type : {GradientType::layer_dtype, GradientType::fp32}) {
    gradient(Stage::fc1_gradient, type, {kWgmma, 256, 128, 4, kFused});
    gradient(Stage::fc1_gradient, type, {kWgmma, 128, 256, 4, kCopy});
    gradient(Stage::fc2_gradient, type, {kWgmma, 128, 256, 4, kFused});
    gradient(Stage::fc2_gradient, type, {kWgmma, 256, 128, 4, kCopy});
  }
  gradient(Stage::fc1_gradient, GradientType::fp32, {kMma, 128, 128, 3, kFused});
  gradient(Stage::fc2_gradient, GradientType::layer_dtype, {kMma, 128, 64, 3, kFused});

  const auto product = [&](const LayerSpec& spec, Stage stage, const GemmConfig& config, emit::DownK down_k,
                           const LayerSpec* backward_of = nullptr) {
    emit::KernelRequest request;
    request.stage = stage;
    request.gemm = config;
    request.saves_z = stage == Stage::fc1 && backward_of == nullptr;
    if (backward_of != nullptr) request.backward = emit::activation_backward(*backward_of);
    request.down_k = down_k;
    const std::string what = std::string(emit::to_string(stage)) + " of training, " +
                             to_string(spec.fc1_layout) + ", " + to_string(config);
    const auto gemm = stage == Stage::fc1 ? model::GemmStage::fc1 : model::GemmStage::fc2;
    const Status sound = model::check_gemm_config(spec, gemm, config, *device);
    REQUIRE_MESSAGE(sound.ok(), what, ": ", (sound.ok() ? std::string() : sound.error().message()));
    jobs.push_back({kernel_of(emit::emit_kernel(spec, request), what, true, config.cluster),
                    false,
                    false,
                    backward_of != nullptr,
                    {}});
  };
  GemmConfig pair = test::wgmma(256, 128, 4);
  pair.cluster = 2;
  product(apart, Stage::fc1, test::wgmma(256, 128, 4), emit::DownK::width);
  product(alternating, Stage::fc1, test::pingpong(160, 128, 5), emit::DownK::width);
  product(model::backward_layer(apart), Stage::fc1, test::pingpong(128, 128, 5), emit::DownK::width, &apart);
  product(model::backward_layer(alternating), Stage::fc1, pair, emit::DownK::width, &alternating);
  product(model::backward_layer(apart), Stage::fc2, test::wgmma(256, 128, 4), emit::DownK::gate_and_up);
  product(model::backward_layer(alternating), Stage::fc2, pair, emit::DownK::alternating);

  parallel_for(jobs.size(), 0, [&](std::size_t i) {
    Job& job = jobs[i];
    const auto sass = machine_code(job.kernel, device->arch);
    if (!sass) return void(job.problem = sass.error().message());
    // Stages sums as they are, and asks for z before it needs it.
    if (job.backward)
      return void(job.problem = code_problem(job.kernel, *sass, {"HGMMA", "UTMALDG", "STS", "UBLKPF"}));
    if (!job.weights) return void(job.problem = product_problem(job.kernel, *sass));
    std::vector<std::string> needed{"HMMA", "LDSM"};
    if (job.kernel.wgmma) needed = {"HGMMA", "UTMALDG"};
    if (job.gathers) needed.emplace_back("LDGSTS");
    job.problem = code_problem(job.kernel, *sass, needed);
    if (!job.gathers && opcodes(*sass).count("LDGSTS")) job.problem += " has LDGSTS";
  });
  for (const Job& job : jobs) CHECK_MESSAGE(job.problem.empty(), job.kernel.what, ":", job.problem);
}
