#include "emit/emit_case.hpp"
#include "emit/sort_shape.hpp"
#include "emit/training.hpp"
#include "model/backward_layer.hpp"
#include "model/config_space.hpp"

using namespace varmoe;
using namespace varmoe::test;

namespace {

Error refusal(const LayerSpec& spec, const KernelRequest& request) {
  auto kernel = emit::emit_kernel(spec, request);
  REQUIRE_FALSE(kernel.ok());
  return kernel.error();
}

std::vector<Stage> stages(const std::vector<KernelRequest>& requests) {
  std::vector<Stage> all;
  for (const KernelRequest& request : requests) all.push_back(request.stage);
  return all;
}

LayerSpec spec_of_classes(int classes) {
  LayerSpec spec = uniform_spec(256, 1, 8, 1);
  spec.expert_widths.clear();
  for (int c = 1; c <= classes; ++c) spec.expert_widths.push_back(8 * c);
  return spec;
}

}  // namespace

TEST_CASE("a bucket of few routed rows needs the single-block sort alone, a larger one the pair as well") {
  const LayerSpec spec = pruned_spec();  // top_k 2
  LayerConfig config;
  config.sort.single_block_rows = 3072;
  const std::vector<Stage> small = {Stage::sort_single, Stage::fc1, Stage::fc2, Stage::combine};
  const std::vector<Stage> large = {Stage::sort_single, Stage::sort_count, Stage::sort_scatter,
                                    Stage::fc1,         Stage::fc2,        Stage::combine};
  CHECK(stages(emit::required_kernels(spec, config, 1, false)) == small);
  CHECK(stages(emit::required_kernels(spec, config, 1536, false)) == small);
  CHECK(stages(emit::required_kernels(spec, config, 1537, false)) == large);
  config.sort.single_block_rows = 0;
  CHECK(stages(emit::required_kernels(spec, config, 1, false)) == large);
}

TEST_CASE("the gather kernel is needed where fc1 copies; what fc2 says of the gather is ignored") {
  const LayerSpec spec = pruned_spec();
  LayerConfig config;
  config.fc1.gather = GatherMode::copy;
  config.gather.block_threads = 128;
  config.combine.block_threads = 64;
  const auto requests = emit::required_kernels(spec, config, 1, false);
  CHECK(stages(requests) ==
        std::vector<Stage>{Stage::sort_single, Stage::gather, Stage::fc1, Stage::fc2, Stage::combine});
  CHECK(requests[1].block_threads == 128);
  CHECK(requests[2].gemm == config.fc1);
  CHECK(requests[4].block_threads == 64);

  LayerConfig fc2_copies;
  fc2_copies.fc2.gather = GatherMode::copy;
  CHECK(emit::required_kernels(spec, fc2_copies, 1, false) ==
        emit::required_kernels(spec, LayerConfig(), 1, false));
}

TEST_CASE(
    "required_kernels asks for runtime widths in the GEMMs alone, and all that it asks for is emitted") {
  const LayerSpec spec = spec_of_classes(17);
  LayerConfig config;
  config.fc1.gather = GatherMode::copy;
  for (const KernelRequest& request : emit::required_kernels(spec, config, 65536, true)) {
    CHECK(request.runtime_width == is_gemm(request.stage));
    const EmittedKernel kernel = must_emit(spec, request);
    CHECK(kernel.block_threads % 32 == 0);
    CHECK(kernel.block_threads >= 32);
    CHECK(kernel.block_threads <= 1024);
  }
}

TEST_CASE("sort kernels of up to 1024 experts fit the shared memory that every supported GPU gives a block") {
  for (std::int64_t experts = 1; experts <= kMaxExperts; ++experts) {
    for (std::int32_t wanted = 32; wanted <= 1024; wanted += 32) {
      const std::int32_t threads = emit::sort_block_threads(experts, wanted);
      const bool sound = threads >= 32 && threads <= wanted && threads % 32 == 0 &&
                         emit::sort_smem_bytes(experts, threads) <= 99 * 1024;
      if (!sound) FAIL_CHECK("experts=" << experts << " wanted=" << wanted << " threads=" << threads);
      // As many as were wanted whenever they fit.
      if (emit::sort_smem_bytes(experts, wanted) <= 99 * 1024 && threads != wanted)
        FAIL_CHECK("experts=" << experts << " wanted=" << wanted << " threads=" << threads);
    }
  }
  // Sort::Shared: warps × experts counts, the totals, three words of the layer's table, four prefix sums of
  // experts + 1.
  CHECK(emit::sort_smem_bytes(1024, 512) == (16 * 1024 + 4 * 1024 + 4 * 1025) * 4);
  CHECK(emit::sort_block_threads(1024, 1024) == 512);
  CHECK(emit::sort_block_threads(128, 1024) == 1024);
  const LayerSpec most = uniform_spec(64, kMaxExperts, 8, 1);
  const auto requests = emit::required_kernels(most, LayerConfig(), 65536, false);
  for (const KernelRequest& request : requests) {
    if (is_gemm(request.stage) || request.stage == Stage::combine) continue;
    CHECK(request.block_threads == 512);
    CHECK(must_emit(most, request).dynamic_smem_bytes == emit::sort_smem_bytes(kMaxExperts, 512));
  }
}

TEST_CASE("what a kernel is launched with follows from its request") {
  KernelRequest request = request_of(Stage::fc1);
  request.gemm.block_m = 64;
  request.gemm.block_n = 256;
  request.gemm.block_k = 32;
  request.gemm.stages = 4;
  request.gemm.warps_n = 4;
  request.gemm.ctas_per_sm = 2;
  const std::int32_t ring = 4 * (64 + 256) * 32 * 2;
  const EmittedKernel fused = must_emit(pruned_spec(), request);
  CHECK(fused.block_threads == 256);
  CHECK(fused.ctas_per_sm == 2);
  CHECK(fused.dynamic_smem_bytes == ring + 64 * 4);  // the rows' tokens lie behind the ring
  CHECK(contains(fused.text, "__launch_bounds__(256, 2) "));
  request.gemm.gather = GatherMode::copy;
  CHECK(must_emit(pruned_spec(), request).dynamic_smem_bytes == ring);
  request.stage = Stage::fc2;
  request.gemm.gather = GatherMode::fused;
  CHECK(must_emit(pruned_spec(), request).dynamic_smem_bytes == ring);
  // What the config space reserves beside the ring covers what the emitter takes.
  CHECK(fused.dynamic_smem_bytes <=
        model::gemm_smem_bytes(request.gemm) + model::gemm_extra_smem_bytes(request.gemm));

  for (const Stage stage : {Stage::gather, Stage::combine}) {
    const EmittedKernel kernel = must_emit(pruned_spec(), stage);
    CHECK(kernel.dynamic_smem_bytes == 0);
    CHECK(kernel.block_threads == 256);
    CHECK(kernel.ctas_per_sm == 1);
  }
}

TEST_CASE("sixteen distinct widths are compiled in, seventeen need the runtime-width kernels") {
  for (const Stage stage : {Stage::fc1, Stage::fc2}) {
    CHECK(contains(must_emit(spec_of_classes(16), stage).text, "kClasses = 16;"));
    const Error error = refusal(spec_of_classes(17), request_of(stage));
    CHECK(error.code() == ErrorCode::unsupported);
    CHECK(contains(error.message(), "17 distinct widths"));
    CHECK(contains(error.message(), "up to 16"));
    CHECK(contains(error.message(), "runtime-width"));
    KernelRequest request = request_of(stage);
    request.runtime_width = true;
    CHECK(contains(must_emit(spec_of_classes(17), request).text, "kClasses = 0;"));
  }
  // The other stages have no widths.
  for (const Stage stage : kStages) {
    if (!is_gemm(stage)) must_emit(spec_of_classes(17), stage);
  }
}

TEST_CASE("a config outside the space is refused with the field's name") {
  struct Bad {
    const char* field;
    std::int32_t GemmConfig::*member;
    std::vector<std::int32_t> values;
  };
  const std::vector<Bad> all = {
      {"block_m", &GemmConfig::block_m, {0, -16, 8, 48, 44, 512, INT32_MAX, INT32_MIN}},
      {"block_n", &GemmConfig::block_n, {0, -32, 16, 40, 272, INT32_MAX}},
      {"block_k", &GemmConfig::block_k, {0, 16, 48, 256}},
      {"stages", &GemmConfig::stages, {0, 1, 9, -3}},
      {"warps_m", &GemmConfig::warps_m, {0, 3, 8, -1}},
      {"warps_n", &GemmConfig::warps_n, {0, 3, 16, -1}},
      {"ctas_per_sm", &GemmConfig::ctas_per_sm, {0, 9, -1}},
      {"raster", &GemmConfig::raster, {0, 65, -8}},
      {"row_step", &GemmConfig::row_step, {0, 4, 12, 64, -8}},
  };
  for (const Stage stage : {Stage::fc1, Stage::fc2}) {
    for (const Bad& bad : all) {
      for (const std::int32_t value : bad.values) {
        KernelRequest request = request_of(stage);
        request.gemm.*bad.member = value;
        const Error error = refusal(pruned_spec(), request);
        CAPTURE(error.message());
        CHECK(error.code() == ErrorCode::invalid_config);
        CHECK(contains(error.message(), bad.field));
        CHECK(contains(error.message(), std::to_string(value)));
      }
    }
  }
}

TEST_CASE("fields that do not go together are refused with their names") {
  const auto message = [](const LayerSpec& spec, Stage stage, const GemmConfig& gemm) {
    KernelRequest request = request_of(stage);
    request.gemm = gemm;
    const Error error = refusal(spec, request);
    CHECK(error.code() == ErrorCode::invalid_config);
    return error.message();
  };
  GemmConfig one_warp;
  one_warp.warps_m = one_warp.warps_n = 1;
  CHECK(contains(message(pruned_spec(), Stage::fc1, one_warp), "warps_m=1,warps_n=1"));
  GemmConfig low;
  low.block_m = 32;
  low.warps_m = 4;
  CHECK(contains(message(pruned_spec(), Stage::fc2, low), "block_m is 32; with warps_m=4"));
  GemmConfig heavy;
  heavy.block_m = heavy.block_n = 256;
  CHECK(contains(message(pruned_spec(), Stage::fc2, heavy), "accumulators"));
  // A gated kn fc1 reads half of block_n at a time.
  LayerSpec kn = pruned_spec();
  kn.fc1_layout = kn.fc2_layout = WeightLayout::kn;
  GemmConfig narrow;
  narrow.block_n = 96;
  CHECK(contains(message(kn, Stage::fc1, narrow), "block_n is 96"));
  KernelRequest request = request_of(Stage::fc2);
  request.gemm = narrow;
  must_emit(kn, request);
}

TEST_CASE("block_threads outside 32 to 1024 or between warps is refused with stage, field and value") {
  for (const Stage stage : kStages) {
    if (is_gemm(stage)) continue;
    for (const std::int32_t threads : {0, -32, 16, 48, 1056, INT32_MAX, INT32_MIN}) {
      KernelRequest request = request_of(stage);
      request.block_threads = threads;
      const Error error = refusal(pruned_spec(), request);
      CHECK(error.code() == ErrorCode::invalid_config);
      CHECK(contains(error.message(),
                     std::string(emit::to_string(stage)) + ": block_threads=" + std::to_string(threads)));
    }
  }
}

TEST_CASE("a spec that is not valid is refused as such, whatever the stage") {
  LayerSpec spec = pruned_spec();
  spec.hidden_size = 65;
  for (const Stage stage : kStages) {
    const Error error = refusal(spec, request_of(stage));
    CHECK(error.code() == ErrorCode::invalid_spec);
    CHECK(contains(error.message(), "hidden_size is 65"));
  }
}

TEST_CASE("kernels of a backward pass know which side of the expert the weights are on") {
  for (const bool on_input : {false, true}) {
    CAPTURE(on_input);
    LayerSpec spec = pruned_spec();
    spec.bias = true;
    spec.weight_on_input = on_input;
    const auto says = [](const EmittedKernel& kernel, const char* trait, bool value) {
      return contains(kernel.text, std::string("bool ") + trait + " = " + (value ? "true" : "false") + ";");
    };
    KernelRequest dh = request_of(Stage::fc1);
    dh.backward = emit::activation_backward(spec);
    const EmittedKernel product = must_emit(model::backward_layer(spec), dh);
    CHECK(says(product, "kForwardWeightOnInput", on_input));
    CHECK(says(product, "kForwardBias", on_input));
    // Its own sums have neither bias nor, since the product is dout's, a weight before the epilogue.
    CHECK(says(product, "kBias", false));
    const auto gradient = [&](Stage stage) {
      emit::GradientRequest request;
      request.stage = stage;
      return emit::emit_gradient(spec, request).value();
    };
    // A weight on the input multiplies neither b2 nor the rows that b2's gradient sums.
    CHECK(says(gradient(Stage::topk_weight_gradient), "kBias", !on_input));
    CHECK(says(gradient(Stage::fc2_bias_gradient), "kWeighted", !on_input));
    KernelRequest saving = request_of(Stage::fc1);
    saving.saves_z = true;
    CHECK(says(must_emit(spec, saving), "kWeightOnInput", on_input));
  }
}
